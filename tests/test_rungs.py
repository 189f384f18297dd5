"""How a run shares out the GPU: what it starts with, what it steps down to, and what it remembers of that."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from infinitalk_cli import run_networks
from infinitalk_cli.errors import OutOfGpuMemoryError
from infinitalk_cli.footprint import (
    PUBLISHED,
    JobShape,
    Rung,
    block_bytes,
    keys_values_bytes,
    outside_bytes,
    persistent_parameters,
    vram_bytes,
    working_bytes,
)
from infinitalk_cli.gpu_room import GpuRoom
from infinitalk_cli.job import Job, Speaker
from infinitalk_cli.models.vae import VideoVAE
from infinitalk_cli.models.vae_tiling import Tiling
from infinitalk_cli.networks import read_dit_sizes
from infinitalk_cli.profiles import VaeDtype, find_profile
from infinitalk_cli.request import GenerateRequest
from infinitalk_cli.run_transformer import NetworkSources
from infinitalk_cli.rung_store import store_rung, stored_rung
from infinitalk_cli.rungs import SMALL_TILE, TILE, Stage, first_rung, lower_rung
from infinitalk_cli.sampling.conditioning import Conditioning, TensorEmbeds
from infinitalk_cli.sampling.settings import SamplingSettings
from infinitalk_cli.sampling.stream import Networks, generate_chunks
from infinitalk_cli.weights import WeightFiles, locate
from tests.sampling.stubs import StillReference
from training.random_tree import ensure_random_weights

GB = 10**9
SQUARE, LARGE = JobShape(640, 640, 81), JobShape(1280, 704, 81)
OPEN = replace(find_profile("rtx-4090"), num_persistent_param_in_dit=None)
CPU = torch.device("cpu")


def test_the_whole_transformer_stays_where_there_is_room() -> None:
    assert first_rung(OPEN, SQUARE, 140 * GB) == Rung(40)
    assert first_rung(OPEN, SQUARE, 29 * GB) == Rung(40)
    assert first_rung(replace(OPEN, vae_dtype="float32"), LARGE, 33 * GB) == Rung(40, vae_tile=TILE)


def test_beside_the_whole_transformer_all_keys_and_values_are_kept_and_counted() -> None:
    room = GpuRoom(CPU, OPEN, SQUARE, PUBLISHED, 29 * GB)
    kept = keys_values_bytes(SQUARE, OPEN)
    assert room.spare_bytes(Rung(40)) >= kept > room.spare_bytes(Rung(39))
    without_blocks = outside_bytes(OPEN) + 40 * block_bytes(OPEN)
    assert vram_bytes(SQUARE, OPEN, Rung(40)) > without_blocks + working_bytes(SQUARE, OPEN, Rung(40)) + kept


@pytest.mark.parametrize(("resident", "free_gb", "expected"), [(40, 140, True), (40, 29, False), (39, 140, False)])
def test_the_exact_vae_needs_room_beside_the_whole_transformer(resident: int, free_gb: int, expected: bool) -> None:
    assert GpuRoom(CPU, OPEN, SQUARE, PUBLISHED, free_gb * GB).fits_exact_vae(Rung(resident)) == expected


@pytest.mark.parametrize(("shape", "least"), [(SQUARE, 6), (LARGE, 8)])
def test_more_memory_is_used_and_none_that_is_not_there(shape: JobShape, least: int) -> None:
    rungs = {free: first_rung(OPEN, shape, free * GB) for free in range(least, 60, 2)}
    assert all(vram_bytes(shape, OPEN, rung) <= free * GB for free, rung in rungs.items())
    resident = [rung.num_resident for rung in rungs.values() if rung.attention_tokens is None]
    assert len(resident) > 20
    assert resident == sorted(resident)


def test_beside_streaming_decoding_takes_no_more_than_a_pass() -> None:
    assert first_rung(OPEN, LARGE, 16 * GB).vae_tile == TILE
    assert first_rung(replace(OPEN, vae_tiling="off"), LARGE, 20 * GB).vae_tile is None
    assert first_rung(replace(OPEN, vae_tiling="on"), SQUARE, 140 * GB).vae_tile == TILE


def test_loras_beside_the_weights_take_their_room() -> None:
    beside = replace(OPEN, lora_mode="beside", lora_parameters=40 * 10**7)
    assert block_bytes(beside) - block_bytes(OPEN) == 2 * 10**7
    rungs = [first_rung(profile, SQUARE, 16 * GB) for profile in (OPEN, beside)]
    assert rungs[1].num_resident < rungs[0].num_resident
    assert vram_bytes(SQUARE, beside, rungs[1]) <= 16 * GB < vram_bytes(SQUARE, beside, rungs[0])


def test_what_the_user_asks_to_stay_stays() -> None:
    for number in (0, 7, 39):
        asked = replace(OPEN, num_persistent_param_in_dit=persistent_parameters(number))
        assert first_rung(asked, SQUARE, 140 * GB).num_resident == number
    whole = replace(OPEN, num_persistent_param_in_dit=10**11)
    assert first_rung(whole, SQUARE, 16 * GB) == first_rung(OPEN, SQUARE, 16 * GB)


@pytest.mark.parametrize("stage", ["transformer", "vae", "other"])
def test_every_step_down_takes_no_more_until_there_is_none(stage: Stage) -> None:
    rung, seen = Rung(40), list[Rung]()
    while (lower := lower_rung(rung, 40, stage)) is not None:
        assert vram_bytes(LARGE, OPEN, lower) <= vram_bytes(LARGE, OPEN, rung)
        rung = lower
        seen.append(rung)
    assert rung.num_resident == 0
    assert len(seen) <= 6
    assert (rung.vae_tile == SMALL_TILE) == (stage == "vae")
    assert (rung.attention_tokens is not None) == (stage == "transformer")


def test_a_rung_that_worked_is_known_while_there_is_no_more_memory(tmp_path: Path) -> None:
    rung = Rung(13, vae_tile=40)
    store_rung("NVIDIA X", SQUARE, OPEN, rung, 20 * GB, tmp_path)
    store_rung("NVIDIA X", LARGE, OPEN, Rung(0), 20 * GB, tmp_path)
    assert stored_rung("NVIDIA X", SQUARE, OPEN, 20 * GB, tmp_path) == rung
    assert stored_rung("NVIDIA X", SQUARE, OPEN, 19 * GB, tmp_path) == rung
    assert stored_rung("NVIDIA X", SQUARE, OPEN, 24 * GB, tmp_path) is None
    assert stored_rung("NVIDIA X", SQUARE, replace(OPEN, quant="none"), 20 * GB, tmp_path) is None
    assert stored_rung("NVIDIA Y", SQUARE, OPEN, 20 * GB, tmp_path) is None


@pytest.mark.parametrize("change", [{"num_resident": "x"}, {"unknown": 1}, {"ffn_tokens": 0}, {"vae_tile": -1}])
def test_a_damaged_record_of_a_rung_counts_as_none(tmp_path: Path, change: dict[str, Any]) -> None:
    store_rung("X", SQUARE, OPEN, Rung(13), 20 * GB, tmp_path)
    path = next(tmp_path.iterdir())
    entries = json.loads(path.read_text())
    for entry in entries.values():
        entry["rung"].update(change)
    path.write_text(json.dumps(entries))
    assert stored_rung("X", SQUARE, OPEN, 20 * GB, tmp_path) is None
    path.write_text("{")
    assert stored_rung("X", SQUARE, OPEN, 20 * GB, tmp_path) is None


SETTINGS = SamplingSettings(
    bucket_set="demo", chunk_frames=9, motion_frames=5, num_steps=1, text_guidance_scale=1.0, audio_guidance_scale=1.0
)


@pytest.fixture(scope="module")
def files() -> WeightFiles:
    return locate(ensure_random_weights(), num_speakers=1, quant="none", engine="infinitetalk")


def demo_networks(
    files: WeightFiles,
    start: Rung,
    notes: list[str],
    folder: Path,
    device: torch.device = CPU,
    vae_dtype: VaeDtype = "float32",
) -> Networks:
    """The demo's networks as they are placed on a GPU, also on the CPU."""
    profile = replace(find_profile("demo"), vae_dtype=vae_dtype)
    request = GenerateRequest(
        Job(folder / "p.png", "", (Speaker(folder / "s.wav"),), is_video=False), folder / "o.mp4", profile
    )
    sizes = read_dit_sizes(files)
    room = GpuRoom(device, profile, JobShape(32, 32, 13), sizes, 8 * GB)
    return run_networks.load_on_rung(NetworkSources(request, files, (), device), room, start, notes.append)


