"""Scene cuts of a run: found or not, as wished, on the timeline of the new video."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from infinitalk_cli import run_plan, run_scenes
from infinitalk_cli.errors import EnvironmentUnfitError, InputError
from infinitalk_cli.job import Job, Speaker
from infinitalk_cli.main import app
from infinitalk_cli.media.image import BUCKETS
from infinitalk_cli.media.reference import open_reference
from infinitalk_cli.media.source_time import ShortSource
from infinitalk_cli.profiles import find_profile
from infinitalk_cli.request import GenerateRequest, check_request
from infinitalk_cli.run_scenes import scene_cuts, source_time
from infinitalk_cli.wishes import Scenes, SourceWishes
from tests.media.made import noise, write_wav
from tests.media.test_scenes import scenes_of_colours


def cuts_and_notes(
    path: Path, num_frames: int, short_source: ShortSource = "hold", scenes: Scenes = "auto", by_index: bool = False
) -> tuple[tuple[int, ...], list[str]]:
    job = Job(reference=path, prompt="", speakers=(Speaker(path),), is_video=True)
    source = SourceWishes(short_source, scenes)
    request = GenerateRequest(job, path.with_name("out.mp4"), find_profile("demo"), source=source)
    reference = open_reference(path, BUCKETS["demo"], is_video=True, short_source=short_source, by_index=by_index)
    notes = list[str]()
    return scene_cuts(request, source_time(reference), num_frames, notes.append), notes


def test_cuts_are_told_and_those_of_a_loop_come_again(tmp_path: Path) -> None:
    pytest.importorskip("scenedetect", exc_type=ImportError)
    path = scenes_of_colours(tmp_path / "cuts.mp4")  # 1.5 s, 3.5 s, and over at 4.5 s
    told = ["2 scene cuts at 1.52, 3.52 s: each starts anew, 5 chunks in all"]  # 33 frames at most, 9 of them carried
    assert cuts_and_notes(path, 100) == ((38, 88), told)
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


@pytest.fixture
def dubbing(tmp_path: Path) -> list[str]:
    """Options of a video of three scenes, 4.5 s long, and of six seconds of speech."""
    video, sound = scenes_of_colours(tmp_path / "cuts.mp4"), write_wav(tmp_path / "a.wav", noise(96_000), 16_000)
    return ["--video", str(video), "--audio", str(sound)]


def chunks_of_plan(words: list[str], *more: str) -> tuple[int, str]:
    """How many chunks a dry run counts, and what it notes."""
    plan = CliRunner().invoke(app, ["generate", *words, "--profile", "demo", "--dry-run", "--json", *more])
    assert plan.exit_code == 0, plan.stderr
    return json.loads(plan.stdout)["num_chunks"], plan.stderr


def test_a_dry_run_counts_the_chunks_that_scenes_add(dubbing: list[str]) -> None:
    pytest.importorskip("scenedetect", exc_type=ImportError)
    assert chunks_of_plan(dubbing, "--scenes", "off") == (6, "")
    assert chunks_of_plan(dubbing)[0] == 7
    num_chunks, told = chunks_of_plan(dubbing, "--short-source", "loop")
    assert num_chunks == 7
    assert "3 scene cuts at 1.52, 3.52, 4.52 s: each starts anew, 7 chunks in all" in told


def test_new_starts_of_a_loop_are_counted_without_looking_at_pictures(
    dubbing: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_scenes, "can_find_cuts", lambda: False)
    assert chunks_of_plan(dubbing)[0] == 6
    num_chunks, told = chunks_of_plan(dubbing, "--short-source", "loop")
    assert num_chunks == 7
    assert "1 scene cut at 4.52 s" in told


@pytest.mark.parametrize(
    ("scenes", "can_find", "is_told"),
    [("auto", True, True), ("auto", False, False), ("on", False, True), ("off", True, False)],
)
def test_an_estimate_before_the_search_says_what_it_can_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scenes: Scenes, can_find: bool, is_told: bool
) -> None:
    monkeypatch.setattr(run_plan, "can_find_cuts", lambda: can_find)
    path = tmp_path / "clip.mp4"
    job = Job(reference=path, prompt="", speakers=(Speaker(path),), is_video=True)
    request = GenerateRequest(job, tmp_path / "out.mp4", find_profile("demo"), source=SourceWishes(scenes=scenes))
    assert ("each scene cut that the run finds may add a chunk" in run_plan.cuts_note(request)) == is_told
    assert run_plan.cuts_note(replace(request, job=replace(job, is_video=False))) == ""


def test_wishes_that_can_not_go_together_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    job = Job(reference=path, prompt="", speakers=(Speaker(path),), is_video=True)
    request = GenerateRequest(job, tmp_path / "out.mp4", find_profile("demo"), reference_by_index=True)
    with pytest.raises(InputError, match="can't go with --short-source loop"):
        check_request(replace(request, source=SourceWishes("loop")))
    with pytest.raises(InputError, match="can't go with --scenes on"):
        check_request(replace(request, source=SourceWishes(scenes="on")))
