from __future__ import annotations

import pytest
import torch

from infinitalk_cli.media import color
from infinitalk_cli.media.color import lab_to_rgb, match_color, rgb_to_lab


def picture(seed: int, num_frames: int = 1, size: int = 24) -> torch.Tensor:
    """Random frames that stay clear of 0 and 1, so that nothing is clipped."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(1, 3, num_frames, size, size, generator=generator) * 0.6 - 0.3


def statistics(frames: torch.Tensor) -> torch.Tensor:
    lab = rgb_to_lab((frames[0] + 1) / 2)
    return torch.stack(torch.std_mean(lab, dim=(2, 3), correction=0))


def test_known_colours_have_known_lab_values() -> None:
    rgb = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]).T
    known = torch.tensor([[100.0, 0.0, 0.0], [53.24, 80.09, 67.20], [32.30, 79.19, -107.86], [0.0, 0.0, 0.0]]).T
    assert torch.allclose(rgb_to_lab(rgb), known, atol=0.02)


def test_lab_and_back_is_the_same_colour() -> None:
    rgb = torch.rand(3, 5000, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(lab_to_rgb(rgb_to_lab(rgb)), rgb, atol=2e-5)


def test_every_frame_gets_the_statistics_of_the_reference() -> None:
    frames, reference = picture(1, num_frames=5) * 0.5 + 0.1, picture(2)
    wanted = statistics(reference).expand(2, 3, 5)
    assert torch.allclose(statistics(match_color(frames, reference)), wanted, atol=0.02)


def test_a_frame_already_right_is_not_changed() -> None:
    frame = picture(3)
    assert torch.allclose(match_color(frame, frame), frame, atol=1e-5)


def test_strength_blends_and_zero_switches_off() -> None:
    frames, reference = picture(4), picture(5) * 0.5
    full, half = match_color(frames, reference, 1.0), match_color(frames, reference, 0.5)
    assert torch.allclose(half, (frames + full) / 2, atol=1e-6)
    assert match_color(frames, reference, 0.0) is frames


def test_the_reference_may_have_another_size() -> None:
    frames = picture(6)
    assert match_color(frames, picture(7, size=40)).shape == frames.shape


def test_a_grey_video_takes_the_colour_but_no_noise() -> None:
    grey = picture(8)[:, :1].expand(1, 3, 1, 24, 24)
    reference = picture(9)
    a, b = rgb_to_lab((match_color(grey, reference)[0] + 1) / 2)[1:]
    assert a.std() < 0.2  # the reference's own is above 10
    assert b.std() < 0.2
    assert a.mean() == pytest.approx(rgb_to_lab((reference[0] + 1) / 2)[1].mean(), abs=0.5)


def test_results_do_not_depend_on_how_many_frames_are_done_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    frames, reference = picture(10, num_frames=7), picture(11)
    together = match_color(frames, reference)
    monkeypatch.setattr(color, "PIXELS_AT_ONCE", 2 * 24 * 24)
    assert torch.equal(match_color(frames, reference), together)


def test_half_precision_frames_are_corrected_in_float32() -> None:
    frames, reference = picture(12), picture(13)
    matched = match_color(frames.bfloat16(), reference.bfloat16())
    assert matched.dtype == torch.float32
    assert torch.allclose(matched, match_color(frames, reference), atol=0.02)
