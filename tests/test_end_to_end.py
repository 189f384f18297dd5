"""`talk generate` from the command line to a playable mp4, with the demo weights on a CPU."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from infinitalk_cli import runner
from infinitalk_cli.main import app
from infinitalk_cli.sampling.stream import Chunk, generate_chunks
from tests.media.made import lag, noise, read_sound, write_wav

EXAMPLES = Path(__file__).parent.parent / "examples"
PORTRAIT = EXAMPLES / "media" / "portrait.jpg"
RATE = 44_100
SPEECH = noise(RATE * 9 // 10, 2)
"""0.9 s of stereo noise."""

SLOW = pytest.mark.slow
"""For what takes the way of another test, but for a detail: a run of its own each."""

FAST = [
    "--profile",
    "demo",
    "--frames",
    "17",
    "--motion-frames",
    "5",
    "--steps",
    "1",
    "--audio-guidance",
    "1",
    "--text-guidance",
    "1",
    "--resolution",
    "64x64",
]


@dataclass(frozen=True)
class Made:
    """A run of `PORTRAIT` and `SPEECH`. `scratch`: the temporary folder that it had for itself."""

    result: Result
    output: Path
    scratch: Path


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`SPEECH` as a file."""
    return write_wav(tmp_path_factory.mktemp("speech") / "speech.wav", SPEECH, RATE)


def talk(*arguments: str | Path) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(app, ["generate", *map(str, arguments)])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, speech: Path) -> Made:
    """The plainest run, for all who only look at it."""
    scratch, output = tmp_path_factory.mktemp("scratch"), tmp_path_factory.mktemp("made") / "new folder" / "talk.mp4"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(scratch))
        return Made(talk("--image", PORTRAIT, "--audio", speech, "-o", output, *FAST), output, scratch)


