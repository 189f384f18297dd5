"""What `talk generate` refuses before anything is loaded, and the exit codes of what fails later."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from infinitalk_cli import errors
from tests.media.made import noise, write_wav
from tests.stand_in import Engine, files_of, generate, talk


def test_missing_weights_exit_4_with_files_and_command(desk: Path, engine: Engine) -> None:
    result = talk("generate", "job.json", "--profile", "default")
    assert (result.exit_code, result.stdout, engine.requests) == (4, "", [])
    assert "16 weight files are missing" in result.stderr
    assert str(Path("InfiniteTalk/single/infinitetalk.safetensors")) in result.stderr
    assert "hint: talk download --speakers 1" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["gone.json"], "no such job file: gone.json"),
        (["job.json", "--frames", "80"], "--frames must be 4n + 1 and at least 5, such as 77 or 81, not 80"),
        (["job.json", "--motion-frames", "33"], "--motion-frames must be less than --frames"),
        (["job.json", "--steps", "0"], "--steps must be at least 1"),
        (["job.json", "--steps", "many"], "--steps"),
        (["job.json", "--size", "481"], "480"),
        (["job.json", "--crf", "99"], "--crf"),
        (["job.json", "--device", "gpu"], "--device must be auto, cpu, cuda or cuda:N"),
        (["job.json", "--lora", "gone.safetensors"], "--lora: no such file: gone.safetensors"),
        (["job.json", "-o", "talk.avi"], "must end in .mp4"),
        (["job.json", "-o", "."], "the output must end in .mp4, but . is a folder: name a file in it"),
        (["job.json", "-o", ""], "the output must end in .mp4"),
        (["job.json", "-o", "new/face.png/talk.avi"], "must end in .mp4"),
        (["job.json", "--image", "face.png", "--audio", "a.wav"], "--image, --audio: the job file job.json says that"),
        (["--image", "face.png"], "error: --audio or --text is missing: the recorded speech"),
        (["face.png", "--audio", "a.wav"], "face.png is no job file: a picture, video or sound is named by an option"),
        (["face.png", "--audio", "a.wav"], "hint: talk generate --image face.png --audio a.wav\n"),
        (["face.png", "--text", "Hello."], 'hint: talk generate --image face.png --text "..."\n'),
        (["a.wav", "--image", "face.png"], "hint: talk generate --image face.png --audio a.wav\n"),
        (["clip.mp4", "--audio", "a.wav"], "hint: talk generate --video clip.mp4 --audio a.wav\n"),
        (["clip.mp4", "--audio", "clip.mp4"], "hint: talk generate --video clip.mp4 --audio speech.wav\n"),
        (["--image", "face.png", "--audio", "gone.wav"], "--audio (speaker 1): no such file: 'gone.wav'"),
        (["--image", "face.png", *(["--audio", "a.wav"] * 3)], "more than 2 speakers"),
        (["job.json", "--nonsense"], "--nonsense"),
    ],
)
def test_wrong_input_exits_2_and_writes_nothing(desk: Path, engine: Engine, arguments: list[str], told: str) -> None:
    before = files_of(desk)
    result = generate(*arguments)
    assert (result.exit_code, result.stdout, engine.requests) == (2, "", [])
    assert told in result.stderr
    assert "Traceback" not in result.stderr
    assert files_of(desk) == before


def test_wrong_options_are_told_before_missing_weights(desk: Path, engine: Engine) -> None:
    assert talk("generate", "job.json", "--frames", "80").exit_code == 2


def test_an_unknown_profile_is_named_with_the_nearest(desk: Path, engine: Engine) -> None:
    result = talk("generate", "job.json", "--profile", "dmeo")
    assert result.exit_code == 2
    assert "hint: did you mean 'demo'?" in result.stderr


def test_an_output_that_is_there_is_kept(desk: Path, engine: Engine) -> None:
    (desk / "output.mp4").write_bytes(b"precious")
    result = generate("job.json")
    assert result.exit_code == 2
    assert "output.mp4 is already there: --overwrite replaces it" in result.stderr
    assert (desk / "output.mp4").read_bytes() == b"precious"
    assert generate("job.json", "--overwrite").exit_code == 0


@pytest.mark.parametrize(
    ("options", "fate", "told"),
    [
        ([], "refused", "error: output.mp4 is already there: --overwrite replaces it"),
        (["--overwrite"], "replaced", "--overwrite would replace what is there: output.mp4"),
        (["--skip-existing"], "refused", "error: output.mp4 is already there"),
        (["-o", "part.mp4"], "refused", "part.part holds finished pieces of an earlier run: --resume goes on"),
        (["-o", "part.mp4", "--resume"], "resumed", "--resume would go on behind what is in part.part"),
        (["-o", "free.mp4"], "new", ""),
    ],
)
def test_a_dry_run_says_what_becomes_of_the_output(
    desk: Path, engine: Engine, options: list[str], fate: str, told: str
) -> None:
    Path("output.mp4").write_bytes(b"precious")
    Path("part.part").mkdir()
    Path("part.part/0001.mp4").write_bytes(b"piece")
    before = files_of(desk)
    result = generate("job.json", "--dry-run", "--json", *options)
    planned = json.loads(result.stdout)
    assert planned["output"] == fate
    assert result.exit_code == (2 if fate == "refused" else 0)
    assert f"error: {planned['refused']}" in result.stderr if fate == "refused" else planned["refused"] is None
    assert told in result.stderr
    assert files_of(desk) == before


def test_pieces_of_an_earlier_run_are_told_before_anything_is_loaded(desk: Path, engine: Engine) -> None:
    Path("output.part").mkdir()
    Path("output.part/0001.mp4").write_bytes(b"piece")
    refused = generate("job.json")
    assert (refused.exit_code, engine.requests) == (2, [])
    assert "output.part holds finished pieces of an earlier run: --resume goes on" in refused.stderr
    assert generate("job.json", "--resume").exit_code == 0


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.wav", []),
        ("face.png", []),
        ("mix.wav", ["--output-audio", "mix.wav"]),
        ("voice.wav", ["--drive-audio", "voice.wav"]),
    ],
)
def test_media_that_can_t_be_read_are_told_before_anything_is_loaded(
    desk: Path, engine: Engine, name: str, options: list[str]
) -> None:
    Path(name).write_bytes(b"neither picture nor sound")
    result = generate("job.json", *options)
    assert (result.exit_code, engine.requests) == (2, [])
    assert name in result.stderr


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "note: the lips follow voice.wav for 0.40 s: the video ends there, 0.60 s of the sound are left out"),
        (["--max-seconds", "0.7"], "0.30 s of the sound are left out"),
        (["--audio-start", "0.1", "--audio-end", "0.9"], "voice.wav for 0.30 s: the video ends there, 0.50 s of"),
        (["--max-seconds", "0.4"], ""),
        (["--output-audio", "none"], ""),
    ],
)
def test_sound_behind_the_end_of_what_moves_the_lips_is_told(
    desk: Path, engine: Engine, options: list[str], told: str
) -> None:
    write_wav(Path("voice.wav"), noise(6400), 16000)
    words = ["job.json", "--drive-audio", "voice.wav", *options]
    planned = generate(*words, "--dry-run", "--json")
    assert json.loads(planned.stdout)["num_frames"] <= 10
    for result in (planned, generate(*words)):
        assert result.exit_code == 0
        assert told in result.stderr
        assert ("left out" in result.stderr) == bool(told)


def test_speech_that_is_over_before_its_use_is_told_before_anything_is_loaded(desk: Path, engine: Engine) -> None:
    result = generate("job.json", "--audio-start", "1.5", "--dry-run")
    assert result.exit_code == 2
    assert "the speech is over at 1.00 s, before its use begins at 1.50 s" in result.stderr


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (errors.InputError("why"), 2),
        (errors.EnvironmentUnfitError("why"), 3),
        (errors.WeightsError("why"), 4),
        (errors.OutOfGpuMemoryError("why"), 5),
        (errors.DoesNotFitError("why"), 6),
        (errors.MediaError("why"), 7),
        (errors.PartialBatchError("why"), 8),
        (errors.InterruptedRunError("why"), 130),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_kind_of_error_has_its_exit_code(desk: Path, engine: Engine, failure: errors.TalkError, code: int) -> None:
    failure.hint = "what next"
    engine.failure = failure
    result = generate("job.json")
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.endswith("error: why\nhint: what next\n")


def test_ctrl_c_exits_130(desk: Path, engine: Engine) -> None:
    engine.failure = KeyboardInterrupt()
    result = generate("job.json")
    assert result.exit_code == 130
    assert result.stderr.endswith("error: stopped\n")


@pytest.mark.parametrize("debug", [False, True])
def test_an_unexpected_error_exits_1_and_says_how_to_see_more(
    desk: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch, debug: bool
) -> None:
    if debug:
        monkeypatch.setenv("TALK_DEBUG", "1")
    engine.failure = ZeroDivisionError("by zero")
    result = generate("job.json")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "error: unexpected: ZeroDivisionError: by zero\nhint: --debug shows where" in result.stderr
    assert ("Traceback" in result.stderr) == debug
