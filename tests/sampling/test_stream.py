from __future__ import annotations

import gc
import weakref
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from infinitalk_cli.sampling.conditioning import TensorEmbeds
from infinitalk_cli.sampling.settings import Compatibility, InvalidInput, SamplingSettings
from infinitalk_cli.sampling.stream import generate_chunks, picture_mask
from tests.sampling.stubs import SIZE, Call, labels, make_conditioning, make_stubs


def quick(**changes: Any) -> SamplingSettings:
    """One step, one pass, chunks of 17 frames."""
    defaults: dict[str, Any] = {
        "chunk_frames": 17,
        "num_steps": 1,
        "text_guidance_scale": 1.0,
        "audio_guidance_scale": 1.0,
    }
    return SamplingSettings(**{**defaults, **changes})


class MovingReference:
    """A new picture for every chunk, as bright as the chunk's start says."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def frame(self, chunk_start: int) -> Tensor:
        self.asked.append(chunk_start)
        return torch.full((1, 3, 1, SIZE, SIZE), chunk_start / 100)


@pytest.mark.parametrize("engine", ["infinitetalk", "multitalk"])
def test_video_is_as_long_as_the_speech_and_made_of_new_frames_only(engine: Any) -> None:
    stubs = make_stubs()
    chunks = list(generate_chunks(stubs.networks, make_conditioning(30), quick(engine=engine)))
    assert [chunk.start for chunk in chunks] == [0, 17, 25]
    assert [labels(chunk.frames) for chunk in chunks] == [
        list(range(17)),
        list(range(1009, 1017)),
        list(range(2009, 2014)),
    ]


def test_chunk_is_computed_when_it_is_asked_for() -> None:
    stubs = make_stubs()
    chunks = generate_chunks(stubs.networks, make_conditioning(1000), quick())
    assert not stubs.dit.calls
    next(chunks)
    assert len(stubs.dit.calls) == 1


def test_finished_frames_are_not_held_while_the_next_chunk_is_computed() -> None:
    finished: list[weakref.ref[Any]] = []

    def check(call: Call) -> Tensor:
        gc.collect()
        assert all(storage() is None for storage in finished)
        return torch.zeros_like(call.latents)

    for chunk in generate_chunks(make_stubs(velocity=check).networks, make_conditioning(33), quick()):
        finished.append(weakref.ref(chunk.frames.untyped_storage()))
        del chunk
    assert len(finished) == 3


@pytest.mark.parametrize("engine", ["infinitetalk", "multitalk"])
def test_scene_after_a_cut_is_made_as_if_it_were_the_first(engine: Any) -> None:
    settings = quick(engine=engine, color_reference="first", color_strength=1.0)
    stubs, seen = make_stubs(match_color=lambda frames, reference, strength: frames + reference), MovingReference()
    conditioning = replace(make_conditioning(45, reference=seen), cuts=(20,))
    chunks = list(generate_chunks(stubs.networks, conditioning, settings))
    assert [chunk.start for chunk in chunks] == [0, 17, 20, 37]
    assert [chunk.carried.motion is None for chunk in chunks] == [False, True, False, True]
    assert seen.asked == [0, 8, 20, 28]
    again, other = make_stubs(), MovingReference()
    list(generate_chunks(again.networks, make_conditioning(25, reference=other), settings))
    fresh, first = stubs.dit.calls[2], again.dit.calls[0]
    assert torch.equal(fresh.condition[0, :4], first.condition[0, :4])
    assert float(chunks[2].frames[0, 0, 0, 0, 0]) == pytest.approx(2000 + 0.2)  # the colours of its own first picture


def test_speech_stays_on_one_timeline_across_a_cut() -> None:
    stubs = make_stubs()
    list(generate_chunks(stubs.networks, replace(make_conditioning(45), cuts=(20,)), quick()))
    heard = [int(window[0, 0, 2, 0, 0]) for window in stubs.dit.windows]
    assert heard == [0, 8, 20, 28]


@pytest.mark.parametrize("engine", ["infinitetalk", "multitalk"])
def test_video_goes_on_behind_any_chunk_as_if_it_had_not_stopped(engine: Any) -> None:
    settings = quick(engine=engine, num_steps=2)
    stubs = make_stubs()
    whole = list(generate_chunks(stubs.networks, make_conditioning(40), settings))
    assert len(whole) == 4
    for num_done, chunk in enumerate(whole[:-1], start=1):
        assert chunk.carried.num_done == num_done
        again = make_stubs()
        again.vae.decoded = stubs.vae.decoded[:num_done]  # its labels count the chunks
        rest = list(generate_chunks(again.networks, make_conditioning(40), settings, resume=chunk.carried))
        for piece, expected in zip(rest, whole[num_done:], strict=True):
            assert (piece.index, piece.start) == (expected.index, expected.start)
            assert torch.equal(piece.frames, expected.frames)
        for call, expected in zip(again.dit.calls, stubs.dit.calls[2 * num_done :], strict=True):
            assert torch.equal(call.latents, expected.latents)


def test_last_chunk_is_decoded_only_as_far_as_it_is_kept() -> None:
    stubs = make_stubs()
    list(generate_chunks(stubs.networks, make_conditioning(26), quick()))
    assert stubs.vae.num_frames_decoded == 17 + 17 + 13


def test_still_picture_is_encoded_once() -> None:
    stubs = make_stubs()
    list(generate_chunks(stubs.networks, make_conditioning(33), quick()))
    assert len(stubs.image_encoder.seen) == 1
    assert [frames.shape[2] for frames in stubs.vae.encoded] == [17, 9, 9]


def test_video_reference_is_taken_anew_for_every_chunk() -> None:
    stubs, reference = make_stubs(), MovingReference()
    list(generate_chunks(stubs.networks, make_conditioning(33, reference=reference), quick()))
    assert reference.asked == [0, 8, 16]
    assert [float(picture.mean()) for picture in stubs.image_encoder.seen] == pytest.approx([0, 0.08, 0.16])
    assert [float(call.condition[0, 4, 0].mean()) for call in stubs.dit.calls] == pytest.approx([0, 0.08, 0.16])


def test_infinitetalk_sees_the_reference_in_every_chunk_and_starts_from_the_last_frames() -> None:
    stubs = make_stubs()
    list(generate_chunks(stubs.networks, make_conditioning(25), quick()))
    first, second = stubs.dit.calls
    assert torch.equal(first.condition, second.condition)
    assert first.condition[0, :4].sum((0, 2, 3)).tolist() == [4 * 4, 0, 0, 0, 0]
    assert first.latents[0, 0, 0].unique().tolist() == [0.5]
    assert second.latents[0, 0, :3, 0, 0].tolist() == pytest.approx([8, 10.5, 14.5])


def test_multitalk_sees_the_last_frames_and_starts_from_nothing_or_noise() -> None:
    stubs = make_stubs()
    list(generate_chunks(stubs.networks, make_conditioning(25), quick(engine="multitalk")))
    first, second = stubs.dit.calls
    assert first.condition[0, :4].sum((0, 2, 3)).tolist() == [4 * 4, 0, 0, 0, 0]
    assert second.condition[0, :4].sum((0, 2, 3)).tolist() == [4 * 4, 4 * 4, 4 * 4, 0, 0]
    assert second.condition[0, 4, :, 0, 0].tolist() == pytest.approx([8, 10.5, 14.5, 0, 0])
    assert [float(picture.mean()) for picture in stubs.image_encoder.seen] == [0.5, 16]
    generator = torch.Generator().manual_seed(42)
    start = torch.randn(1, 16, 5, 2, 2, generator=generator)
    assert torch.equal(first.latents, start)
    assert torch.equal(second.latents[:, :, 3:], torch.randn(1, 16, 5, 2, 2, generator=generator)[:, :, 3:])
    assert torch.equal(second.latents[:, :, :3], torch.randn(1, 16, 3, 2, 2, generator=generator))
    assert stubs.vae.decoded[1][0, 0, :3, 0, 0].tolist() == pytest.approx([8, 10.5, 14.5])


def test_engines_draw_the_same_noise_for_later_chunks() -> None:
    stubs = make_stubs()
    list(generate_chunks(stubs.networks, make_conditioning(33), quick()))
    generator = torch.Generator().manual_seed(42)
    for chunk, call in enumerate(stubs.dit.calls):
        start = torch.randn(1, 16, 5, 2, 2, generator=generator)
        assert torch.equal(call.latents[:, :, 3:], start[:, :, 3:])
        if chunk:
            torch.randn(2, 16, 3, 2, 2, generator=generator)


@pytest.mark.parametrize(
    ("num_pictures", "expected"), [(1, [4, 0, 0, 0, 0]), (9, [4, 4, 4, 0, 0]), (6, [4, 4, 1, 0, 0]), (17, [4] * 5)]
)
def test_mask_counts_the_first_frame_four_times(num_pictures: int, expected: list[int]) -> None:
    assert picture_mask(num_pictures, 17).sum((0, 1, 3, 4)).tolist() == expected


def shift_color(frames: Tensor, reference: Tensor, strength: float) -> Tensor:
    """A colour correction that shows its arguments: adds a hundredth of strength and the reference's brightness."""
    return frames + strength / 100 + reference.mean()


