"""Compact files made without being asked: when, by whom, and that nothing is lost where they can't be made."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from typer.testing import CliRunner, Result

from infinitalk_cli import convert, convert_when_it_pays, runner
from infinitalk_cli.convert_when_it_pays import MARGIN_BYTES, convert_what_pays, pays
from infinitalk_cli.job import Job, Speaker
from infinitalk_cli.main import app
from infinitalk_cli.part_file import disk_error
from infinitalk_cli.profiles import find_profile
from infinitalk_cli.progress import ignore_progress
from infinitalk_cli.request import GenerateRequest
from infinitalk_cli.weights import WeightFiles, locate
from infinitalk_cli.wishes import PictureWishes
from tests.hub_server import HubServer
from tests.hub_tree import WAN, fill, use_hub
from tests.media.made import noise, write_wav
from tests.published_tree import write_published

CLIP = "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
PORTRAIT = Path(__file__).parent.parent / "examples" / "media" / "portrait.jpg"
PLENTY = 10**12
MADE = ["clip_vision_fp16.safetensors", "infinitetalk_single_bf16.safetensors", "t5_bf16.safetensors"]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a plain run for one speaker, as published."""
    return write_published(tmp_path_factory.mktemp("published"))


@pytest.fixture
def tree(published: Path, tmp_path: Path) -> Path:
    """A copy to be converted: links into the other."""
    shutil.copytree(published, tmp_path / "weights", copy_function=os.link)
    return tmp_path / "weights"


