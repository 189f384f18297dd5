"""Memory does not grow with the video, and sound and frames keep their exact lengths."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.flat_memory import is_flat, watched
from benchmarks.long_video import ALLOWED_GROWTH_BYTES, measure


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(sys.platform == "win32", reason="the system's count of a child's memory is asked for")
def test_five_minutes_take_no_more_memory_than_one(tmp_path: Path) -> None:
    minute, longer = (measure(tmp_path, minutes) for minutes in (1, 5))
    assert minute.is_exact
    assert longer.is_exact
    assert longer.peak_bytes - minute.peak_bytes < ALLOWED_GROWTH_BYTES / 2


@pytest.mark.slow
def test_no_chunk_leaves_memory_behind() -> None:
    watch = watched(None, num_chunks=12)
    assert [held.chunk for held in watch.seen] == list(range(1, 14))
    assert is_flat(watch.growth(settled=3))


@pytest.mark.gpu
def test_no_chunk_leaves_memory_behind_on_the_gpu() -> None:
    growth = watched(None, num_chunks=20).growth(settled=3)
    assert set(growth) == {"ram_bytes", "allocated_peak_bytes", "reserved_peak_bytes"}
    assert is_flat(growth)
