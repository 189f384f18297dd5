"""The commands of examples/README.md about who speaks, previews and many jobs, run with the demo weights."""

from __future__ import annotations

from pathlib import Path

import av
import pytest
from typer.testing import CliRunner, Result

from infinitalk_cli.job import read_job
from infinitalk_cli.main import app
from tests.test_end_to_end import EXAMPLES, FAST


def talk(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def num_frames(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def test_conversation_shares_one_recording_out_by_its_subtitles() -> None:
    anna, ben = read_job(EXAMPLES / "conversation.json").speakers
    assert (anna.audio, anna.name, ben.name) == (ben.audio, "Anna", "Ben")
    assert anna.turns[0].end_s <= ben.turns[0].start_s


@pytest.mark.parametrize("name", ["conversation", "one_of_two", "two_speakers"])
def test_every_example_has_a_preview(tmp_path: Path, name: str) -> None:
    output = tmp_path / "look.png"
    result = talk("preview", EXAMPLES / f"{name}.json", "-o", output)
    assert (result.exit_code, result.stdout.strip()) == (0, str(output)), result.stderr


@pytest.mark.parametrize("name", ["conversation", pytest.param("one_of_two", marks=pytest.mark.slow)])
def test_example_becomes_a_video(tmp_path: Path, name: str) -> None:
    output = tmp_path / "talk.mp4"
    result = talk("generate", EXAMPLES / f"{name}.json", "-o", output, "--max-seconds", "0.4", *FAST)
    assert result.exit_code == 0, result.stderr
    assert num_frames(output) == 10


@pytest.mark.slow
def test_lines_of_jobs_become_videos(tmp_path: Path) -> None:
    name = tmp_path / "{stem}-{seed}.mp4"
    result = talk("generate", EXAMPLES / "jobs.jsonl", "-o", name, "--max-seconds", "0.4", *FAST)
    assert result.exit_code == 0, result.stderr
    made = sorted(path.name for path in tmp_path.iterdir())
    assert made == ["jobs-1-42.json", "jobs-1-42.mp4", "jobs-2-42.json", "jobs-2-42.mp4"]
