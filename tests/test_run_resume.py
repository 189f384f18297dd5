"""Going on with a run that ended early: the video is the one that a run without a break would have made."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from infinitalk_cli import generate, runner
from infinitalk_cli.errors import InputError
from infinitalk_cli.main import app
from infinitalk_cli.media.drift import Drift
from infinitalk_cli.media.part_folder import PartFolder
from infinitalk_cli.media.segments import Picture
from infinitalk_cli.media.writer import VideoWriter
from infinitalk_cli.run_resume import Resumed, begin_or_resume, quick_mark, save_carried
from infinitalk_cli.sampling.stream import Carried, Chunk, generate_chunks
from tests.media.made import noise, write_wav

PORTRAIT = Path(__file__).parent.parent / "examples" / "media" / "portrait.jpg"
RATE = 16_000
JOB = {"seed": "42", "profile.num_steps": "4"}
QUICK = {"--frames": 17, "--motion-frames": 5, "--steps": 1, "--audio-guidance": 1, "--text-guidance": 1}
OPTIONS = ["--profile", "demo", *(str(part) for option in QUICK.items() for part in option), "--resolution", "64x64"]


@pytest.fixture
def speech(tmp_path: Path) -> Path:
    """A second and a half: 38 frames, which `OPTIONS` makes in 3 chunks."""
    return write_wav(tmp_path / "speech.wav", noise(3 * RATE // 2), RATE)


def arguments(speech: Path, output: Path, *more: str) -> list[str]:
    return ["generate", "--image", str(PORTRAIT), "--audio", str(speech), "-o", str(output), *OPTIONS, *more]


def talk(speech: Path, output: Path, *more: str) -> Result:
    return CliRunner().invoke(app, arguments(speech, output, *more))


def frames_of(path: Path) -> list[bytes]:
    with av.open(str(path)) as file:
        return [frame.to_ndarray(format="rgb24").tobytes() for frame in file.decode(video=0)]


def assert_finished_from_python(speech: Path, output: Path) -> None:
    """The same job, called with `resume`, gives what was made; after the loss of its record, what the mp4 shows."""
    told: list[str] = []
    asked: dict[str, Any] = {option[2:].replace("-", "_"): value for option, value in QUICK.items()}
    job = {"image": str(PORTRAIT), "audio": str(speech)}
    asked |= {"profile": "demo", "resolution": "64x64", "output": output, "resume": True, "on_note": told.append}
    found = generate(job, **asked)
    assert told == [f"{output} is there already, made by the same job: nothing is left to do"]
    assert (found.skipped, found.output, found.record) == (True, output, output.with_suffix(".json"))
    assert (found.width, found.num_frames, found.num_chunks) == (64, 38, 1)  # made by the run that went on
    assert found.elapsed_s > 0
    assert found.drift["num_seams"] == 2
    with pytest.raises(InputError, match="no begun run of it to go on with"):
        generate(job, **asked, seed=7)
    kept = output.with_suffix(".json").rename(output.with_suffix(".kept"))
    bare = generate(job, **asked)
    assert (bare.skipped, bare.width, bare.height, bare.num_frames, bare.record) == (True, 64, 64, 38, None)
    kept.rename(output.with_suffix(".json"))


def stop_after(num_chunks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the next run end with Ctrl-C when so many chunks are done."""

    def stopping(*inputs: Any, **options: Any) -> Iterator[Chunk]:
        for number, chunk in enumerate(generate_chunks(*inputs, **options), start=1):
            yield chunk
            if number == num_chunks:
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(runner, "generate_chunks", stopping)


