"""Which rows of the speech each frame of a chunk hears, against the original's indices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from infinitalk_cli.sampling.conditioning import audio_window
from tests.parity.reference import cases
from tests.sampling.stubs import numbered_rows

ROWS = [row for case in cases("audio_windowing") for row in case.expected["rows"]]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['num_frames_of_embedding']}_from_{row['start']}")
def test_windows_equal_the_reference(row: Mapping[str, Any]) -> None:
    windows = audio_window(numbered_rows(row["num_frames_of_embedding"]), row["start"], row["frame_num"])
    indices = windows[:, :, 0, 0].int().tolist()
    assert len(indices) == row["frame_num"]
    assert indices[: len(row["first_rows"])] == row["first_rows"]
    assert indices[-len(row["last_rows"]) :] == row["last_rows"]
    assert sum(map(sum, indices)) == row["sum"]