@pytest.fixture(autouse=True)
def room(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Says how much is free on the disk; plenty by itself."""
    real = shutil.disk_usage

    def set_free(num_bytes: int) -> None:
        usage: Any = lambda path: real(path)._replace(free=num_bytes)  # noqa: E731
        monkeypatch.setattr(shutil, "disk_usage", usage)

    set_free(PLENTY)
    return set_free


def found(folder: Path) -> WeightFiles:
    return locate(folder, num_speakers=1)


def compact_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("compact/*"))


def attempt(folder: Path) -> tuple[bool, list[str]]:
    """What a conversion says that it did, and its notes."""
    notes: list[str] = []
    made = convert_what_pays(folder, found(folder), num_speakers=1, on_note=notes.append, on_progress=ignore_progress)
    return made, notes


def sizes(files: WeightFiles) -> tuple[int, int]:
    """Half of base and adapter, and the text encoder, in bytes."""
    assert files.adapter is not None
    sources = sum(path.stat().st_size for path in (*files.dit_shards, files.adapter))
    return sources // 2, files.text_encoder.stat().st_size


def test_every_plain_file_pays_where_there_is_room(published: Path) -> None:
    files = found(published)
    transformer, text = sizes(files)
    assert pays(files, MARGIN_BYTES + transformer + text) == ("image", "transformer", "text")


def test_large_files_leave_the_margin_free_and_clip_always_pays(published: Path) -> None:
    files = found(published)
    transformer, text = sizes(files)
    assert pays(files, 0) == ("image",)
    assert pays(files, MARGIN_BYTES + transformer - 1) == ("image", "text")
    assert pays(files, MARGIN_BYTES + transformer + text - 1) == ("image", "transformer")


@pytest.mark.parametrize(
    ("changes", "left"),
    [
        ({"adapter": None, "quant": "fp8"}, ("image", "text")),
        ({"dit_shards": (Path("repackaged/wan2.1_i2v_480p_14B_fp16.safetensors"),)}, ("image", "text")),
        ({"text_encoder": Path("t5_fp8.safetensors"), "text_encoder_quant": "fp8"}, ("image", "transformer")),
        ({"image_encoder": Path("compact/clip_vision_fp16.safetensors")}, ("transformer", "text")),
    ],
)
def test_files_in_another_form_stay_as_they_are(
    published: Path, changes: dict[str, Any], left: tuple[str, ...]
) -> None:
    assert pays(replace(found(published), **changes), PLENTY) == left


def test_nothing_is_left_to_do_once_it_was_done(tree: Path) -> None:
    made, notes = attempt(tree)
    assert made
    assert compact_files(tree) == MADE
    assert len(notes) == 1
    assert notes[0].startswith("converting the weights once: clip_vision_fp16.safetensors, ")
    assert notes[0].endswith("--no-convert skips it")
    assert pays(found(tree), PLENTY) == ()
    assert attempt(tree) == (False, [])


def test_a_folder_for_reading_alone_is_left_in_silence(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert_when_it_pays.os, "access", lambda path, mode: False)  # pyright: ignore[reportUnknownLambdaType]
    assert attempt(tree) == (False, [])
    assert not (tree / "compact").exists()


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC])
def test_a_disk_that_takes_no_file_is_left_in_silence(tree: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(path: Path, on_wait: object) -> NoReturn:
        raise disk_error(OSError(number, os.strerror(number)), path)

    monkeypatch.setattr(convert_when_it_pays, "locked", refuse)
    assert attempt(tree) == (False, [])


def test_no_room_even_for_clip_is_silent(tree: Path, room: Callable[[int], None]) -> None:
    room(0)
    assert attempt(tree) == (False, [])
    assert compact_files(tree) == []


def test_a_damaged_source_is_a_note(tree: Path) -> None:
    clip = found(tree).image_encoder
    clip.unlink()
    clip.write_bytes(b"no weights")
    made, notes = attempt(tree)
    assert not made
    assert len(notes) == 1
    assert notes[0].startswith("note: the weights are not converted: ")
    assert clip.name in notes[0]


def request_of(tree: Path, folder: Path, *, dtype: Any = "bfloat16", convert: bool = True) -> GenerateRequest:
    """A run of half a second on these weights, computed in 16 bits as a GPU would."""
    profile = replace(
        find_profile("demo"),
        dtype=dtype,
        chunk_frames=17,
        motion_frames=5,
        num_steps=1,
        text_guidance_scale=1.0,
        audio_guidance_scale=1.0,
    )
    sound = write_wav(folder / "speech.wav", noise(22_050, 2), 44_100)
    job = Job(PORTRAIT, "A person talks.", (Speaker(sound),))
    return GenerateRequest(
        job,
        folder / "out.mp4",
        profile,
        weights_dir=tree,
        overwrite=True,
        device="cpu",
        convert=convert,
        picture=PictureWishes(width=64, height=64),
    )


def notes_of(request: GenerateRequest) -> list[str]:
    notes: list[str] = []
    assert runner.generate(request, on_note=notes.append).num_frames == 12
    return [note for note in notes if "convert" in note]


def left_as_they_are(request: GenerateRequest) -> bool:
    """Whether a run takes the files that it finds, without a word."""
    notes: list[str] = []
    files = runner.find_weights(request)
    taken = runner.convert_first(request, files, torch.device("cpu"), ignore_progress, notes.append)
    return taken == files and not notes


def test_the_first_run_converts_and_the_second_says_nothing(tree: Path, tmp_path: Path) -> None:
    first = notes_of(request_of(tree, tmp_path))
    assert len(first) == 1
    assert compact_files(tree) == MADE
    for path in tree.glob("Wan2.1-I2V-14B-480P/diffusion_pytorch_model*"):
        path.unlink()  # the second run reads the compact files
    assert notes_of(request_of(tree, tmp_path)) == []


@pytest.mark.parametrize("wish", [{"convert": False}, {"dtype": "float32"}])
def test_a_run_without_conversion_takes_the_files_as_they_are(tree: Path, tmp_path: Path, wish: dict[str, Any]) -> None:
    assert left_as_they_are(request_of(tree, tmp_path, **wish))
    assert not (tree / "compact").exists()


def test_a_run_goes_on_with_a_folder_for_reading_alone(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert_when_it_pays.os, "access", lambda path, mode: path != tree)  # pyright: ignore[reportUnknownLambdaType]
    assert left_as_they_are(request_of(tree, tmp_path))
    assert not (tree / "compact").exists()


@pytest.fixture
def hub(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[HubServer]:
    """A hub with made-up contents but for CLIP, and a machine with nothing."""
    server = HubServer()
    fill(server)
    server.add(WAN, CLIP, (published / "Wan2.1-I2V-14B-480P" / CLIP).read_bytes())
    use_hub(server, tmp_path / "hf" / "hub", monkeypatch)
    monkeypatch.setenv("TALK_WEIGHTS_DIR", str(tmp_path / "fetched"))
    with server.running():
        yield server


def download(*arguments: str) -> Result:
    result = CliRunner().invoke(app, ["download", "--quant", "fp8", *arguments])
    assert result.exit_code == 0, result.output
    return result


def test_download_converts_and_then_has_all_it_needs(hub: HubServer, tmp_path: Path) -> None:
    result = download()
    assert "converting the weights once: clip_vision_fp16.safetensors" in result.stderr
    assert result.stdout == f"{tmp_path / 'fetched'}\n"
    assert compact_files(tmp_path / "fetched") == ["clip_vision_fp16.safetensors"]
    hub.forget()
    assert "converting" not in download().stderr
    assert hub.requests == []


@pytest.mark.parametrize("wish", ["--no-convert", "--only=image"])
def test_download_does_not_convert_where_it_was_not_asked_for_a_run(hub: HubServer, tmp_path: Path, wish: str) -> None:
    assert "converting" not in download(wish).stderr
    assert compact_files(tmp_path / "fetched") == []


def test_download_is_done_though_the_conversion_fails(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> NoReturn:
        raise disk_error(OSError(errno.EIO, "Input/output error"), Path("compact"))

    monkeypatch.setattr(convert, "plan_image_encoder", fail)
    assert "note: the weights are not converted: can't write compact" in download().stderr
