"""What is measured of a long video: colours that stray and seams that jump are found, steady pictures are not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from infinitalk_cli.media.drift import Drift, from_json, mean_steps, sampled, to_json


def picture(brightness: float = 0.0) -> Tensor:
    """One grey: `(1, 3, 1, 32, 48)`."""
    return torch.full((1, 3, 1, 32, 48), brightness)


def moving(start: int, num_frames: int = 8, brightness: float = 0.0, jump: int = 0) -> Tensor:
    """Frames in which a lighter square goes two columns a frame."""
    frames = picture(brightness).repeat(1, 1, num_frames, 1, 1)
    for number in range(num_frames):
        left = (2 * (start + number) + jump) % 38
        frames[0, :, number, 10:20, left : left + 10] += 0.3
    return frames


def measured(*chunks: Tensor) -> Drift:
    drift, start = Drift(), 0
    for chunk in chunks:
        drift = drift.after(chunk, picture(), start, continues=start > 0)
        start += chunk.shape[2]
    return drift


def test_a_steady_video_brings_no_complaint() -> None:
    drift = measured(*(moving(start) for start in (0, 8)), moving(16))
    assert drift.complaint(25) == ""
    assert [chunk.start for chunk in drift.chunks] == [0, 8, 16]
    ratios = [chunk.seam_ratio for chunk in drift.chunks]
    assert ratios[0] is None
    assert ratios[1:] == pytest.approx([1.0, 1.0], abs=0.3)


def test_a_jump_between_chunks_is_a_seam_that_stands_out() -> None:
    drift = measured(moving(0), moving(8, jump=5))
    assert drift.summary()["num_seams_that_stand_out"] == 1
    assert drift.summary()["seam_frame"] == 8
    assert "1 of 1 seams stands out, most at 0.32 s" in drift.complaint(25)


def test_a_movement_at_a_border_is_no_seam_where_others_are_as_large() -> None:
    jumpy = moving(8, jump=5)
    jumpy[:, :, 5:] = moving(13, num_frames=3, jump=-5)
    drift = measured(moving(0), jumpy)
    assert drift.summary()["seam_ratio"] == measured(moving(0), moving(8, jump=5)).summary()["seam_ratio"]
    assert drift.complaint(25) == ""


def test_colours_that_stray_are_told_with_their_distance() -> None:
    drift = measured(moving(0), moving(8, brightness=0.05), moving(16, brightness=0.2))
    near, middle, far = (chunk.lab_distance for chunk in drift.chunks)
    assert near < middle < 4 < far
    assert "at 0.64 s the colours are" in drift.complaint(25)
    lightness = drift.chunks[2].lab_mean[0] - drift.chunks[0].lab_mean[0]
    assert lightness == pytest.approx(far, abs=1.5)  # nothing but the lightness has changed


def test_the_first_chunk_of_a_scene_has_no_seam() -> None:
    drift = measured(moving(0)).after(moving(30), picture(), 8, continues=False)
    assert drift.worst_seam is None
    assert drift.summary()["seam_ratio"] is None


def test_a_still_picture_has_no_seams_that_stand_out() -> None:
    still = picture().repeat(1, 1, 5, 1, 1)
    drift = measured(still, still + 1e-3)
    assert drift.chunks[1].seam_ratio == 1
    assert drift.complaint(25) == ""


def test_a_last_chunk_of_one_frame_is_compared_with_the_steps_before() -> None:
    drift = measured(moving(0), moving(8, num_frames=1))
    assert drift.chunks[1].seam_ratio == pytest.approx(1.0, abs=0.3)
    assert drift.complaint(25) == ""


def test_single_frames_are_measured() -> None:
    drift = measured(moving(0, num_frames=1), moving(1, num_frames=1))
    assert drift.chunks[1].step == 0
    assert drift.chunks[1].seam is not None


def test_figures_survive_being_written_down() -> None:
    drift = measured(moving(0), moving(8))
    assert from_json(to_json(drift), drift.last) == drift


def test_large_frames_are_looked_at_on_a_coarse_grid() -> None:
    samples = sampled(torch.zeros(1, 3, 2, 448, 896))
    assert samples.shape == (3, 2, 50, 100)
    assert mean_steps(samples).tolist() == [0]
