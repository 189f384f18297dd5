from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from infinitalk_cli.models.dit import DiT
from infinitalk_cli.sampling.denoise import ChunkInputs, KnownLatents, Noise, denoise, embed_passes
from infinitalk_cli.sampling.guidance import pass_kinds
from infinitalk_cli.sampling.schedule import get_timesteps
from infinitalk_cli.sampling.settings import SamplingSettings
from tests.sampling.stubs import StubDiT, make_conditioning

SHAPE = (1, 16, 5, 2, 2)
CPU = torch.device("cpu")


def as_dit(stub: StubDiT) -> DiT:
    return cast(Any, stub)


def unguided(**changes: Any) -> SamplingSettings:
    defaults: dict[str, Any] = {"num_steps": 6, "text_guidance_scale": 1.0, "audio_guidance_scale": 1.0}
    return SamplingSettings(**{**defaults, **changes})


def run(
    stub: StubDiT,
    known: KnownLatents,
    settings: SamplingSettings,
    noise: Tensor | None = None,
    on_step: Callable[[int, int], None] = lambda step, num_steps: None,
) -> Tensor:
    """Denoise a chunk of one speaker with a stand-in for the transformer."""
    kinds = pass_kinds(settings.text_guidance_scale, settings.audio_guidance_scale)
    windows = torch.randn(1, 17, 5, 1, 1)
    passes = embed_passes(as_dit(stub), make_conditioning(20), torch.zeros(1, 1, 1), windows, kinds)
    inputs = ChunkInputs(torch.zeros(1, 20, 5, 2, 2), known, passes)
    start = torch.randn(SHAPE) if noise is None else noise
    return denoise(as_dit(stub), start.clone(), inputs, settings, on_step)


def known_frames(num_frames: int, noise: Noise | None = None, is_noised: bool = False) -> KnownLatents:
    return KnownLatents(torch.full((1, 16, num_frames, 2, 2), 7.0), noise, is_noised)


def test_steps_add_up_to_the_whole_way_from_noise_to_clean() -> None:
    noise, velocity = torch.randn(SHAPE), torch.randn(SHAPE)
    clean = run(StubDiT(lambda call: velocity), known_frames(0), unguided(), noise)
    torch.testing.assert_close(clean, noise - velocity, rtol=1e-5, atol=1e-5)


def test_network_is_asked_at_every_time_on_its_own_scale() -> None:
    stub = StubDiT()
    run(stub, known_frames(0), unguided())
    assert [call.t for call in stub.calls] == pytest.approx([1000 * t for t in get_timesteps(6, 7.0)[:-1]])


def test_clean_known_latents_are_exact_before_every_pass_and_at_the_end() -> None:
    stub = StubDiT(lambda call: torch.ones(SHAPE))
    known = known_frames(3, noise=Noise(0, CPU))
    latents = run(stub, known, unguided(text_guidance_scale=5.0))
    assert all(torch.equal(call.latents[:, :, :3], known.clean) for call in stub.calls)
    assert torch.equal(latents[:, :, :3], known.clean)
    assert not torch.equal(latents[:, :, 3:4], known.clean[:, :, :1])


def test_noised_known_latents_are_as_noisy_as_the_time_says() -> None:
    stub = StubDiT()
    known = known_frames(3, noise=Noise(5, CPU), is_noised=True)
    latents = run(stub, known, unguided())
    again = Noise(5, CPU)
    for call, t in zip(stub.calls, get_timesteps(6, 7.0), strict=False):
        expected = (1 - t) * known.clean + t * again.draw(known.clean.shape)
        torch.testing.assert_close(call.latents[:, :, :3], expected)
    assert torch.equal(latents[:, :, :3], known.clean)


def test_first_noised_known_latents_are_pure_noise() -> None:
    stub = StubDiT()
    run(stub, known_frames(3, noise=Noise(5, CPU), is_noised=True), unguided())
    assert torch.equal(stub.calls[0].latents[:, :, :3], Noise(5, CPU).draw((1, 16, 3, 2, 2)))


