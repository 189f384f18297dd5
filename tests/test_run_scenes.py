"""Scene cuts of a run: found or not, as wished, on the timeline of the new video."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from infinitalk_cli import run_scenes
from infinitalk_cli.errors import EnvironmentUnfitError, InputError
from infinitalk_cli.job import Job, Speaker
from infinitalk_cli.media.image import BUCKETS
from infinitalk_cli.media.reference import open_reference
from infinitalk_cli.media.source_time import ShortSource
from infinitalk_cli.profiles import find_profile
from infinitalk_cli.request import GenerateRequest, check_request
from infinitalk_cli.run_scenes import scene_cuts
from infinitalk_cli.wishes import Scenes, SourceWishes
from tests.media.test_scenes import scenes_of_colours


def cuts_and_notes(
    path: Path, num_frames: int, short_source: ShortSource = "hold", scenes: Scenes = "auto", by_index: bool = False
) -> tuple[tuple[int, ...], list[str]]:
    job = Job(reference=path, prompt="", speakers=(Speaker(path),), is_video=True)
    source = SourceWishes(short_source, scenes)
    request = GenerateRequest(job, path.with_name("out.mp4"), find_profile("demo"), source=source)
    reference = open_reference(path, BUCKETS["demo"], is_video=True, short_source=short_source, by_index=by_index)
    notes = list[str]()
    return scene_cuts(request, reference, num_frames, notes.append), notes


def test_cuts_are_told_and_those_of_a_loop_come_again(tmp_path: Path) -> None:
    pytest.importorskip("scenedetect", exc_type=ImportError)
    path = scenes_of_colours(tmp_path / "cuts.mp4")  # 1.5 s, 3.5 s, and over at 4.5 s
    assert cuts_and_notes(path, 100) == ((38, 88), ["2 scene cuts at 1.52, 3.52 s: each starts anew"])
    assert cuts_and_notes(path, 60)[0] == (38,)
    assert cuts_and_notes(path, 160, "loop")[0] == (38, 88, 113, 150)


def test_nothing_is_looked_for_where_it_is_not_wished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = scenes_of_colours(tmp_path / "cuts.mp4")
    assert cuts_and_notes(path, 100, scenes="off") == ((), [])
    assert cuts_and_notes(path, 100, by_index=True) == ((), [])
    monkeypatch.setattr(run_scenes, "can_find_cuts", lambda: False)
    cuts, (note,) = cuts_and_notes(path, 100)
    assert cuts == ()
    assert "infinitalk-cli[dub]" in note


def test_search_that_does_not_start_ends_the_run_only_if_it_was_wished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = scenes_of_colours(tmp_path / "cuts.mp4")
    monkeypatch.setattr(run_scenes, "can_find_cuts", lambda: True)
    monkeypatch.setitem(sys.modules, "scenedetect", None)
    cuts, (note,) = cuts_and_notes(path, 100)
    assert cuts == ()
    assert "scene cuts are not looked for" in note
    with pytest.raises(EnvironmentUnfitError, match="scene cuts need PySceneDetect"):
        cuts_and_notes(path, 100, scenes="on")


def test_wishes_that_can_not_go_together_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    job = Job(reference=path, prompt="", speakers=(Speaker(path),), is_video=True)
    request = GenerateRequest(job, tmp_path / "out.mp4", find_profile("demo"), reference_by_index=True)
    with pytest.raises(InputError, match="can't go with --short-source loop"):
        check_request(replace(request, source=SourceWishes("loop")))
    with pytest.raises(InputError, match="can't go with --scenes on"):
        check_request(replace(request, source=SourceWishes(scenes="on")))
