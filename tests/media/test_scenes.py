"""Needs the optional packages of the extra `dub`."""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from infinitalk_cli.errors import EnvironmentUnfitError
from infinitalk_cli.media.scenes import find_cuts
from tests.media.made import write_video

RED, BLUE, GREEN = (200, 40, 40), (30, 60, 220), (40, 200, 90)


def scenes_of_colours(path: Path, *, start_s: float = 0.0) -> Path:
    """Three scenes, from 1.5 s and from 3.5 s on; the second has another frame rate. Each has moving noise."""
    rng = np.random.default_rng(0)
    times_s = [i / 30 for i in range(45)] + [1.5 + i / 10 for i in range(20)] + [3.5 + i / 30 for i in range(30)]
    colours = [RED] * 45 + [BLUE] * 20 + [GREEN] * 30
    pictures = [(np.array(colour) + rng.integers(0, 20, (64, 64, 3))).astype(np.uint8) for colour in colours]
    return write_video(path, [start_s + time_s for time_s in times_s], pictures=pictures)


@pytest.mark.parametrize("name, start_s", [("cuts.mp4", 0.0), ("late: cuts.mkv", 5.0)])
def test_cuts_are_found_by_time_counted_from_the_first_frame(tmp_path: Path, name: str, start_s: float) -> None:
    pytest.importorskip("scenedetect", exc_type=ImportError)
    path = scenes_of_colours(tmp_path / name, start_s=start_s)
    assert [float(cut_s) for cut_s in find_cuts(path, Fraction(4))] == pytest.approx([1.5, 3.5], abs=0.002)
    assert [float(cut_s) for cut_s in find_cuts(path, Fraction(2))] == pytest.approx([1.5], abs=0.002)


def test_search_does_not_make_ffmpeg_talk(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("scenedetect", exc_type=ImportError)
    find_cuts(scenes_of_colours(tmp_path / "cuts.mp4"), Fraction(1))
    write_video(tmp_path / "other.mp4", [0.0, 0.1])
    assert capfd.readouterr() == ("", "")


def test_missing_package_is_named_with_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scenedetect", None)
    with pytest.raises(EnvironmentUnfitError, match="scene cuts need PySceneDetect") as raised:
        find_cuts(tmp_path / "clip.mp4", Fraction(1))
    assert "infinitalk-cli[dub]" in raised.value.hint
