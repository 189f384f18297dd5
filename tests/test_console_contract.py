"""What holds for every command: the same options, help with examples, data on stdout alone, completion."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from infinitalk_cli.main import app

TAKES_A_WHILE = {"generate", "demo", "bench", "download", "weights convert", "weights import", "weights verify"}


def commands(command: Any, *names: str) -> Iterator[tuple[str, Any]]:
    """Every command with its name, groups left out."""
    below = getattr(command, "commands", None)
    if below is None:
        yield " ".join(names), command
    for name, found in (below or {}).items():
        yield from commands(found, *names, name)


COMMANDS = dict(commands(typer.main.get_command(app)))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_can_be_quiet_or_speak_json_or_show_tracebacks(name: str) -> None:
    spelled = {option for parameter in COMMANDS[name].params for option in parameter.opts}
    assert {"--quiet", "-q", "--json", "--debug"} <= spelled
    assert ("--progress" in spelled) == (name in TAKES_A_WHILE)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example_and_a_short_help_option(name: str) -> None:
    result = CliRunner().invoke(app, [*name.split(), "-h"])
    assert result.exit_code == 0
    assert "Example" in result.stdout
    assert f"talk {name}" in result.stdout


@pytest.mark.parametrize(
    "arguments", ["profiles ls", "profiles show demo", "weights ls", "weights path", "env", "weights rm x", "doctor"]
)
def test_stdout_is_one_json_object_or_nothing(arguments: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TALK_WEIGHTS_DIR", str(tmp_path))
    result = CliRunner().invoke(app, [*arguments.split(), "--json", "--quiet"])
    if result.exit_code in (0, 3):
        assert isinstance(json.loads(result.stdout), dict)
    else:
        assert result.stdout == ""
        assert result.stderr.startswith("error: ")


def test_generate_without_arguments_names_the_two_usual_ways() -> None:
    result = CliRunner().invoke(app, ["generate"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "talk generate --image face.png --audio speech.wav" in result.stderr
    assert "talk generate job.json" in result.stderr
    assert len(result.stderr.splitlines()) == 3


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("portrait.jpg speech.wav", "--image portrait.jpg --audio speech.wav"),
        ("speech.wav portrait.jpg", "--image portrait.jpg --audio speech.wav"),
        ("clip.mp4 speech.mp3", "--video clip.mp4 --audio speech.mp3"),
        ("face.png", "--image face.png --audio speech.wav"),
    ],
)
def test_media_in_place_of_a_job_bring_the_command_that_was_meant(
    given: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in given.split():
        Path(name).write_bytes(b"\xff\xd8\xff\xe0")
    result = CliRunner().invoke(app, ["generate", *given.split()])
    assert result.exit_code == 2
    assert f"hint: talk generate {meant}\n" in result.stderr


def test_the_shell_completes_commands_and_options() -> None:
    """The very call that the script of `talk --install-completion bash` makes."""
    program = "import sys; sys.argv[0] = 'talk'; from infinitalk_cli.__main__ import main; main()"
    environment = {**os.environ, "_TALK_COMPLETE": "complete_bash", "COMP_WORDS": "talk pro", "COMP_CWORD": "1"}
    said = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert said.stdout.split() == ["profiles"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("generate --size 1080", "Invalid value for '--size': '1080' is not one of '480', '720'."),
        ("generate --steps four", "Invalid value for '--steps': 'four' is not a valid integer."),
        ("weights rm --speakers 4x", "Invalid value for '--speakers': '4x' is not a valid integer."),
    ],
)
def test_a_wrong_value_is_named_with_what_is_taken(arguments: str, told: str) -> None:
    result = CliRunner().invoke(app, arguments.split(), env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert told in result.stderr
