"""Blocks that are read from their files in every pass compute what blocks in memory do, bit for bit."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from infinitalk_cli import runner
from infinitalk_cli.errors import WeightsError
from infinitalk_cli.footprint import READ_AHEAD_BYTES, JobShape, Rung
from infinitalk_cli.gpu_room import GpuRoom
from infinitalk_cli.memory import carrying, read_ahead, reading, stored
from infinitalk_cli.memory.lora import Lora, read_lora
from infinitalk_cli.memory.quant import QuantizedLinear, quantize_rows
from infinitalk_cli.models.dit import DiT
from infinitalk_cli.networks import read_dit_sizes
from infinitalk_cli.profiles import Quant
from infinitalk_cli.progress import OnNote, Progress
from infinitalk_cli.run_blocks import placement_notes
from infinitalk_cli.run_networks import load_on_rung
from infinitalk_cli.run_transformer import NetworkSources, PlacedTransformer, place_transformer
from infinitalk_cli.sampling.stream import Networks
from infinitalk_cli.weights import WeightFiles, locate
from tests.lone_transformer import lone_transformer
from tests.models.test_dit import inputs
from tests.models.tiny import TINY
from tests.test_run_team import frames_of, two_speakers
from training.random_tree import ensure_random_weights

NUM_BLOCKS = 5
STORED_NAMES = {
    "audio_hidden_dim": "intermediate_dim",
    "audio_token_dim": "output_dim",
    "audio_tokens": "context_tokens",
}
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:  # pyright: ignore[reportUnusedFunction]
    """The rules of large blocks for small ones: a block in several pieces, of which few are read ahead."""
    monkeypatch.setattr(stored, "LEAST_PART_BYTES", 0)
    monkeypatch.setattr(stored, "LEAST_SHARE", 0.4)
    monkeypatch.setattr(carrying, "PIECE_BYTES", 4_000)
    monkeypatch.setattr("infinitalk_cli.memory.offload.make_ring", lambda: read_ahead.make_ring(5, 3_000))
    with torch.no_grad():
        yield


def write(folder: Path, quant: Quant, *, dtype: torch.dtype = torch.bfloat16) -> WeightFiles:
    """A transformer of five blocks as a file has it: 8-bit layers as optimum-quanto does, all else in `dtype`."""
    torch.manual_seed(7)
    dit, tensors = DiT(replace(TINY, num_layers=NUM_BLOCKS)), dict[str, Tensor]()
    linears = {f"{name}.weight" for name, part in dit.named_modules() if isinstance(part, torch.nn.Linear)}
    for name, value in dit.state_dict().items():
        if quant != "none" and name in linears and name.startswith("blocks."):
            form = torch.float8_e4m3fn if quant == "fp8" else torch.int8
            tensors[f"{name}._data"], tensors[f"{name}._scale"] = quantize_rows(value, form)
        else:
            tensors[name] = value.to(dtype)
    config = {STORED_NAMES.get(name, name): value for name, value in asdict(dit.config).items()}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "w.safetensors")
    return lone_transformer(folder / "w.safetensors", quant=quant, config=folder / "config.json")


def placed(
    files: WeightFiles,
    device: str = "cpu",
    loras: tuple[Lora, ...] = (),
    *,
    num_resident: int | None = 0,
    most_in_ram: int | None = 0,
    beside: bool = False,
) -> PlacedTransformer:
    return place_transformer(
        files,
        loras,
        torch.device(device),
        torch.bfloat16,
        num_resident=num_resident,
        most_in_ram=most_in_ram,
        beside=beside,
    )


def passes(network: PlacedTransformer, count: int = 2) -> list[Tensor]:
    """Passes of two speakers."""
    with network.on_stage():
        given = inputs_on(network)
        return [network.dit(**given) for _ in range(count)]


def inputs_on(network: PlacedTransformer) -> dict[str, Any]:
    given = inputs(network.dit, num_speakers=2)
    return {name: value.to(network.device) if isinstance(value, Tensor) else value for name, value in given.items()}


def reading_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("read-ahead")]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("quant", ["fp8", pytest.param("int8", marks=pytest.mark.slow), "none"])
def test_blocks_from_files_compute_what_resident_ones_do(tmp_path: Path, quant: Quant, device: str) -> None:
    files = write(tmp_path, quant)
    expected = passes(placed(files, device, num_resident=None, most_in_ram=None), 1)[0]
    for num_resident, most_in_ram in ((0, 0), (0, 2), (0, 4), (0, 5), (2, 1), (4, 0)):
        network = placed(files, device, num_resident=num_resident, most_in_ram=most_in_ram)
        assert network.offloader is not None
        assert network.offloader.num_stored == NUM_BLOCKS - num_resident - most_in_ram
        for _ in range(2):  # a stage may be left and entered again
            assert all(torch.equal(made, expected) for made in passes(network))
        assert not reading_threads()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("quant", "beside"), [("fp8", True), ("none", False), pytest.param("fp8", False, marks=pytest.mark.slow)]
)
def test_loras_are_added_each_time_and_give_the_same_bits(
    tmp_path: Path, quant: Quant, beside: bool, device: str
) -> None:
    files, draw = write(tmp_path, quant), torch.Generator().manual_seed(1)
    changes = {
        f"diffusion_model.blocks.{number}.{leaf}": torch.randn(shape, generator=draw)
        for number in range(NUM_BLOCKS)
        for leaf, shape in (
            ("self_attn.q.lora_down.weight", (3, 64)),
            ("self_attn.q.lora_up.weight", (64, 3)),
            ("self_attn.q.diff_b", (64,)),
            ("modulation.diff", (1, 6, 64)),
        )
    }
    save_file(changes, tmp_path / "lora.safetensors")
    loras = (read_lora(tmp_path / "lora.safetensors", 0.5), read_lora(tmp_path / "lora.safetensors", 0.25))
    plain = passes(placed(files, device, num_resident=None, most_in_ram=None), 1)[0]
    whole = placed(files, device, loras, num_resident=None, most_in_ram=0, beside=beside)
    expected = passes(whole, 1)[0]
    assert not torch.equal(plain, expected)
    network = placed(files, device, loras, num_resident=2, most_in_ram=1, beside=beside)
    assert all(torch.equal(made, expected) for made in passes(network))
    for num_resident in (1, 0):  # the LoRAs were added to what leaves the GPU, and are again
        for stepping in (network, whole):
            stepping.take(Rung(num_resident))
            assert stepping.offloader is not None
            assert stepping.offloader.num_stored >= 2
            assert all(torch.equal(made, expected) for made in passes(stepping))


def test_blocks_that_leave_the_gpu_find_no_more_ram_than_there_is(tmp_path: Path) -> None:
    files = write(tmp_path, "fp8")
    network = placed(files, num_resident=4, most_in_ram=2)
    expected = passes(network)[0]
    found: list[tuple[int, int]] = []
    for num_resident in (4, 3, 1, 0):
        network.take(Rung(num_resident))
        assert network.offloader is not None
        found.append((num_resident, network.offloader.num_stored))
        assert torch.equal(passes(network)[0], expected)
    assert found == [(4, 0), (3, 0), (1, 2), (0, 3)]


def test_what_is_read_ahead_is_what_estimates_count() -> None:
    assert read_ahead.RING_PIECES * reading.PIECE_BYTES == READ_AHEAD_BYTES


def test_what_is_read_is_said(tmp_path: Path) -> None:
    network = placed(write(tmp_path, "fp8"), num_resident=1, most_in_ram=1)
    assert network.offloader is not None
    notes = list(placement_notes(network.offloader, NUM_BLOCKS))
    assert "1 of 5 transformer blocks stay on the GPU" in notes[0]
    assert "RAM has room for 1 of these; 3 are read from the disk in every pass (0.0 GB)" in notes[1]


def test_weights_that_have_to_be_converted_are_all_read_into_ram(tmp_path: Path) -> None:
    network = placed(write(tmp_path, "none", dtype=torch.float32), most_in_ram=1)
    assert network.offloader is not None
    assert network.offloader.num_stored == 0
    assert not any(value.is_meta for value in network.dit.parameters())


def test_what_is_read_in_every_pass_takes_no_ram_in_between(tmp_path: Path) -> None:
    network = placed(write(tmp_path, "fp8"), most_in_ram=2)
    for _ in range(2):
        layers = [block.get_submodule("self_attn.q") for block in network.dit.blocks]
        assert [isinstance(layer, QuantizedLinear) and layer.data.is_meta for layer in layers].count(True) == 3
        passes(network)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def replace_by_another(path: Path) -> None:
    other = path.with_suffix(".other")
    other.write_bytes(path.read_bytes())
    os.utime(other, ns=(5, 5))
    other.replace(path)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (cut, "has changed since the run began"),
        (replace_by_another, "has changed since the run began"),
        (Path.unlink, "No such file"),
    ],
)
def test_a_file_that_does_not_stay_as_it_was_ends_the_pass_and_the_threads(
    tmp_path: Path, harm: Callable[[Path], None], said: str, device: str
) -> None:
    files = write(tmp_path, "fp8")
    network = placed(files, device)

    def harmed_after_a_pass() -> None:
        with network.on_stage():
            given = inputs_on(network)
            network.dit(**given)
            harm(files.dit_shards[0])
            for _ in range(2):  # what was read ahead may have been good
                network.dit(**given)

    with pytest.raises(WeightsError, match=said) as raised:
        harmed_after_a_pass()
    assert str(files.dit_shards[0]) in raised.value.message
    assert "--resume" in raised.value.hint
    assert not reading_threads()


def test_a_disk_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write(tmp_path, "fp8")
    network = placed(files)

    def fail(source: reading.FileSpan, *_: object) -> None:
        raise OSError(5, "Input/output error", str(source.path))

    monkeypatch.setattr(read_ahead, "read_span", fail)
    with pytest.raises(WeightsError, match=r"w\.safetensors.*Input/output error"):
        passes(network)
    assert not reading_threads()


def test_ctrl_c_ends_the_threads_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = placed(write(tmp_path, "fp8"))
    read = read_ahead.read_span

    def slowly(*given: Any) -> None:
        time.sleep(0.02)
        read(*given)

    monkeypatch.setattr(read_ahead, "read_span", slowly)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    network.dit.blocks[1].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        passes(network)
    assert not reading_threads()


@pytest.mark.parametrize("device", DEVICES)
def test_a_pass_that_was_left_early_does_no_harm(tmp_path: Path, device: str) -> None:
    files = write(tmp_path, "fp8")
    expected = passes(placed(files, device, most_in_ram=None))[0]
    network = placed(files, device, most_in_ram=1)

    def leave(*_: object) -> None:
        raise ValueError("left")

    with network.on_stage():
        given = inputs_on(network)
        for number in (3, 1, 4):
            hook = network.dit.blocks[number].register_forward_pre_hook(leave)
            with pytest.raises(ValueError, match="left"):
                network.dit(**given)
            hook.remove()
            assert torch.equal(network.dit(**given), expected)


@pytest.mark.slow
def test_chunks_that_are_done_are_kept_when_a_file_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole run on small weights, placed as on a GPU with no RAM for blocks; the rest of it with the file back."""
    weights = shutil.copytree(ensure_random_weights(), tmp_path / "weights")
    request = replace(two_speakers(tmp_path, weights_dir=weights, convert=False), overwrite=False, resume=True)
    runner.generate(replace(request, output=tmp_path / "expected.mp4"))
    shard = locate(weights, num_speakers=2).dit_shards[0]
    monkeypatch.setattr(runner, "load_networks", load_without_ram)

    def move_away(news: Progress) -> None:
        if news.chunk == 2 and shard.exists():
            shard.rename(tmp_path / "away")

    with pytest.raises(WeightsError, match="No such file"):
        runner.generate(request, on_progress=move_away)
    assert len(frames_of(tmp_path / "talk.part.mp4"))
    (tmp_path / "away").rename(shard)
    runner.generate(request)
    assert np.array_equal(frames_of(request.output), frames_of(tmp_path / "expected.mp4"))


def load_without_ram(sources: NetworkSources, shape: JobShape, on_note: OnNote) -> Networks:
    profile, sizes = replace(sources.request.profile, vae_dtype="float32"), read_dit_sizes(sources.files)
    sources = replace(sources, request=replace(sources.request, profile=profile))
    room = GpuRoom(sources.device, profile, shape, sizes, 8 * 10**9, ram_bytes=0)
    return load_on_rung(sources, room, Rung(0), on_note)