def test_a_stopped_run_goes_on_and_gives_the_same_video(
    tmp_path: Path, speech: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, output = tmp_path / "whole.mp4", tmp_path / "out" / "talk.mp4"
    assert talk(speech, whole).exit_code == 0
    with monkeypatch.context() as patch:
        stop_after(2, patch)
        stopped = talk(speech, output)
    assert stopped.exit_code == 130
    assert str(output.with_name("talk.part.mp4")) in stopped.stderr
    assert "--resume" in stopped.stderr
    assert len(frames_of(output.with_name("talk.part.mp4"))) == 12 + 12

    refused = talk(speech, output)
    assert refused.exit_code == 2
    assert "--resume goes on" in refused.stderr
    other = talk(speech, output, "--resume", "--seed", "7")
    assert other.exit_code == 2
    assert "--seed: 42 then, 7 now" in other.stderr

    resumed = talk(speech, output, "--resume")
    assert resumed.exit_code == 0
    assert "going on behind the first 2 chunks, 0.96 s" in resumed.stderr
    assert frames_of(output) == frames_of(whole)
    assert output.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in output.parent.iterdir()) == ["talk.json", "talk.mp4"]
    finished = talk(speech, output, "--resume")
    assert (finished.exit_code, finished.stdout) == (0, f"{output}\n")
    assert "made by the same job: nothing is left to do" in finished.stderr
    of_another = talk(speech, output, "--resume", "--seed", "7")
    assert of_another.exit_code == 2
    assert "talk.mp4 is already there, and no begun run of it to go on with" in of_another.stderr
    assert output.read_bytes() == whole.read_bytes()
    assert_finished_from_python(speech, output)
    drift = [json.loads(path.with_suffix(".json").read_text())["chunks"] for path in (whole, output)]
    assert drift[0] == drift[1]
    assert [chunk["start"] for chunk in drift[0]] == [0, 12, 24]


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["single.json", "--cross-fade", "--reanchor", "2"],
        ["single.json", "--teacache", "--steps", "8"],
        ["single.json", "--engine", "multitalk", "--close-mouth-in-pauses"],
        ["two_shots.json", "--short-source", "loop", "--output-audio", "source"],
        ["conversation.json", "--color-strength", "0.5"],
    ],
    ids=lambda words: f"{words[0]} {words[1]}",
)
def test_every_kind_of_run_goes_on_as_if_it_had_not_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    whole, output = tmp_path / "whole.mp4", tmp_path / "talk.mp4"
    job, *wishes = words
    command = ["generate", str(PORTRAIT.parent.parent / job), *OPTIONS, *wishes, "--max-seconds", "2", "--resume", "-o"]
    assert CliRunner().invoke(app, [*command, str(whole)]).exit_code == 0
    for num_chunks in (1, 2):
        with monkeypatch.context() as patch:
            stop_after(num_chunks, patch)
            assert CliRunner().invoke(app, [*command, str(output)]).exit_code == 130
    assert CliRunner().invoke(app, [*command, str(output)]).exit_code == 0
    assert output.read_bytes() == whole.read_bytes()


