"""Colour correction against the reference data."""

from __future__ import annotations

import pytest
import torch

from infinitalk_cli.media.color import match_color, rgb_to_lab
from tests.parity.reference import Case, cases, expect_close, tensor


def source(case: Case) -> torch.Tensor:
    """The frames of a case; one of them is of a single grey where the settings say so."""
    frames = tensor(case.inputs["video"]).clone()
    if "constant_frame" in case.settings:
        frames[:, :, case.settings["constant_frame"]] = case.settings["constant"]
    return frames


@pytest.mark.parametrize("case", cases("color"))
def test_frames_take_over_the_colours_of_the_reference(case: Case) -> None:
    matched = match_color(source(case), tensor(case.inputs["reference"]), case.settings["strength"])
    expected = tensor(case.expected["video"])
    assert matched.shape == expected.shape
    # The deviation of a flat frame is rounding noise, so the data gives no result to compare with; see below.
    flat = case.settings.get("constant_frame")
    comparable = [i for i in range(expected.shape[2]) if i != flat]
    expect_close(matched[:, :, comparable], expected[:, :, comparable], case.tolerance, case.id)


@pytest.mark.parametrize("case", cases("color", lambda c: "constant_frame" in c.settings))
def test_a_flat_frame_becomes_the_reference_mean(case: Case) -> None:
    reference = tensor(case.inputs["reference"])
    matched = match_color(source(case), reference, case.settings["strength"])
    flat = (matched[0, :, case.settings["constant_frame"]] + 1) / 2
    mean = rgb_to_lab((reference[0] + 1) / 2).mean(dim=(1, 2, 3))
    assert flat.std(dim=(1, 2)).max() < 1e-6
    torch.testing.assert_close(rgb_to_lab(flat).mean(dim=(1, 2)), mean, atol=0.01, rtol=0)