def test_corrected_frames_start_the_next_chunk() -> None:
    stubs = make_stubs(match_color=shift_color)
    chunks = list(generate_chunks(stubs.networks, make_conditioning(25), quick(color_strength=0.5)))
    assert chunks[0].frames[0, 0, :2, 0, 0].tolist() == pytest.approx([0.505, 1.505])
    assert stubs.vae.encoded[1][0, 0, 0, 0, 0].item() == pytest.approx(8.505)


def test_no_color_strength_leaves_the_frames_alone() -> None:
    stubs = make_stubs(match_color=shift_color)
    chunks = list(generate_chunks(stubs.networks, make_conditioning(25), quick(color_strength=0.0)))
    assert labels(chunks[0].frames) == list(range(17))


@pytest.mark.parametrize(("source", "brightness"), [("first", 0.0), ("chunk", 0.08)])
def test_color_reference_is_that_of_the_chunk_or_of_the_first_one(source: Any, brightness: float) -> None:
    stubs = make_stubs(match_color=lambda frames, reference, strength: torch.zeros_like(frames) + reference.mean())
    conditioning = make_conditioning(25, reference=MovingReference())
    chunks = list(generate_chunks(stubs.networks, conditioning, quick(color_reference=source)))
    assert chunks[0].frames.unique().tolist() == [0]
    assert chunks[1].frames.unique().tolist() == pytest.approx([brightness])


