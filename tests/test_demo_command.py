"""`talk demo`: what it takes from the package, what it takes from the user, and what it speaks texts with."""

from __future__ import annotations

import subprocess
import sys
import wave
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from infinitalk_cli import demo_command, espeak
from infinitalk_cli.demo_command import DemoOptions, prepare_demo
from infinitalk_cli.demo_package import ENVIRONMENT_VARIABLE, PORTRAIT, SENTENCE, locate_demo
from infinitalk_cli.errors import EnvironmentUnfitError, InputError, MediaError, WeightsError
from infinitalk_cli.main import app
from infinitalk_cli.memory.quant import QuantizedLinear
from infinitalk_cli.networks import build_dit

SPEAKER = """#!{python}
import sys, wave
text = sys.stdin.read()
if "fail" in text:
    sys.exit("the voice is gone")
with wave.open(sys.argv[sys.argv.index("-w") + 1], "wb") as file:
    file.setparams((1, 2, 22050, 0, "NONE", ""))
    file.writeframes(bytes(2 * 220 * len(text.strip(" ."))))
"""


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory without weights, on a machine with a program that speaks, and without Kokoro."""
    program = tmp_path / "espeak-ng"
    program.write_text(SPEAKER.format(python=sys.executable))
    program.chmod(0o755)
    desk = tmp_path / "desk"
    desk.mkdir()
    monkeypatch.chdir(desk)
    monkeypatch.setenv("TALK_WEIGHTS_DIR", str(tmp_path / "no-weights"))
    monkeypatch.setattr(espeak.shutil, "which", lambda name: str(program))
    return desk


def talk_demo(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["demo", *arguments])


def test_the_package_has_a_small_portrait_and_a_sentence_of_four_seconds() -> None:
    with Image.open(PORTRAIT) as picture:
        assert picture.size == (512, 512)
    with av.open(str(SENTENCE)) as container:
        assert container.duration is not None
        assert container.duration / av.time_base == pytest.approx(4.0, abs=0.1)
    assert PORTRAIT.stat().st_size + SENTENCE.stat().st_size < 200_000


def test_without_a_word_the_packages_portrait_says_its_sentence(desk: Path) -> None:
    request = prepare_demo(DemoOptions()).request
    assert (request.job.reference, request.job.speakers[0].audio) == (PORTRAIT, SENTENCE)
    assert (request.output, request.profile.name, request.weights_dir) == (Path("talk-demo.mp4"), "demo", None)


def test_an_output_that_is_there_is_kept(desk: Path) -> None:
    (desk / "talk-demo.mp4").write_bytes(b"precious")
    result = talk_demo()
    assert result.exit_code == 2
    assert "talk-demo.mp4 is already there: --overwrite replaces it" in result.stderr
    assert (desk / "talk-demo.mp4").read_bytes() == b"precious"


@pytest.mark.parametrize("output", [".", ""])
def test_a_folder_as_output_is_refused(desk: Path, output: str) -> None:
    result = talk_demo("-o", output)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "the output must end in .mp4, but . is a folder: name a file in it, such as talk.mp4" in result.stderr


def test_a_text_is_spoken_beside_the_output(desk: Path) -> None:
    request = prepare_demo(DemoOptions(text="Good morning.", output=Path("new/a.mp4"))).request
    (speaker,) = request.job.speakers
    assert (speaker.audio, speaker.text) == (Path("new/a.wav"), None)
    assert request.job.reference == PORTRAIT
    with wave.open("new/a.wav") as sound:
        assert sound.getnframes() == 220 * len("Good morning")
    assert [path.name for path in Path("new").iterdir()] == ["a.wav"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_recording_that_is_there_is_never_replaced(desk: Path, overwrite: bool) -> None:
    asked = DemoOptions(text="Good morning.", output=Path("a.mp4"), overwrite=overwrite)
    subprocess.run([str(desk.parent / "espeak-ng"), "-w", "a.wav"], input=b"A recording of one's own.", check=True)
    recording = Path("a.wav").read_bytes()
    with pytest.raises(InputError, match=r"a\.wav is already there.*never replaced; -o names another video, or move"):
        prepare_demo(asked)
    assert Path("a.wav").read_bytes() == recording


def test_speech_of_an_earlier_demo_is_replaced_if_asked_and_unless_it_was_edited(desk: Path) -> None:
    asked = DemoOptions(text="Good morning.", output=Path("a.mp4"))
    prepare_demo(asked)
    first = Path("a.wav").read_bytes()
    with pytest.raises(InputError, match=r"a\.wav, where the spoken text is kept, is already there: --overwrite"):
        prepare_demo(asked)
    other = replace(asked, text="Good evening to all.", overwrite=True)
    prepare_demo(other)
    assert Path("a.wav").read_bytes() != first
    edited = bytearray(first)
    edited[1000] = 7
    Path("a.wav").write_bytes(edited)
    with pytest.raises(InputError, match="never replaced"):
        prepare_demo(other)
    assert Path("a.wav").read_bytes() == edited


def test_resume_goes_on_with_the_speech_of_the_same_text_and_with_no_other(desk: Path) -> None:
    asked = DemoOptions(text="Good morning.", output=Path("a.mp4"), resume=True)
    assert prepare_demo(asked).request == prepare_demo(asked).request
    spoken = Path("a.wav").read_bytes()
    with pytest.raises(InputError, match=r"a\.wav, where the spoken text is kept, is already there"):
        prepare_demo(replace(asked, text="Good evening to all."))
    assert Path("a.wav").read_bytes() == spoken


def test_the_demo_takes_the_resume_that_its_messages_name(desk: Path) -> None:
    (desk / "talk-demo.mp4").write_bytes(b"precious")
    result = talk_demo("--resume")
    assert result.exit_code == 2
    assert "no begun run of it to go on with" in result.stderr


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("A", InputError, "nothing is heard"),
        ("  ", InputError, "no words"),
        ("(s1) Hello. (s2) Hello.", InputError, "speaks for one alone"),
        ("I fail.", MediaError, "the voice is gone"),
    ],
)
def test_what_can_t_be_spoken_is_told_and_leaves_nothing(
    desk: Path, text: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        prepare_demo(DemoOptions(text=text))
    assert list(desk.iterdir()) == []


def test_nothing_to_speak_with_names_what_to_install(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(espeak.shutil, "which", lambda name: None)
    with pytest.raises(EnvironmentUnfitError, match="neither Kokoro with its voices nor espeak-ng") as caught:
        prepare_demo(DemoOptions(text="Hello."))
    for command in ("apt-get install espeak-ng", 'pip install "infinitalk-cli[tts]"', "talk download --only tts"):
        assert command in caught.value.hint


def test_without_kokoro_the_demo_profile_s_hint_names_the_command_that_espeak_speaks_for(
    desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["generate", "--image", str(PORTRAIT), "--text", "Hello."]
    hint = "or let espeak-ng speak: talk demo --image"
    refused = CliRunner().invoke(app, [*words, "--profile", "demo"])
    assert refused.exit_code in (3, 4)
    assert hint in refused.stderr
    assert hint not in CliRunner().invoke(app, [*words[:-1], "(s1) Hello. (s2) Hi.", "--profile", "demo"]).stderr
    monkeypatch.setattr(espeak.shutil, "which", lambda name: None)
    assert hint not in CliRunner().invoke(app, [*words, "--profile", "demo"]).stderr


def test_kokoro_speaks_where_it_is_there(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_command, "voice_files", lambda *_: None)
    monkeypatch.setattr(demo_command, "prepare_run", lambda options: options)
    assert prepare_demo(DemoOptions(text="Hello.")) == DemoOptions(text="Hello.", image=PORTRAIT)


def test_a_package_without_its_weights_is_to_be_installed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(tmp_path))
    with pytest.raises(WeightsError, match=r"missing in") as caught:
        locate_demo(num_speakers=1)
    assert caught.value.hint == "they come with the package: install it again"


@pytest.mark.parametrize("quant", ["fp8", "int8"])
def test_the_demos_transformer_is_rounded_on_the_way_in(quant: str) -> None:
    plain = build_dit(locate_demo(num_speakers=1), dtype=torch.float32)
    files = replace(locate_demo(num_speakers=1), round_to=quant)  # pyright: ignore[reportArgumentType]
    rounded = build_dit(files, dtype=torch.float32)
    layer, exact = rounded.get_submodule("blocks.0.ffn.0"), plain.get_submodule("blocks.0.ffn.0")
    assert isinstance(layer, QuantizedLinear)
    given = torch.from_numpy(np.random.default_rng(0).standard_normal((3, plain.config.dim), np.float32))
    error = (layer(given) - exact(given)).std() / exact(given).std()
    assert 1e-4 < float(error) < 0.05