def test_a_changed_recording_is_another_job(tmp_path: Path, speech: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "out" / "talk.mp4"
    with monkeypatch.context() as patch:
        stop_after(1, patch)
        assert talk(speech, output).exit_code == 130
    write_wav(speech, noise(3 * RATE // 2)[::-1], RATE)
    os.utime(speech, (0, 0))  # another time than that of the run, which is told by the second
    refused = talk(speech, output, "--resume")
    assert refused.exit_code == 2
    assert re.search(r"sound of speaker 1: speech\.wav .* 48,044 bytes", refused.stderr)
    assert not re.search("[0-9a-f]{12}", refused.stderr)  # no digest
    assert len(frames_of(output.with_name("talk.part") / "0001.mp4")) == 12


def test_resume_without_an_earlier_run_just_runs(tmp_path: Path, speech: Path) -> None:
    output = tmp_path / "talk.mp4"
    begun = talk(speech, output, "--resume", "--max-seconds", "0.4")
    assert begun.exit_code == 0
    assert "begins anew" in begun.stderr
    assert len(frames_of(output)) == 10


def carried(num_done: int) -> Carried:
    return Carried(num_done, torch.Generator().manual_seed(num_done).get_state(), torch.full((1, 3, 5, 8, 8), 0.1))


def with_pieces(folder: PartFolder, num_pieces: int, num_carried: int) -> None:
    """Pieces of 5 frames each, and the state behind some of them."""
    folder.begin(JOB)
    writer = VideoWriter(folder, Picture(16, 16))
    drift, picture = Drift(), torch.zeros(1, 3, 1, 16, 16)
    for number in range(1, num_pieces + 1):
        writer.write(np.zeros((5, 16, 16, 3), np.uint8))
        if number <= num_carried:
            drift = drift.after(torch.zeros(1, 3, 5, 16, 16), picture, writer.num_frames - 5, continues=number > 1)
            save_carried(folder, carried(number), writer.num_frames, drift)


def test_a_piece_whose_state_was_not_kept_is_made_again(tmp_path: Path) -> None:
    with PartFolder(tmp_path / "a.mp4") as folder:
        with_pieces(folder, num_pieces=3, num_carried=2)
        begun = begin_or_resume(folder, JOB, resume=True, overwrite=False)
        assert begun.num_frames == 10
        assert [chunk.start for chunk in begun.drift.chunks] == [0, 5]
        assert begun.drift.last is not None
        assert begun.carried is not None
        assert begun.carried.num_done == 2
        assert begun.carried.color_reference is None
        expected = carried(2)
        assert expected.motion is not None
        assert begun.carried.motion is not None
        assert torch.equal(begun.carried.motion, expected.motion)
        assert torch.equal(begun.carried.noise_state, expected.noise_state)
        assert len(folder.segments()) == 2


def test_a_run_killed_between_its_first_piece_and_its_state_begins_anew(tmp_path: Path) -> None:
    with PartFolder(tmp_path / "a.mp4") as folder:
        with_pieces(folder, num_pieces=1, num_carried=0)
        begun = begin_or_resume(folder, JOB, resume=True, overwrite=False)
        assert begun == Resumed()
        assert "made again" in begun.note
        assert folder.segments() == []


def test_overwrite_without_resume_drops_the_earlier_pieces(tmp_path: Path) -> None:
    with PartFolder(tmp_path / "a.mp4") as folder:
        with_pieces(folder, num_pieces=2, num_carried=2)
        assert begin_or_resume(folder, {"seed": "43"}, resume=False, overwrite=True) == Resumed()
        assert folder.segments() == []
        assert folder.job == {"seed": "43"}


@pytest.mark.parametrize("content", [b"", b"junk", (2**62).to_bytes(8, "little") + b"{}"])
def test_a_damaged_state_is_said_and_no_piece_is_lost(tmp_path: Path, content: bytes) -> None:
    with PartFolder(tmp_path / "a.mp4") as folder:
        with_pieces(folder, num_pieces=2, num_carried=2)
        folder.carried_path.write_bytes(content)
        with pytest.raises(InputError, match="damaged"):
            begin_or_resume(folder, JOB, resume=True, overwrite=False)
        assert len(folder.segments()) == 2


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_pieces_of_an_unknown_job_are_not_dropped_unasked(tmp_path: Path, content: str | None) -> None:
    with PartFolder(tmp_path / "a.mp4") as folder:
        with_pieces(folder, num_pieces=2, num_carried=2)
        (folder.path / "job.json").unlink()
        if content is not None:
            (folder.path / "job.json").write_text(content)
        for resume in (True, False):
            with pytest.raises(InputError, match="2 finished pieces"):
                begin_or_resume(folder, JOB, resume=resume, overwrite=False)
        assert len(folder.segments()) == 2


def test_a_video_that_another_run_finished_meanwhile_is_noticed_before_the_work(
    tmp_path: Path, speech: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "talk.mp4"
    monkeypatch.setattr(runner, "encode_prompts", lambda *_, **__: pytest.fail("too late"))  # pyright: ignore[reportUnknownLambdaType]
    find = runner.find_weights

    def finish_first(request: Any) -> Any:
        output.write_bytes(b"theirs")
        return find(request)

    monkeypatch.setattr(runner, "find_weights", finish_first)
    refused = talk(speech, output)
    assert refused.exit_code == 2
    assert "meanwhile" in refused.stderr
    assert output.read_bytes() == b"theirs"


def test_the_difference_of_two_jobs_is_named(tmp_path: Path) -> None:
    with PartFolder(tmp_path / "a.mp4") as folder:
        with_pieces(folder, num_pieces=1, num_carried=1)
        with pytest.raises(InputError, match="--steps: 4 then, 8 now"):
            begin_or_resume(folder, {**JOB, "profile.num_steps": "8"}, resume=True, overwrite=True)


def test_a_quick_mark_notices_other_weights(tmp_path: Path) -> None:
    path, marks = tmp_path / "a.safetensors", set[str]()
    for content in (b"a" * 3_000_000, b"b" + b"a" * 2_999_999, b"a" * 2_999_999 + b"b", b"a" * 3_000_001):
        path.write_bytes(content)
        marks.add(quick_mark(path))
    assert len(marks) == 4


NUM_KILLS = 25


def begin(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def line_of(words: str, came: list[tuple[str, float]]) -> int:
    """The number, from 1, of the line of progress that has these words."""
    return next(number for number, (line, _) in enumerate(came, start=1) if words in line)


def is_killed(command: list[str], after_lines: int, wait_s: float) -> bool:
    """Run and kill -9 so long after so many lines of progress; False if it was done before."""
    with begin(command) as run:
        assert run.stderr
        told = list(islice(run.stderr, after_lines))
        try:
            run.wait(wait_s)
        except subprocess.TimeoutExpired:
            run.kill()
    assert run.returncode in (0, -signal.SIGKILL), told
    return run.returncode != 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(sys.platform == "win32", reason="the killed child is found by its exit code")
def test_a_run_killed_at_any_moment_goes_on_and_gives_the_same_frames(tmp_path: Path) -> None:
    """Each kill comes at a random part of a random stage; most going on are killed again before the video is done."""
    sound = write_wav(tmp_path / "long.wav", noise(77 * RATE // 25), RATE)
    whole, output, rng = tmp_path / "whole.mp4", tmp_path / "killed.mp4", random.Random(0)
    command = [sys.executable, "-m", "infinitalk_cli", *arguments(sound, output, "--resume", "--resolution", "64x64")]
    with begin([str(whole) if part == str(output) else part for part in command]) as run:
        assert run.stderr
        came_s = [(line, time.monotonic()) for line in run.stderr]
    frames = frames_of(whole)
    assert len(frames) == 77
    # Kills follow the lines from the reading of the prompt, when the job's folder is there, to the sixth chunk's.
    first, last = (line_of(words, came_s) for words in ("encoding the prompt", "chunk 6/6"))

    num_killed = 0
    while num_killed < NUM_KILLS:
        while not output.exists():  # it may have been killed when all was done but the end
            stage = rng.randint(first, last)
            lasts_s = came_s[stage][1] - came_s[stage - 1][1]
            num_killed += is_killed(command, stage, rng.uniform(0, lasts_s))
        assert frames_of(output) == frames
        output.unlink()
        output.with_suffix(".json").unlink(missing_ok=True)
        shutil.rmtree(output.with_suffix(".part"), ignore_errors=True)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["long.wav", "whole.json", "whole.mp4"]