def test_each_network_is_used_on_its_stage_only() -> None:
    on_stage: list[nn.Module] = []

    @contextmanager
    def stage(module: nn.Module) -> Generator[None, None, None]:
        on_stage.append(module)
        yield
        on_stage.remove(module)

    def check(call: Call) -> Tensor:
        assert on_stage == [stubs.dit]
        return torch.zeros_like(call.latents)

    stubs = make_stubs(velocity=check, on_stage=stage)
    for _ in generate_chunks(stubs.networks, make_conditioning(25), quick()):
        assert not on_stage


def test_steps_are_reported_with_chunk_and_total() -> None:
    reported: list[tuple[int, int, int, int]] = []
    chunks = generate_chunks(
        make_stubs().networks, make_conditioning(25), quick(num_steps=2), on_step=lambda *step: reported.append(step)
    )
    list(chunks)
    assert reported == [(1, 2, 1, 2), (1, 2, 2, 2), (2, 2, 1, 2), (2, 2, 2, 2)]


def test_speech_of_a_chunk_is_its_window_and_the_reversed_tail() -> None:
    stubs = make_stubs()
    list(generate_chunks(stubs.networks, make_conditioning(20), quick()))
    centers = [windows[0, :, 2, 0, 0].int().tolist() for windows in stubs.dit.windows]
    assert centers == [list(range(17)), [*range(8, 20), 19, 18, 17, 16, 15]]


def test_two_speakers_of_unequal_length_both_speak_to_the_end() -> None:
    stubs = make_stubs()
    chunks = list(generate_chunks(stubs.networks, make_conditioning(18, 25), quick()))
    assert sum(chunk.frames.shape[2] for chunk in chunks) == 25
    short, long = stubs.dit.windows[1][:, :, 2, 0, 0].int().tolist()
    assert short == [*range(8, 18), 17, 16, 15, 14, 13, 12, 11]
    assert long == list(range(8, 25))
    assert all(len(call.audio_tokens) == 2 and call.speaker_masks is not None for call in stubs.dit.calls)


@pytest.mark.parametrize("asked", [True, False])
def test_empty_mask_is_treated_as_the_settings_say(asked: bool) -> None:
    stubs = make_stubs()
    settings = quick(compatibility=Compatibility(nan_for_empty_mask=asked))
    list(generate_chunks(stubs.networks, make_conditioning(17, 17), settings))
    assert {call.empty_mask for call in stubs.dit.calls} == {"nan" if asked else "zero"}


def test_same_seed_gives_the_same_video_and_another_seed_another_one() -> None:
    def first_latents(seed: int) -> Tensor:
        stubs = make_stubs()
        list(generate_chunks(stubs.networks, make_conditioning(17), quick(seed=seed)))
        return stubs.vae.decoded[0]

    assert torch.equal(first_latents(1), first_latents(1))
    assert not torch.equal(first_latents(1), first_latents(2))