def frames_of(networks: Networks) -> torch.Tensor:
    """Two chunks."""
    config = networks.dit.config
    draw = torch.Generator().manual_seed(0)
    conditioning = Conditioning(
        text=torch.randn(3, config.text_dim, generator=draw),
        null_text=None,
        audio=(TensorEmbeds(torch.randn(13, config.audio_layers, config.audio_dim, generator=draw)),),
        reference=StillReference(torch.rand(1, 3, 1, 32, 32, generator=draw) * 2 - 1),
        speaker_masks=None,
        height=32,
        width=32,
    )
    return torch.cat([chunk.frames for chunk in generate_chunks(networks, conditioning, SETTINGS)], dim=2)


def fail_times(count: int, call: Callable[..., Any]) -> Callable[..., Any]:
    """`call`, which says first that often that memory has run out."""
    left = [count]

    def failing(*given: Any, **named: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return call(*given, **named)

    return failing


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("where", ["transformer", "vae"])
def test_a_chunk_that_finds_no_memory_is_made_again_down_to_the_last_rung_and_the_video_is_the_same(
    files: WeightFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: Stage, device: str
) -> None:
    found: list[Rung] = []
    monkeypatch.setattr(GpuRoom, "remember", lambda _, rung: found.append(rung))  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    notes: list[str] = []
    rung = start = Rung(read_dit_sizes(files).num_layers)
    networks = demo_networks(files, start, notes, tmp_path, torch.device(device))
    expected = frames_of(networks)
    num_rungs = 0
    while (lower := lower_rung(rung, start.num_resident, where)) is not None:
        num_rungs, rung = num_rungs + 1, lower
    fails_in, name = (networks.dit.head, "forward") if where == "transformer" else (networks.vae, "decode_stream")
    monkeypatch.setattr(fails_in, name, fail_times(num_rungs, getattr(fails_in, name)))
    torch.testing.assert_close(frames_of(networks), expected, atol=1e-4 if device == "cpu" else 0.05, rtol=0)
    assert found == [rung]
    assert [note.startswith("the GPU ran out of memory") for note in notes] == [True] * num_rungs


def test_a_vae_that_overflows_float16_is_read_in_float32_and_steps_down_where_that_finds_no_memory(
    files: WeightFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, loaded = run_networks.load_vae, list[torch.dtype]()

    def load_large(files: WeightFiles, device: torch.device, home: torch.device, dtype: torch.dtype) -> VideoVAE:
        loaded.append(dtype)
        if loaded == [torch.float16, torch.float32]:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.")
        vae = load(files, device, home, dtype)
        vae.conv1.weight.mul_(1e9)
        return vae

    notes, start = list[str](), Rung(read_dit_sizes(files).num_layers)
    monkeypatch.setattr(run_networks, "load_vae", load_large)
    networks = demo_networks(files, start, notes, tmp_path, vae_dtype="auto")
    made = frames_of(networks)
    assert [note.split(";")[0] for note in notes] == [
        "the GPU ran out of memory",
        "note: the video VAE goes beyond float16 here",
    ]
    assert networks.vae.tiling == Tiling.of(TILE)
    assert torch.equal(frames_of(networks), made)
    assert loaded == [torch.float16, torch.float32, torch.float32]
    exact = demo_networks(files, replace(start, vae_tile=TILE), [], tmp_path, vae_dtype="float32")
    assert torch.equal(frames_of(exact), made)


def test_a_transformer_that_finds_no_room_when_it_is_loaded_is_streamed(
    files: WeightFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    num_blocks = read_dit_sizes(files).num_layers
    monkeypatch.setattr(run_networks, "build_networks", fail_times(1, run_networks.build_networks))
    demo_networks(files, Rung(num_blocks), notes, tmp_path)
    assert notes[0].startswith("the GPU has no room for the whole transformer")
    assert f"of {num_blocks} transformer blocks stay on the GPU" in notes[1]


def test_a_transformer_that_finds_no_room_on_any_rung_ends_with_what_would_fit(
    files: WeightFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    monkeypatch.setattr(run_networks, "build_networks", fail_times(99, run_networks.build_networks))
    with pytest.raises(OutOfGpuMemoryError, match="finds no room") as caught:
        demo_networks(files, Rung(2), notes, tmp_path)
    assert [note.split(";")[0] for note in notes] == [
        "the GPU has no room for the whole transformer",
        "the GPU has no room for 1 blocks",
    ]
    assert "were free" in caught.value.hint


def test_when_the_last_rung_fails_the_error_says_what_would_fit(files: WeightFiles, tmp_path: Path) -> None:
    networks = demo_networks(files, Rung(0), [], tmp_path)
    networks.dit.head.forward = fail_times(99, networks.dit.head.forward)
    with pytest.raises(OutOfGpuMemoryError, match=r"Tried to allocate 2\.00 GiB") as caught:
        frames_of(networks)
    assert caught.value.exit_code == 5
    assert "32x32" in caught.value.hint
    assert "8.0 GB were free" in caught.value.hint
