"""`talk preview`: the picture of a job, without torch or weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from infinitalk_cli.main import app
from infinitalk_cli.preview import COLORS, TINT

MEDIA = Path(__file__).parent.parent / "examples" / "media"
TWO = ["--image", MEDIA / "two_people.jpg"]
LEFT = ["--audio", MEDIA / "speech_left.wav"]
RIGHT = ["--audio", MEDIA / "speech_right.wav"]


def preview(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["preview", *map(str, arguments)])


def test_size_crop_speech_and_chunks_are_said_and_drawn(tmp_path: Path) -> None:
    output = tmp_path / "new" / "look.png"
    result = preview(*TWO, *LEFT, *RIGHT, "--audio-type", "add", "-o", output, "--json")
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert (told["width"], told["height"], told["num_frames"]) == (768, 512, 184)
    assert told["crop_box"] == [32, 0, 992, 640]
    assert told["chunks"] == [[0.0, 3.24], [3.24, 6.12], [6.12, 7.36]]
    assert told["speech"][0][0][1] == told["speech"][1][0][0]  # one after the other
    assert "3 chunks of up to 81 frames" in result.stderr
    assert [path.name for path in output.parent.iterdir()] == ["look.png"]


def test_a_padded_picture_of_a_size_of_one_s_own_is_seen_whole(tmp_path: Path) -> None:
    result = preview(*TWO, *LEFT, "--resolution", "320x640", "--fit", "pad", "-o", tmp_path / "look.png", "--json")
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert (told["width"], told["height"]) == (320, 640)
    assert told["crop_box"] == [0, 0, 1024, 640]
    assert "all of it seen, 220 pixels of the video filled up above and as many below" in result.stderr
    refused = preview(*TWO, *LEFT, "--resolution", "320x645", "-o", tmp_path / "look.png")
    assert (refused.exit_code, "such as 320x640, not 320x645" in refused.stderr) == (2, True)
    assert preview(*TWO, *LEFT, "--resolution", "wide", "-o", tmp_path / "look.png").exit_code == 2


def test_a_speaker_s_place_is_in_their_colour_and_what_is_cut_off_is_dark(tmp_path: Path) -> None:
    white = tmp_path / "white.png"
    Image.new("RGB", (400, 100), "white").save(white)
    mask = Image.new("L", (40, 10))
    mask.paste(255, (8, 0, 16, 10))
    mask.save(tmp_path / "mask.png")
    chosen = ["--image", white, *LEFT, "--mask", tmp_path / "mask.png"]
    result = preview(*chosen, "-o", tmp_path / "look.png")
    assert result.exit_code == 0, result.stderr
    with Image.open(tmp_path / "look.png") as found:
        picture = found.convert("RGB")
    scale = (960 - 32) / 400
    inside = tuple(round(255 + (value - 255) * TINT) for value in COLORS[0])
    assert picture.getpixel((16 + round(120 * scale), 16 + round(80 * scale))) == pytest.approx(inside, abs=2)
    assert picture.getpixel((16 + round(200 * scale), 16 + round(80 * scale))) == (255, 255, 255)
    assert max(picture.getpixel((17, 16 + round(50 * scale)))) < 128  # pyright: ignore[reportArgumentType]


def test_the_stretch_that_a_job_names_is_what_is_shown(tmp_path: Path) -> None:
    job = {"image": str(MEDIA / "two_people.jpg"), "audio": str(MEDIA / "speech_left.wav"), "audio_end": 2}
    (tmp_path / "job.json").write_text(json.dumps(job))
    result = preview(tmp_path / "job.json", "-o", tmp_path / "look.png", "--json")
    assert json.loads(result.stdout)["num_frames"] == 50


def test_the_stretch_that_options_name_is_what_is_shown(tmp_path: Path) -> None:
    stretch = ["--audio-start", "2", "--audio-end", "4.5"]
    result = preview(*TWO, *LEFT, *RIGHT, "--audio-type", "add", *stretch, "-o", tmp_path / "look.png", "--json")
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert told["num_frames"] == 62
    assert told["speech"] == [[[0.0, pytest.approx(1.02, abs=0.01)]], [[pytest.approx(1.02, abs=0.01), 2.5]]]


def test_chunks_that_scenes_begin_are_shown(tmp_path: Path) -> None:
    clip = ["--video", MEDIA / "listener.mp4", "--audio", MEDIA / "speech.wav", "--short-source", "loop"]
    result = preview(*clip, "-o", tmp_path / "look.png", "--json")
    assert json.loads(result.stdout)["chunks"] == [[0.0, 3.24], [3.24, 3.36], [3.36, 4.76]]


def subtitles(path: Path, *lines: str) -> Path:
    """One cue of a second for each line, ten seconds apart."""
    cues = [f"00:00:{10 * at:02},000 --> 00:00:{10 * at + 1:02},000\n{line}\n" for at, line in enumerate(lines)]
    path.write_text("\n".join(cues))
    return path


@pytest.mark.parametrize("command", [["preview"], ["generate", "--dry-run", "--profile", "demo"]])
def test_a_turn_behind_the_end_of_its_recording_is_told_before_anything_runs(
    tmp_path: Path, command: list[str]
) -> None:
    turns = subtitles(tmp_path / "talk.srt", "Anna: One.", "Ben: Two.", "Anna: Three.")
    words = [*command, *TWO, *LEFT, "--turns", turns, "-o", tmp_path / ("a.png" if len(command) == 1 else "a.mp4")]
    result = CliRunner().invoke(app, list(map(str, words)))
    assert result.exit_code == 2, result.stderr
    assert f"{turns} line 5: a turn begins at 10.00 s, but" in result.stderr
    assert "speech_left.wav is over at 3.02 s (2 turns do)" in result.stderr
    assert sorted(tmp_path.iterdir()) == [turns]


@pytest.mark.parametrize("command", [["preview"], ["generate", "--dry-run", "--profile", "demo"]])
def test_subtitles_that_name_nobody_are_told(tmp_path: Path, command: list[str]) -> None:
    turns = subtitles(tmp_path / "talk.srt", "One.")
    words = [*command, *TWO, *LEFT, "--turns", turns, "-o", tmp_path / ("a.png" if len(command) == 1 else "a.mp4")]
    result = CliRunner().invoke(app, list(map(str, words)))
    assert result.exit_code == 0, result.stderr
    assert f"note: {turns} names nobody, so one speaker says it all" in result.stderr
    assert "'Anna: '" in result.stderr


def test_only_a_preview_is_replaced(tmp_path: Path) -> None:
    output = tmp_path / "preview.png"
    for _ in range(2):
        assert preview(*TWO, *LEFT, "-o", output).exit_code == 0
    Image.new("RGB", (8, 8)).save(output)
    holiday = output.read_bytes()
    result = preview(*TWO, *LEFT, "-o", output)
    assert (result.exit_code, output.read_bytes()) == (2, holiday)
    assert "is already there, and no preview" in result.stderr
    assert preview(*TWO, *LEFT, "-o", output, "--overwrite").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([*LEFT, "--box", "0,0,2000,100"], "the box of speaker 1"),
        ([*LEFT, *RIGHT, "--box", "0,0,300,300", "--box", "200,200,400,400"], "overlap: both hold 200, 200, 300, 300"),
        ([*LEFT, "-o", "look.jpg"], "the preview must end in .png"),
        ([*LEFT, "-o", "."], "must end in .png, but . is a folder\nhint: -o preview.png"),
        ([*LEFT, "--max-seconds", "nan"], "--max-seconds must be above 0"),
        ([*LEFT, "--frames", "80"], "80"),
    ],
)
def test_what_the_run_would_refuse_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str | Path], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = preview(*TWO, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert told in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_no_torch_is_needed() -> None:
    program = "import sys, infinitalk_cli.preview; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