def test_what_cannot_be_generated_is_refused_before_the_first_chunk() -> None:
    networks, two = make_stubs().networks, make_conditioning(20, 20)
    with pytest.raises(InvalidInput, match="3 speakers"):
        generate_chunks(networks, replace(two, audio=(*two.audio, two.audio[0])), quick())
    with pytest.raises(InvalidInput, match="no masks"):
        generate_chunks(networks, replace(two, speaker_masks=None), quick())
    with pytest.raises(InvalidInput, match="negative prompt"):
        generate_chunks(networks, replace(two, null_text=None), quick(text_guidance_scale=5.0))
    with pytest.raises(InvalidInput, match="no speech"):
        generate_chunks(networks, make_conditioning(), quick())


def test_speech_without_numbers_is_refused() -> None:
    broken = replace(make_conditioning(20), audio=(TensorEmbeds(torch.full((20, 1, 1), float("nan"))),))
    with pytest.raises(InvalidInput, match="speaker 1"):
        next(generate_chunks(make_stubs().networks, broken, quick()))


def test_gradients_of_the_caller_stay_as_they_were() -> None:
    for _ in generate_chunks(make_stubs().networks, make_conditioning(20), quick()):
        assert torch.is_grad_enabled()


@pytest.mark.parametrize("engine", ["infinitetalk", "multitalk"])
@pytest.mark.parametrize("num_frames", [17, 18, 26, 40])
def test_cross_fade_blends_the_common_frames_and_keeps_the_length(engine: Any, num_frames: int) -> None:
    settings = quick(engine=engine, cross_fade=True, motion_frames=5)
    chunks = list(generate_chunks(make_stubs().networks, make_conditioning(num_frames), settings))
    assert sum(chunk.frames.shape[2] for chunk in chunks) == num_frames
    assert [chunk.start for chunk in chunks] == [12 * index for index in range(len(chunks))]
    for index, chunk in enumerate(chunks[1:], start=1):
        before, own = 1000 * (index - 1) + 12, 1000 * index
        shares = [(float(chunk.frames[0, 0, n, 0, 0]) - before - n) / (own - before) for n in range(5)]
        assert shares == pytest.approx([0, 1 / 5, 2 / 5, 3 / 5, 4 / 5], abs=1e-3)
        assert int(chunk.frames[0, 0, 5, 0, 0]) == own + 5


def test_cross_fade_changes_nothing_that_the_networks_see() -> None:
    plain, faded = make_stubs(), make_stubs()
    list(generate_chunks(plain.networks, make_conditioning(40), quick()))
    list(generate_chunks(faded.networks, make_conditioning(40), quick(cross_fade=True)))
    for one, other in zip(plain.dit.calls, faded.dit.calls, strict=True):
        assert torch.equal(one.latents, other.latents)
        assert torch.equal(one.condition, other.condition)


@pytest.mark.parametrize("engine", ["infinitetalk", "multitalk"])
def test_every_nth_chunk_starts_from_the_reference(engine: Any) -> None:
    settings, seen = quick(engine=engine, reanchor_every=2), MovingReference()
    stubs = make_stubs()
    chunks = list(generate_chunks(stubs.networks, make_conditioning(45, reference=seen), settings))
    assert [chunk.start for chunk in chunks] == [0, 17, 25, 33, 41]
    pictures = [call.condition[0, :4, :, 0, 0].sum() for call in stubs.dit.calls]
    if engine == "multitalk":  # it sees the frames before, unless it starts anew
        assert [int(number) for number in pictures] == [4, 12, 4, 12, 4]
    else:  # it is given the frames before, which the stub encodes as their mean
        encoded = [frames.shape[2] for frames in stubs.vae.encoded]
        assert encoded == [17, 17, 9, 17, 17, 9, 17]
    assert [chunk.continues for chunk in chunks] == [False, True, True, True, True]


def test_a_faded_and_reanchored_video_goes_on_behind_any_chunk() -> None:
    settings = quick(num_steps=2, cross_fade=True, reanchor_every=2)
    stubs = make_stubs()
    whole = list(generate_chunks(stubs.networks, make_conditioning(40), settings))
    for num_done, chunk in enumerate(whole[:-1], start=1):
        again = make_stubs()
        again.vae.decoded = stubs.vae.decoded[:num_done]
        rest = list(generate_chunks(again.networks, make_conditioning(40), settings, resume=chunk.carried))
        for piece, expected in zip(rest, whole[num_done:], strict=True):
            assert piece.start == expected.start
            assert torch.equal(piece.frames, expected.frames)
