"""The schedule against the times that the original computes."""

from __future__ import annotations

import re

import pytest

from infinitalk_cli.sampling.schedule import TIME_SCALE, get_timesteps
from tests.parity.reference import Case, cases, expect_close

ROWS = [(case, row) for case in cases("schedule") for row in case.expected]


@pytest.mark.parametrize(("case", "row"), ROWS, ids=[row for _, row in ROWS])
def test_times_equal_the_reference(case: Case, row: str) -> None:
    named = re.fullmatch(r"steps=(\d+),shift=([\d.]+)", row)
    assert named, f"unknown row {row}"
    times = [TIME_SCALE * t for t in get_timesteps(int(named[1]), float(named[2]))]
    expect_close(times, case.expected[row], case.tolerance, row)