def streams(path: Path) -> dict[str, Any]:
    """What an mp4 holds."""
    with av.open(str(path)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        return {
            "video": video.codec_context.name,
            "audio": audio.codec_context.name,
            "fps": video.average_rate,
            "pix_fmt": video.codec_context.pix_fmt,
            "frames": sum(1 for _ in container.decode(video)),
        }


def test_a_portrait_and_speech_become_an_mp4_with_the_original_sound(made: Made) -> None:
    output = made.output
    assert made.result.exit_code == 0, made.result.stderr
    assert made.result.stdout.strip() == str(output)
    assert streams(output) == {
        "video": "h264",
        "audio": "aac",
        "fps": Fraction(25),
        "pix_fmt": "yuv420p",
        "frames": round(0.9 * 25),
    }
    assert abs(lag(read_sound(output)[:, 0], SPEECH[:, 0], at=RATE // 4, length=RATE // 4)) < RATE / 1000
    assert sorted(output.parent.iterdir()) == [output.with_suffix(".json"), output]


def test_a_run_leaves_nothing_in_the_temporary_folder(made: Made) -> None:
    left = [path.name for path in made.scratch.iterdir()]
    assert [name for name in left if not name.startswith("torchinductor")] == []  # torch makes that when it is imported


def test_a_job_file_with_two_speakers_gives_json(tmp_path: Path, speech: Path) -> None:
    job = {
        "prompt": "Two people talk.",
        "cond_image": str(EXAMPLES / "media" / "two_people.jpg"),
        "cond_audio": {"person1": str(speech), "person2": "None"},
        "audio_type": "para",
    }
    path, output = tmp_path / "job.json", tmp_path / "two.mp4"
    path.write_text(json.dumps(job))
    result = talk(path, "-o", output, "--json", *FAST)

    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)
    assert (record["output"], record["num_frames"], record["fps"]) == (str(output), 22, 25)
    assert streams(output)["frames"] == 22


def packets(path: Path) -> bytes:
    """The encoded pictures of an mp4."""
    with av.open(str(path)) as container:
        return b"".join(bytes(packet) for packet in container.demux(video=0))


@pytest.mark.parametrize(("seed", "same"), [("8", False), pytest.param("42", True, marks=SLOW)])
def test_the_same_seed_gives_the_same_video_and_another_seed_another(
    tmp_path: Path, speech: Path, made: Made, seed: str, same: bool
) -> None:
    output = tmp_path / "other.mp4"
    result = talk("--image", PORTRAIT, "--audio", speech, "-o", output, "--seed", seed, *FAST)
    assert result.exit_code == 0, result.stderr
    assert (packets(output) == packets(made.output)) is same


def test_colours_that_stray_are_told_and_a_record_without_a_place_too(
    tmp_path: Path, speech: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def brightening(*inputs: Any, **options: Any) -> Iterator[Chunk]:
        for chunk in generate_chunks(*inputs, **options):
            yield replace(chunk, frames=chunk.frames * (1 - 0.4 * chunk.index) + 0.4 * chunk.index)

    monkeypatch.setattr(runner, "generate_chunks", brightening)
    taken = [tmp_path / "talk.json", tmp_path / "talk.mp4.json"]
    for path in taken:
        path.write_text("{}")
    result = talk("--image", PORTRAIT, "--audio", speech, "-o", tmp_path / "talk.mp4", *FAST)
    assert result.exit_code == 0, result.stderr
    assert "note: at 0.48 s the colours are" in result.stderr
    assert "record could not be written: talk.json and talk.mp4.json are other files" in result.stderr
    assert [path.read_text() for path in taken] == ["{}", "{}"]


def test_a_fifth_of_a_second_of_sound_gives_five_frames(tmp_path: Path) -> None:
    sound, output = tmp_path / "short.wav", tmp_path / "short.mp4"
    write_wav(sound, noise(RATE // 5), RATE)
    result = talk("--image", PORTRAIT, "--audio", sound, "-o", output, *FAST)
    assert result.exit_code == 0, result.stderr
    assert streams(output)["frames"] == 5


def test_silence_is_allowed_and_said(tmp_path: Path) -> None:
    sound, output = tmp_path / "silence.wav", tmp_path / "silence.mp4"
    write_wav(sound, np.zeros((RATE // 2, 1), np.float32), RATE)
    result = talk("--image", PORTRAIT, "--audio", sound, "-o", output, *FAST)
    assert result.exit_code == 0, result.stderr
    assert "silent" in result.stderr
    assert output.is_file()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("picture.png", b"not a picture", "not a picture"),
        ("empty.jpg", b"", "empty"),
    ],
)
def test_a_file_that_is_no_picture_is_refused_and_nothing_is_written(
    tmp_path: Path, speech: Path, name: str, content: bytes, words: str
) -> None:
    picture, output = tmp_path / name, tmp_path / "out.mp4"
    picture.write_bytes(content)
    result = talk("--image", picture, "--audio", speech, "-o", output, *FAST)
    assert result.exit_code == 2
    assert words in result.stderr
    assert str(picture) in result.stderr
    assert not output.exists()


def test_a_box_outside_the_picture_is_refused_before_any_network_is_loaded(
    tmp_path: Path, speech: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "find_weights", lambda request: pytest.fail("too late"))  # pyright: ignore[reportUnknownLambdaType]
    boxes = ["--box", "0,0,100,100", "--box", "100,100,5000,200"]
    output = tmp_path / "out.mp4"
    result = talk("--image", PORTRAIT, "--audio", speech, "--audio", speech, *boxes, "-o", output, *FAST)
    assert result.exit_code == 2
    assert "speaker 2" in result.stderr
    assert not output.exists()


def test_a_lora_that_can_t_be_read_is_refused_before_any_network_is_loaded(
    tmp_path: Path, speech: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "encode_prompts", lambda *_: pytest.fail("too late"))  # pyright: ignore[reportUnknownLambdaType]
    lora, output = tmp_path / "junk.safetensors", tmp_path / "out.mp4"
    lora.write_bytes(b"not a LoRA")
    result = talk("--image", PORTRAIT, "--audio", speech, "--lora", lora, "-o", output, *FAST)
    assert result.exit_code == 4, result.stderr
    assert str(lora) in result.stderr


def test_an_output_that_exists_is_kept_when_the_job_fails(tmp_path: Path) -> None:
    output, broken = tmp_path / "old.mp4", tmp_path / "broken.wav"
    output.write_bytes(b"precious")
    broken.write_bytes(b"RIFF....")
    result = talk("--image", PORTRAIT, "--audio", broken, "-o", output, "--overwrite", *FAST)
    assert result.exit_code == 2
    assert output.read_bytes() == b"precious"
    assert sorted(tmp_path.iterdir()) == [broken, output]


def test_a_gpu_that_fails_ends_with_exit_code_3_and_a_way_on(
    tmp_path: Path, speech: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> Iterator[Chunk]:
        raise RuntimeError("CUDA error: GPU is lost\nCUDA kernel errors might be asynchronously reported")
        yield

    monkeypatch.setattr(runner, "generate_chunks", fail)
    result = talk("--image", PORTRAIT, "--audio", speech, "-o", tmp_path / "out.mp4", *FAST)
    assert result.exit_code == 3
    assert "GPU is lost" in result.stderr
    assert "asynchronously" not in result.stderr
    assert "nothing was finished" in result.stderr
    assert "talk doctor" in result.stderr


def test_running_out_of_gpu_memory_ends_with_exit_code_5(
    tmp_path: Path, speech: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> Iterator[Chunk]:
        raise runner.torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore lines")
        yield

    monkeypatch.setattr(runner, "generate_chunks", fail)
    output = tmp_path / "out.mp4"
    result = talk("--image", PORTRAIT, "--audio", speech, "-o", output, *FAST)
    assert result.exit_code == 5
    assert "2.00 GiB" in result.stderr
    assert "more lines" not in result.stderr
    assert list(tmp_path.iterdir()) == []


@contextmanager
def run_of_20_s(folder: Path) -> Generator[tuple[subprocess.Popen[str], Path]]:
    """A run in a child that has made two chunks; and its output."""
    sound, output = folder / "long.wav", folder / "long.mp4"
    write_wav(sound, noise(RATE * 20), RATE)
    # A shell that runs the tests in the background makes its children ignore SIGINT; undo that.
    program = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    program += "from infinitalk_cli.main import app; app()"
    command = [sys.executable, "-u", "-c", program, "generate", "--image", PORTRAIT, "--audio", sound, "-o", output]
    with subprocess.Popen([*map(str, command), *FAST], stderr=subprocess.PIPE, text=True) as run:
        assert run.stderr is not None
        assert any("chunk 3/" in line for line in run.stderr)
        yield run, output


def assert_whole_chunks(output: Path) -> None:
    num_frames = streams(output.with_name("long.part.mp4"))["frames"]
    assert 24 <= num_frames < 500
    assert num_frames % 12 == 0
    assert not output.exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="a child can't be told to stop there")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_run_told_to_stop_keeps_the_chunks_done(tmp_path: Path, name: str) -> None:
    with run_of_20_s(tmp_path) as (run, output):
        assert run.stderr is not None
        run.send_signal(getattr(signal, name))
        rest = run.stderr.read()
    assert run.returncode == 130, rest
    assert str(output.with_name("long.part.mp4")) in rest
    assert "--resume" in rest
    assert_whole_chunks(output)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="a child can't be told to stop there")
def test_a_closed_terminal_does_not_lose_the_chunks_done(tmp_path: Path) -> None:
    with run_of_20_s(tmp_path) as (run, output):
        assert run.stderr is not None
        run.stderr.close()
        run.send_signal(signal.SIGHUP)
    assert run.returncode == 130
    assert_whole_chunks(output)
