"""Many jobs in one command: which there are, what their videos are called, what happens when one fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from infinitalk_cli import errors, run_batch
from infinitalk_cli.job_list import fill_name
from infinitalk_cli.main import app
from infinitalk_cli.run_batch import WarmNetworks
from tests.stand_in import Engine, generate
from tests.test_end_to_end import FAST, PORTRAIT, RATE, noise, write_wav

JOB = {"image": "face.png", "audio": "a.wav"}


def lines(*jobs: object) -> str:
    return "\n\n".join(job if isinstance(job, str) else json.dumps(job) for job in jobs)


def test_files_patterns_and_lists_are_made_in_order(desk: Path, engine: Engine) -> None:
    (desk / "jobs").mkdir()
    for name in ("b", "a"):
        (desk / "jobs" / f"{name}.json").write_text(json.dumps({"image": "face.png", "audio": "../a.wav"}))
    (desk / "more.jsonl").write_text(lines(JOB, JOB))
    (desk / "list.json").write_text(json.dumps([{**JOB, "prompt": "Listed."}]))
    result = generate("job.json", "jobs/*.json", "more.jsonl", "list.json")
    assert result.exit_code == 0, result.stderr
    assert "next:" not in result.stderr  # six times the same
    names = ["job.mp4", "a.mp4", "b.mp4", "more-1.mp4", "more-2.mp4", "list-1.mp4"]
    assert result.stdout.split() == names
    assert engine.requests[-1].job.prompt == "Listed."


def test_jobs_come_from_stdin_and_answers_are_objects(desk: Path, engine: Engine) -> None:
    result = CliRunner().invoke(app, ["generate", "-", "--json", "--profile", "demo", "-q"], input=lines(JOB, "{", JOB))
    assert result.exit_code == 8
    told: list[dict[str, Any]] = [json.loads(line) for line in result.stdout.splitlines()]
    assert [each.get("job", each.get("output")) for each in told] == ["stdin line 3", "job-1.mp4", "job-3.mp4"]
    assert told[0]["exit_code"] == 2


def test_names_of_videos_are_filled_in(desk: Path, engine: Engine) -> None:
    (desk / "two.jsonl").write_text(lines(JOB, JOB))
    (desk / "empty.json").write_text("[]")
    result = generate("two.jsonl", "-o", "out/{index:02}-{stem}-{seed}-{profile}.mp4", "--seed", "7", "-q")
    assert result.stdout.split() == ["out/01-two-1-7-demo.mp4", "out/02-two-2-7-demo.mp4"]
    assert fill_name("{{a}}", {}) == "{a}"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["job.json", "two.jsonl", "-o", "same.mp4"], "job.json, two.jsonl line 1, two.jsonl line 3 would all become"),
        (["two.jsonl", "-o", "{name}.mp4"], "no such field: {name}"),
        (["two.jsonl", "-o", "{stem.__class__}.mp4"], "no such field: {stem.__class__}"),
        (["two.jsonl", "-o", "{stem"], "can't be filled in"),
        (["two.jsonl", "-o", "{seed:%}.mp4", "--box", "1,2,3,4"], "--box: the job file two.jsonl says that already"),
        (["nothing-*.json", "job.json"], "no file has a name like 'nothing-*.json'"),
        (["empty.jsonl"], "empty.jsonl holds no job\nhint: one JSON object in a line"),
        (["empty.json"], 'empty.json holds no job\nhint: a list of jobs: [{"prompt"'),
        (["face.png", "a.wav"], "pictures and sounds are named by options"),
    ],
)
def test_a_list_that_can_t_be_meant_is_refused(desk: Path, engine: Engine, arguments: list[str], told: str) -> None:
    (desk / "two.jsonl").write_text(lines(JOB, JOB))
    (desk / "empty.json").write_text("[]")
    (desk / "empty.jsonl").write_text("\n\n")
    result = generate(*arguments)
    assert (result.exit_code, engine.requests) == (2, [])
    assert told in result.stderr


def test_a_failing_job_does_not_stop_the_others_and_is_told_again(desk: Path, engine: Engine) -> None:
    (desk / "jobs.jsonl").write_text(lines({**JOB, "image": "gone.png"}, "[1]", JOB))
    result = generate("jobs.jsonl", "gone.json", "-q")
    assert (result.exit_code, result.stdout.split()) == (8, ["jobs-3.mp4"])
    table = result.stderr[result.stderr.index("3 of 4 jobs failed") :]
    assert "jobs.jsonl line 1: exit 2, image: no such file: 'gone.png'" in table
    assert "gone.json: exit 2, no such job file" in table


@pytest.mark.parametrize(
    ("jobs", "hint"),
    [
        ([{**JOB, "image": "gone.png"}, "[1]"], "no job can be made as it stands: mend what is named above, then give"),
        (
            [{**JOB, "image": "gone.png"}, JOB],
            "mend what is named above first; then the same command with --skip-exist",
        ),
    ],
)
def test_unusable_jobs_are_to_be_mended(desk: Path, engine: Engine, jobs: list[object], hint: str) -> None:
    (desk / "jobs.jsonl").write_text(lines(*jobs))
    result = generate("jobs.jsonl", "-q")
    assert result.exit_code == 8
    assert f"hint: {hint}" in result.stderr
    assert ("--skip-existing" in result.stderr) == (JOB in jobs)


def test_media_of_every_job_are_looked_at_before_the_first_one_is_made(desk: Path, engine: Engine) -> None:
    Path("broken.wav").write_bytes(b"RIFF....")
    (desk / "jobs.jsonl").write_text(lines(JOB, {**JOB, "audio": "broken.wav"}))
    result = generate("jobs.jsonl")
    assert (result.exit_code, result.stdout.split()) == (8, ["jobs-1.mp4"])
    assert result.stderr.index("broken.wav cannot be read") < result.stderr.index("job 1 of 1")


@pytest.mark.parametrize("words", [["job.json"], ["--image", "face.png", "--audio", "a.wav"]])
def test_a_video_alone_is_named_by_the_same_fields(desk: Path, engine: Engine, words: list[str]) -> None:
    before = set(desk.iterdir())
    for template, told in (("{nope}.mp4", "no such field: {nope}"), ("{stem.mp4", "can't be filled in")):
        refused = generate(*words, "-o", template)
        assert (refused.exit_code, engine.requests) == (2, [])
        assert told in refused.stderr
    assert set(desk.iterdir()) == before
    made = generate(*words, "-o", "{{a}}-{stem}-{index}-{seed}-{profile}.mp4", "--seed", "-1", "-q")
    stem, seed = ("job" if words == ["job.json"] else "face"), engine.requests[0].seed
    assert (made.exit_code, made.stdout.strip()) == (0, f"{{a}}-{stem}-1-{seed}-demo.mp4")


@pytest.mark.parametrize("failure", [errors.OutOfGpuMemoryError("too little"), ZeroDivisionError("a bug")])
def test_a_run_that_fails_is_one_failed_job(desk: Path, engine: Engine, failure: Exception) -> None:
    engine.failure = failure
    (desk / "jobs.jsonl").write_text(lines(JOB, JOB))
    result = generate("jobs.jsonl", "-q")
    assert (result.exit_code, len(engine.requests)) == (8, 2)
    assert "2 of 2 jobs failed" in result.stderr
    assert "hint: the same command with --skip-existing --resume makes what is missing" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_dry_run_says_which_jobs_would_fail(desk: Path, engine: Engine) -> None:
    (desk / "jobs.jsonl").write_text(lines(JOB, {**JOB, "image": "gone.png"}))
    result = generate("jobs.jsonl", "--dry-run")
    assert (result.exit_code, engine.requests) == (8, [])
    assert "1 of 2 jobs would fail:" in result.stderr
    assert "--skip-existing" not in result.stderr


def test_a_gpu_that_fails_is_not_tried_again(desk: Path, engine: Engine) -> None:
    engine.failure = errors.GpuFailedError("the GPU failed: CUDA error: unspecified launch failure")
    (desk / "jobs.jsonl").write_text(lines(JOB, JOB, JOB))
    result = generate("jobs.jsonl", "-q")
    assert (result.exit_code, len(engine.requests)) == (8, 1)
    assert "3 of 3 jobs failed" in result.stderr
    assert result.stderr.count("not begun: the GPU had failed") == 2


def test_ctrl_c_stops_all(desk: Path, engine: Engine) -> None:
    engine.failure = errors.InterruptedRunError("stopped", hint="with --resume")
    (desk / "jobs.jsonl").write_text(lines(JOB, JOB, JOB))
    stopped = generate("jobs.jsonl")
    assert (stopped.exit_code, len(engine.requests)) == (130, 1)
    assert "error: jobs.jsonl line 1: stopped; 2 not begun" in stopped.stderr
    assert "hint: the same command with --skip-existing --resume makes what is missing" in stopped.stderr


def test_a_failure_names_its_job_once(desk: Path, engine: Engine) -> None:
    Path("broken.wav").write_bytes(b"RIFF....")
    (desk / "jobs.jsonl").write_text(lines({**JOB, "audio": "broken.wav"}, {**JOB, "audio": "gone.wav"}))
    told = generate("jobs.jsonl").stderr
    assert "error: jobs.jsonl line 1: broken.wav cannot be read" in told
    assert "error: jobs.jsonl line 3: audio: no such file" in told


def test_only_videos_of_the_same_job_are_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_wav(Path("a.wav"), noise(RATE // 5), RATE)
    job = {"image": str(PORTRAIT), "audio": "a.wav"}
    Path("jobs.jsonl").write_text(lines(job, {**job, "prompt": "Another."}))
    kept = list[WarmNetworks]()
    monkeypatch.setattr(run_batch, "WarmNetworks", lambda requests: kept.append(WarmNetworks(requests)) or kept[-1])  # pyright: ignore[reportUnknownLambdaType]
    made = CliRunner().invoke(app, ["generate", "jobs.jsonl", *FAST, "-q"])
    assert (made.exit_code, made.stdout.split()) == (0, ["jobs-1.mp4", "jobs-2.mp4"]), made.stderr
    assert kept[0].num_loads == 1  # one load for both

    before = Path("jobs-1.mp4").stat().st_mtime_ns
    Path("jobs.jsonl").write_text(lines(job, {**job, "prompt": "Changed."}))
    again = CliRunner().invoke(app, ["generate", "jobs.jsonl", *FAST, "--skip-existing"])
    assert (again.exit_code, again.stdout.split()) == (8, ["jobs-1.mp4"]), again.stderr
    assert Path("jobs-1.mp4").stat().st_mtime_ns == before
    assert "jobs-1.mp4 is there already, made by the same job" in again.stderr
    assert "jobs-2.mp4 is already there" in again.stderr
