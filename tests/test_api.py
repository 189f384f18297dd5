"""From Python: the documented examples run, keywords are the command's options, and mistakes are told as its are."""

from __future__ import annotations

import re
from dataclasses import fields
from enum import Enum
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import av
import pytest

import infinitalk_cli
from infinitalk_cli import TalkError, WarmNetworks, generate
from infinitalk_cli.api import FIELD_OF_NAME, Options, options_of
from infinitalk_cli.console_options import HIDDEN
from infinitalk_cli.errors import MediaError
from infinitalk_cli.options import GenerateOptions
from tests.stand_in import Engine
from tests.test_end_to_end import EXAMPLES

DOCUMENT = Path(__file__).parent.parent / "docs" / "python.md"
OF_THE_TERMINAL = {"input_json", "quiet", "as_json", "debug", "progress", "dry_run", "skip_existing"}
"""Options of the command that have no meaning, or another form, in Python."""


def examples() -> list[str]:
    return re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), flags=re.DOTALL)


def num_frames(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory that has the examples in it."""
    (tmp_path / "examples").symlink_to(EXAMPLES, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_documented_example_makes_a_video_and_tells_how_far_it_is(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exec(compile(examples()[0], str(DOCUMENT), "exec"), {})
    told = capsys.readouterr()
    assert num_frames(folder / "hello.mp4") == 25
    assert "video: chunk 1 of 1, step 8 of 8" in told.out
    assert all(line[-1].isalnum() for line in told.out.splitlines()[:-1])
    assert "hello.mp4 1.00 s" in told.out
    assert told.err == ""


@pytest.mark.slow
def test_the_documented_examples_load_the_networks_once_and_repeat_a_record(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names: dict[str, Any] = {}
    for example in examples():
        exec(compile(example, str(DOCUMENT), "exec"), names)
    assert names["warm"].num_loads == 1
    told = capsys.readouterr().out
    assert "no such file" in told
    assert "()" not in told
    assert names["again"].record == Path("again.json")
    assert (folder / "again.mp4").read_bytes() == (folder / "hello.mp4").read_bytes()


def test_keywords_are_the_command_s_options() -> None:
    names = {FIELD_OF_NAME.get(name, name) for name in Options.__annotations__}
    assert names == {field.name for field in fields(GenerateOptions)} - OF_THE_TERMINAL - set(HIDDEN)


def words_of(hint: Any) -> set[str]:
    """The words that a type allows: of an enumeration or of a literal, in a union or alone."""
    if isinstance(hint, type) and issubclass(hint, Enum):
        return {member.value for member in hint}
    if get_origin(hint) is Literal:
        return {word for word in get_args(hint) if isinstance(word, str)}
    return {word for part in get_args(hint) for word in words_of(part)}


def test_keywords_take_the_words_that_the_command_takes() -> None:
    keywords, options = get_type_hints(Options), get_type_hints(GenerateOptions)
    for name, hint in keywords.items():
        allowed = words_of(options[FIELD_OF_NAME.get(name, name)])
        assert not allowed or words_of(hint) == allowed, name


def test_values_may_be_paths_numbers_and_lists() -> None:
    options = options_of(
        {
            "image": "face.png",
            "audio": Path("a.wav"),
            "box": (1, 2, 30.5, 40),
            "lora": [Path("style.safetensors"), "other.safetensors:0.5"],
            "resolution": (448, 896),
            "output_loudness": -16,
            "size": 480,
            "steps": 8,
            "negative_prompt": "",
            "reanchor": None,
        }
    )
    assert (options.image, options.audio, options.box) == (Path("face.png"), ["a.wav"], ["1,2,30.5,40"])
    assert options.lora == ["style.safetensors", "other.safetensors:0.5"]
    assert (options.resolution, options.output_loudness, options.num_steps) == ("448x896", "-16", 8)
    assert options.size is not None
    assert "reanchor" not in options.given
    assert {"num_steps", "negative_prompt"} <= options.given
    two = options_of({"audio": ["a.wav", "b.wav"], "box": [(1, 2, 3, 4), "5,6,7,8"]})
    assert two.box == ["1,2,3,4", "5,6,7,8"]


@pytest.mark.usefixtures("desk")
def test_a_job_is_a_file_or_its_fields_and_options_go_over_it(engine: Engine) -> None:
    notes: list[str] = []
    made = generate("job.json", profile="demo", seed=7, prompt="Anew.", output="out.mp4", on_note=notes.append)
    assert (made.output, made.num_frames) == (Path("out.mp4"), 70)
    assert (engine.request.seed, engine.request.job.prompt) == (7, "Anew.")
    assert any("seed 7" in note for note in notes)
    assert notes[-1] == "note: from the engine"
    generate({"image": "face.png", "audio": "a.wav"}, profile="demo", output="fields.mp4")
    assert engine.requests[-1].job.reference == Path("face.png")


@pytest.mark.usefixtures("desk")
def test_networks_that_a_failure_may_have_spoilt_are_loaded_anew(engine: Engine) -> None:
    warm = WarmNetworks()
    forgotten: list[bool] = []
    warm.forget = lambda: forgotten.append(True)
    generate("job.json", profile="demo", warm=warm)
    assert not forgotten
    engine.failure = MediaError("the disk is full")
    with pytest.raises(MediaError):
        generate("job.json", profile="demo", warm=warm, overwrite=True)
    assert forgotten


@pytest.mark.usefixtures("desk")
@pytest.mark.parametrize(
    "job, options, told",
    [
        (None, {}, "nothing to make a video of"),
        ("gone.json", {}, "gone.json"),
        ("*.json", {}, "several jobs"),
        ({"image": "face.png"}, {}, "the job"),
        ({"image": "face.png", "audio": "a.wav"}, {"audio": "b.wav"}, "--audio: the job says that already"),
        ("job.json", {"text": "Hello."}, "--text: the job file job.json says that already"),
        ("job.json", {"steps": "many"}, "steps='many': Input should be a valid integer"),
        ("job.json", {"preset": "best"}, "preset='best': Input should be 'quality', 'balanced' or 'fast'"),
        ("job.json", {"gpus": 0}, "--gpus must be at least 1"),
        (None, {"image": "face.png", "audio": "a.wav", "box": 5}, "box=5: Input should be a valid string"),
        (None, {"image": "face.png", "audio": "a.wav", "box": (1, 2, 3)}, "'1,2,3'"),
        ("job.json", {"resolution": 7}, "resolution=7: Input should be a valid string"),
        ("job.json", {"output": "talk.avi"}, "must end in .mp4"),
        ("job.json", {"output": "."}, "must end in .mp4"),
    ],
)
def test_mistakes_are_told_before_anything_runs(engine: Engine, job: Any, options: dict[str, Any], told: str) -> None:
    said: dict[str, Any] = {"profile": "demo", **options}
    with pytest.raises(TalkError) as caught:
        generate(job, **said)
    assert told in caught.value.message
    assert caught.value.exit_code == 2
    assert engine.requests == []


def test_an_unknown_name_is_a_type_error_with_the_nearest() -> None:
    wrong: dict[str, Any] = {"step": 3}
    with pytest.raises(TypeError, match="no option 'step'; did you mean 'steps'"):
        generate("job.json", **wrong)


def test_the_package_has_no_other_names() -> None:
    assert set(infinitalk_cli.HOMES) | {"__version__"} == set(infinitalk_cli.__all__)
    assert all(getattr(infinitalk_cli, name) for name in infinitalk_cli.__all__)
    with pytest.raises(AttributeError, match="no attribute 'gnerate'"):
        getattr(infinitalk_cli, "gnerate")  # noqa: B009
