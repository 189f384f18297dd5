"""Blocks that are to be streamed are read straight into the one piece of RAM from which they travel."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from infinitalk_cli.memory import packed
from infinitalk_cli.memory.loading import load_into
from infinitalk_cli.memory.lora import Lora, merge_loras, plan_loras
from infinitalk_cli.memory.offload import BlockOffloader
from infinitalk_cli.memory.packed import PackedBlock, PageLocks, page_lock
from infinitalk_cli.memory.quant import QuantizedLinear, quantize_rows
from infinitalk_cli.memory.tensor_files import TensorRef, open_tensors
from tests.memory.refs import NOWHERE, refs_of

WIDTH, NUM_BLOCKS = 24, 5
CPU = torch.device("cpu")


class Net(nn.Module):
    """Five blocks of a plain and an 8-bit layer behind another one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"q": nn.Linear(WIDTH, WIDTH), "k": QuantizedLinear(WIDTH, WIDTH), "norm": nn.RMSNorm(WIDTH)})
            for _ in range(NUM_BLOCKS)
        )


def write(path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    values = {
        name: torch.randint(-9, 9, value.shape, generator=draw).to(value.dtype)
        for name, value in Net().state_dict().items()
    }
    save_file(values, path)


def read(path: Path, num_resident: int | None) -> tuple[Net, BlockOffloader | None]:
    """The network in bfloat16, plainly or with blocks to be streamed."""
    offloaders: list[BlockOffloader] = []
    with torch.device("meta"):
        net = Net()

    def stream(_: nn.Module, refs: Mapping[str, TensorRef]) -> Collection[str]:
        if num_resident is not None:
            offloaders.append(BlockOffloader(list(net.blocks), CPU, num_resident=num_resident))
        return ()

    load_into(net, open_tensors(path), what="the net", dtype_of=lambda name, held: torch.bfloat16, place=stream)
    return net, next(iter(offloaders), None)


def storages(module: nn.Module) -> set[int]:
    return {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}


@pytest.mark.parametrize("num_resident", [0, 2, NUM_BLOCKS])
def test_streamed_blocks_are_read_into_one_piece_each_and_have_the_same_values(
    tmp_path: Path, num_resident: int
) -> None:
    write(tmp_path / "w.safetensors")
    plain, _ = read(tmp_path / "w.safetensors", None)
    net, offloader = read(tmp_path / "w.safetensors", num_resident)
    assert offloader is not None
    assert offloader.num_resident == num_resident
    for block in net.blocks:
        assert (len(storages(block)) == 1) == offloader.is_streamed(block)
    for (name, value), expected in zip(net.named_parameters(), plain.parameters(), strict=True):
        assert value.dtype == expected.dtype, name
        assert torch.equal(value, expected), name


def test_loras_are_added_where_the_values_are(tmp_path: Path) -> None:
    write(tmp_path / "w.safetensors")
    plain, _ = read(tmp_path / "w.safetensors", None)
    net, offloader = read(tmp_path / "w.safetensors", 1)
    before = [storages(block) for block in net.blocks]
    draw = torch.Generator().manual_seed(1)
    tensors = {
        f"diffusion_model.blocks.{number}.{layer}.diff": torch.randn(WIDTH, WIDTH, generator=draw)
        for number in range(NUM_BLOCKS)
        for layer in "qk"
    }
    for network in (plain, net):
        merge_loras(network, plan_loras(network, [Lora(NOWHERE, 0.5, refs_of(tensors))]), device="cpu")
    assert [storages(block) for block in net.blocks] == before
    assert offloader is not None
    offloader.keep(0)  # what is streamed is what the LoRA changed
    for value, expected in zip(net.parameters(), plain.parameters(), strict=True):
        assert torch.equal(value, expected)
    layer = net.blocks[0].get_submodule("k")
    assert isinstance(layer, QuantizedLinear)
    stored = open_tensors(tmp_path / "w.safetensors")
    changed = stored["blocks.0.k.data"].load().float() * stored["blocks.0.k.scale"].load().float()
    changed += 0.5 * tensors["diffusion_model.blocks.0.k.diff"]
    assert torch.equal(layer.data, quantize_rows(changed, torch.int8)[0])


@pytest.mark.parametrize("is_granted", [True, False])
def test_a_block_is_locked_once_and_whole_whatever_the_answer(
    monkeypatch: pytest.MonkeyPatch, is_granted: bool
) -> None:
    asked: list[int] = []

    def answer(data: torch.Tensor, device: torch.device) -> bool:
        asked.append(data.numel())
        return is_granted

    monkeypatch.setattr(packed, "page_lock", answer)
    block, locks = nn.Linear(WIDTH, WIDTH), PageLocks(CPU)
    weight = block.weight.detach().clone()
    made = PackedBlock(block)
    assert not made.is_pinned
    for _ in range(2):
        made.lock(locks)
        assert made.is_pinned == is_granted
    assert asked == [made.data.numel()]
    assert torch.equal(block.weight, weight)


def test_no_memory_is_locked_where_ram_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    def never() -> None:
        raise AssertionError("asked")

    monkeypatch.setattr(torch.cuda, "cudart", never)
    monkeypatch.setattr(packed, "SPARE_BYTES", 2**50)
    assert not page_lock(torch.empty(5), CPU)
    monkeypatch.setattr(packed, "SPARE_BYTES", 0)
    with pytest.raises(AssertionError, match="asked"):
        page_lock(torch.empty(5), CPU)
