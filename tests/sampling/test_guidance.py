from __future__ import annotations

import pytest
import torch
from torch import Tensor

from infinitalk_cli.sampling.guidance import AdaptiveProjection, Guidance, PassKind, pass_kinds
from infinitalk_cli.sampling.settings import ApgSettings


def some_velocities(seed: int = 0) -> dict[PassKind, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    kinds: tuple[PassKind, ...] = ("cond", "drop_text", "uncond", "drop_audio")
    return {kind: torch.randn(1, 16, 2, 3, 4, generator=generator) for kind in kinds}


@pytest.mark.parametrize(
    ("text_scale", "audio_scale", "kinds"),
    [
        (5.0, 4.0, ("cond", "drop_text", "uncond")),
        (5.0, 1.0, ("cond", "drop_text")),
        (1.0, 4.0, ("cond", "drop_audio")),
        (1.0, 1.0, ("cond",)),
        (1.0 + 1e-12, 1.0 - 1e-12, ("cond",)),
        (0.0, 0.0, ("cond", "drop_text", "uncond")),
    ],
)
def test_only_the_passes_that_matter_are_run(text_scale: float, audio_scale: float, kinds: tuple[str, ...]) -> None:
    assert pass_kinds(text_scale, audio_scale) == kinds
    assert Guidance(text_scale, audio_scale).kinds == kinds


@pytest.mark.parametrize(("text_scale", "audio_scale"), [(5.0, 4.0), (5.0, 1.0), (0.0, 2.0)])
def test_guided_velocity_is_that_of_all_three_passes(text_scale: float, audio_scale: float) -> None:
    v = some_velocities()
    guidance = Guidance(text_scale, audio_scale)
    expected = v["uncond"] + text_scale * (v["cond"] - v["drop_text"]) + audio_scale * (v["drop_text"] - v["uncond"])
    torch.testing.assert_close(guidance.combine({kind: v[kind] for kind in guidance.kinds}), expected)


def test_without_text_guidance_speech_is_weighed_against_silence() -> None:
    v = some_velocities()
    guided = Guidance(1.0, 3.0).combine({"cond": v["cond"], "drop_audio": v["drop_audio"]})
    torch.testing.assert_close(guided, v["drop_audio"] + 3 * (v["cond"] - v["drop_audio"]))


@pytest.mark.parametrize("apg", [None, ApgSettings()])
def test_without_guidance_the_prediction_stays_as_it_is(apg: ApgSettings | None) -> None:
    v = some_velocities()
    assert torch.equal(Guidance(1.0, 1.0, apg).combine({"cond": v["cond"]}), v["cond"])


def test_projected_direction_is_orthogonal_to_the_prediction_and_limited_in_length() -> None:
    v = some_velocities()
    direction = AdaptiveProjection(ApgSettings(norm_threshold=5.0))(v["drop_text"], v["cond"])
    assert direction.norm() < 5.0
    assert abs(float((direction * v["cond"]).sum())) < 1e-3
    assert direction.dtype == torch.float32


def test_a_threshold_of_zero_limits_nothing() -> None:
    v = some_velocities()
    direction = AdaptiveProjection(ApgSettings(norm_threshold=0.0))(v["drop_text"], v["cond"])
    unit = v["cond"] / v["cond"].norm()
    torch.testing.assert_close(direction, v["drop_text"] - (v["drop_text"] * unit).sum() * unit, rtol=1e-4, atol=1e-5)


def test_full_parallel_weight_keeps_the_whole_direction() -> None:
    v = some_velocities()
    whole = AdaptiveProjection(ApgSettings(norm_threshold=0.0, parallel_weight=1.0))
    torch.testing.assert_close(whole(v["drop_text"], v["cond"]), v["drop_text"])


def test_momentum_carries_earlier_directions_within_a_chunk_only() -> None:
    first, second = some_velocities(1), some_velocities(2)
    settings = ApgSettings(momentum=-0.5, norm_threshold=0.0, parallel_weight=1.0)
    projection = AdaptiveProjection(settings)
    projection(first["uncond"], first["cond"])
    torch.testing.assert_close(
        projection(second["uncond"], second["cond"]), second["uncond"] - 0.5 * first["uncond"], rtol=1e-4, atol=1e-5
    )
    fresh = AdaptiveProjection(settings)
    torch.testing.assert_close(fresh(second["uncond"], second["cond"]), second["uncond"])
