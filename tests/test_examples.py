"""The commands of examples/README.md, run with the demo weights; what they are for is looked at in some."""

from __future__ import annotations

import json
import shlex
import warnings
import wave
from pathlib import Path

import av
import pytest
from typer.testing import CliRunner, Result

from infinitalk_cli import prepare
from infinitalk_cli.main import app
from tests.hardware_fixtures import hardware
from tests.kokoro_files import CONFIG, tiny_kokoro, write_voice
from tests.test_end_to_end import EXAMPLES, FAST

pytestmark = pytest.mark.slow

SHORT = [*FAST[2:], "--max-seconds", "1"]
"""Said after what an example says."""

TOLD: list[list[str]] = [
    shlex.split(line)[1:]
    for line in (EXAMPLES / "README.md").read_text(encoding="utf-8").splitlines()
    if line.startswith(("talk generate ", "talk preview "))
]


def talk(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["generate", *map(str, arguments), *FAST])


def lengths_s(path: Path) -> dict[str, float]:
    """The length of each stream."""
    with av.open(str(path)) as container:
        return {
            stream.type: float(stream.duration * stream.time_base)
            for stream in container.streams
            if stream.duration is not None and stream.time_base is not None
        }


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory that has the examples in it."""
    (tmp_path / "examples").symlink_to(EXAMPLES, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.timeout(1200)
def test_every_command_of_the_examples_makes_its_file(folder: Path) -> None:
    """But for speech from text, which has a test of its own, and for the published weights."""
    made = 0
    for words in TOLD:
        if "dialogue_from_text" in words[1] or "--preset" in words:
            continue
        result = CliRunner().invoke(app, [*words, *(SHORT if "--profile" in words else ())])
        assert result.exit_code == 0, (words, result.stderr)
        assert all((folder / line).is_file() for line in result.stdout.split())
        made += len(result.stdout.split())
    assert made >= len(TOLD) - 3
    assert (folder / "random.mp4").read_bytes() == (folder / "random_again.mp4").read_bytes()


def test_presets_of_the_examples_are_what_they_say(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "detect_hardware", lambda: hardware("rtx4090-desktop"))
    (folder / "style.safetensors").write_bytes(b"")
    passes: list[int] = []
    for words in TOLD:
        if "--preset" in words:
            result = CliRunner().invoke(app, [*words, "--json"])
            assert result.exit_code == 0, result.stderr
            passes.append(json.loads(result.stdout)["passes_per_chunk"])
    assert passes == [4, 16, 120]


def test_video_to_and_fro_without_a_sound(tmp_path: Path) -> None:
    output = tmp_path / "dub.mp4"
    wishes = ["--short-source", "ping-pong", "--output-audio", "none"]
    result = talk(EXAMPLES / "dub_video.json", "-o", output, *wishes)
    assert result.exit_code == 0, result.stderr
    assert lengths_s(output) == {"video": pytest.approx(3.0, abs=0.05)}


def test_stretch_with_closed_pauses(tmp_path: Path) -> None:
    output = tmp_path / "part.mp4"
    wishes = ["--audio-start", "1", "--audio-end", "3", "--output-loudness", "-16", "--close-mouth-in-pauses"]
    result = talk(EXAMPLES / "single.json", "-o", output, *wishes)
    assert result.exit_code == 0, result.stderr
    assert lengths_s(output) == {"video": 2.0, "audio": pytest.approx(2.0, abs=0.05)}


def test_dialogue_from_text_is_spoken_by_a_random_kokoro_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("kokoro")
    import torch

    folder = tmp_path / "weights" / "Kokoro-82M"
    folder.mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = tiny_kokoro(folder)
    torch.save({name: part.state_dict() for name, part in network.named_children()}, folder / "kokoro-v1_0.pth")
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    for seed, name in enumerate(("af_heart", "am_adam")):
        write_voice(folder / "voices" / f"{name}.pt", seed)
    monkeypatch.setenv("TALK_WEIGHTS_DIR", str(tmp_path / "weights"))
    output = tmp_path / "dialogue.mp4"
    result = talk(EXAMPLES / "dialogue_from_text.json", "-o", output, "--max-seconds", "0.6", "--pause", "0.2")
    assert result.exit_code == 0, result.stderr
    assert lengths_s(output)["video"] == pytest.approx(0.6, abs=0.05)
    with wave.open(str(tmp_path / "dialogue.s1.wav")) as first, wave.open(str(tmp_path / "dialogue.s2.wav")) as second:
        assert first.getnframes() == second.getnframes() > 24_000
