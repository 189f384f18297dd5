from __future__ import annotations

from typing import Any

import pytest

from infinitalk_cli.sampling.settings import Compatibility, InvalidInput, SamplingSettings, num_latent_frames


@pytest.mark.parametrize(
    "wrong",
    [
        {"chunk_frames": 80},
        {"chunk_frames": 0},
        {"motion_frames": 6},
        {"motion_frames": 0},
        {"motion_frames": -3},
        {"motion_frames": 81},
        {"chunk_frames": 17, "motion_frames": 25},
        {"num_steps": 0},
        {"max_frames": 0},
        {"seed": -1},
        {"shift": 0.0},
        {"shift": float("nan")},
        {"color_strength": 1.5},
        {"color_strength": float("nan")},
    ],
)
def test_values_that_cannot_work_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        SamplingSettings(**wrong)


def test_refused_length_names_the_nearest_ones() -> None:
    with pytest.raises(InvalidInput) as caught:
        SamplingSettings(chunk_frames=100)
    assert "100 frames" in caught.value.message
    assert "97 and 101" in caught.value.hint


def test_motion_part_longer_than_the_only_chunk_is_accepted() -> None:
    assert not SamplingSettings(chunk_frames=17, motion_frames=25, max_frames=17).is_streaming


def test_any_motion_length_is_a_compatibility() -> None:
    settings = SamplingSettings(motion_frames=6, compatibility=Compatibility(any_motion_length=True))
    assert num_latent_frames(settings.motion_frames) == 2


@pytest.mark.parametrize(("frames", "latents"), [(1, 1), (5, 2), (6, 2), (9, 3), (25, 7), (81, 21)])
def test_four_frames_make_a_latent_frame_after_the_first(frames: int, latents: int) -> None:
    assert num_latent_frames(frames) == latents