@pytest.mark.parametrize("is_noised", [True, False])
def test_noise_is_drawn_once_more_than_there_are_steps(is_noised: bool) -> None:
    used, counted = Noise(3, CPU), Noise(3, CPU)
    run(StubDiT(), known_frames(3, noise=used, is_noised=is_noised), unguided(num_steps=4))
    for _ in range(5):
        counted.draw((1, 16, 3, 2, 2))
    assert torch.equal(used.draw((4,)), counted.draw((4,)))


def test_noise_is_that_of_the_default_generator_with_the_same_seed() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(42)
        expected = torch.randn(16, 5, 2, 2)
    assert torch.equal(Noise(42, CPU).draw(SHAPE)[0], expected)


def test_steps_are_reported_with_their_number() -> None:
    reported: list[tuple[int, int]] = []
    run(StubDiT(), known_frames(0), unguided(num_steps=3), on_step=lambda *step: reported.append(step))
    assert reported == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("text_scale", "audio_scale", "num_passes"), [(5.0, 4.0, 3), (5.0, 1.0, 2), (1.0, 4.0, 2), (1.0, 1.0, 1)]
)
def test_each_variant_of_text_and_speech_is_embedded_once(
    text_scale: float, audio_scale: float, num_passes: int
) -> None:
    stub = StubDiT()
    run(stub, known_frames(1), unguided(text_guidance_scale=text_scale, audio_guidance_scale=audio_scale))
    assert len(stub.calls) == 6 * num_passes
    assert len(stub.contexts) == (1 if text_scale == 1 else 2)
    assert len(stub.windows) == (1 if audio_scale == 1 else 2)


def test_pass_without_speech_hears_one_speaker_of_zeros() -> None:
    stub = StubDiT()
    conditioning = make_conditioning(20, 20)
    windows = torch.randn(2, 17, 5, 1, 1)
    passes = embed_passes(as_dit(stub), conditioning, torch.zeros(1, 1, 1), windows, ["cond", "drop_text", "uncond"])
    by_kind = {each.kind: each for each in passes}
    assert torch.equal(by_kind["uncond"].audio_tokens, torch.zeros(1, 17, 5, 1, 1))
    assert by_kind["uncond"].speaker_masks is None
    for kind in ("cond", "drop_text"):
        assert torch.equal(by_kind[kind].audio_tokens, windows)
        assert by_kind[kind].speaker_masks is conditioning.speaker_masks
    texts = [by_kind[kind].context[0] for kind in ("cond", "drop_text", "uncond")]  # pyright: ignore[reportIndexIssue]
    assert texts[0] is conditioning.text
    assert texts[1] is texts[2] is conditioning.null_text


def test_step_cache_skips_the_same_steps_in_every_kind_of_pass() -> None:
    stub = StubDiT()
    run(stub, known_frames(1), unguided(num_steps=9, step_cache_threshold=1e6, text_guidance_scale=5.0))
    reused = [call.reused for call in stub.calls]
    assert reused == [False] * 10 + [True] * 8


def test_step_cache_that_is_off_keeps_no_residual() -> None:
    stub = StubDiT()
    run(stub, known_frames(1), unguided(num_steps=9))
    assert not any(call.reused for call in stub.calls)


def test_latents_between_steps_follow_the_velocity() -> None:
    noise = torch.randn(SHAPE)
    stub = StubDiT(lambda call: torch.full(SHAPE, 2.0))
    run(stub, known_frames(0), unguided(), noise)
    times = get_timesteps(6, 7.0)
    for (before, after), (t, t_next) in zip(pairwise(stub.calls), pairwise(times), strict=False):
        torch.testing.assert_close(
            after.latents - before.latents, torch.full(SHAPE, 2.0 * (t_next - t)), rtol=1e-3, atol=1e-6
        )
