"""Streamed blocks compute what resident ones do, bit for bit, whatever share of them stays on the GPU."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from infinitalk_cli.memory import carrying, packed
from infinitalk_cli.memory.block_stages import StreamedStage, visiting
from infinitalk_cli.memory.loading import load_into
from infinitalk_cli.memory.offload import BlockOffloader, streamed_numbers
from infinitalk_cli.memory.packed import page_lock
from infinitalk_cli.memory.quant import QuantizedLinear
from infinitalk_cli.memory.tensor_files import TensorRef, open_tensors

WIDTH, NUM_BLOCKS = 64, 7


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:  # pyright: ignore[reportUnusedFunction]
    with torch.no_grad():
        yield


class Net(nn.Module):
    """Seven blocks of plain and 8-bit layers between two other ones."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, 96), nn.GELU(), self.eight_bit(96, WIDTH), nn.LayerNorm(WIDTH))
            for _ in range(NUM_BLOCKS)
        )

    @staticmethod
    def eight_bit(in_features: int, out_features: int) -> QuantizedLinear:
        layer = QuantizedLinear(in_features, out_features)
        layer.requantize(torch.randn(out_features, in_features))
        layer.bias = nn.Parameter(torch.randn(out_features), requires_grad=False)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        return self.last(x)


def tokens() -> Tensor:
    return torch.randn(128, WIDTH, generator=torch.Generator().manual_seed(5)).cuda()


@pytest.mark.parametrize(
    ("num_blocks", "num_resident", "expected"),
    [
        (4, 0, [0, 1, 2, 3]),
        (4, 4, []),
        (4, 9, []),
        (40, 30, [3, 7, 11, 15, 19, 23, 27, 31, 35, 39]),
        (7, 5, [2, 6]),
    ],
)
def test_streamed_blocks_lie_evenly_among_the_resident(num_blocks: int, num_resident: int, expected: list[int]) -> None:
    assert streamed_numbers(num_blocks, num_resident) == expected


def test_blocks_that_stayed_join_the_streamed_ones_with_their_values() -> None:
    net, expected = Net(), Net()
    offloader = BlockOffloader(list(net.blocks), torch.device("cpu"), num_resident=4)
    streamed = [block for block in net.blocks if offloader.is_streamed(block)]
    addresses = [next(block.parameters()).data_ptr() for block in streamed]
    for num_resident in (3, 1, 1, 0):
        offloader.keep(num_resident)
        assert offloader.num_resident == num_resident
    assert [next(block.parameters()).data_ptr() for block in streamed] == addresses  # they stay where they are
    x = torch.randn(3, WIDTH)
    with offloader.running():
        assert torch.equal(net(x), expected(x))


@pytest.mark.gpu
@pytest.mark.parametrize("num_resident", range(NUM_BLOCKS + 1))
def test_streamed_equals_resident_bit_for_bit(num_resident: int) -> None:
    x, resident, net = tokens(), Net().cuda(), Net()
    expected = resident(x)
    offloader = BlockOffloader(list(net.blocks), x.device, num_resident=num_resident)
    for _ in range(2):  # a stage may be left and entered again
        with StreamedStage(net, offloader).running():
            assert all(torch.equal(net(x), expected) for _ in range(4))
    assert offloader.num_resident == num_resident


@pytest.mark.gpu
def test_fewer_blocks_may_stay_between_two_stages() -> None:
    x, net = tokens(), Net()
    expected = Net().cuda()(x)
    offloader = BlockOffloader(list(net.blocks), x.device, num_resident=NUM_BLOCKS)
    for num_resident in range(NUM_BLOCKS, -1, -1):
        offloader.keep(num_resident)
        with StreamedStage(net, offloader).running():
            assert torch.equal(net(x), expected)
    assert all(p.device.type == "cpu" for p in net.blocks.parameters())


@pytest.mark.gpu
@pytest.mark.parametrize("num_resident", [0, 3, NUM_BLOCKS])
def test_blocks_read_straight_to_their_places_compute_the_same(tmp_path: Path, num_resident: int) -> None:
    x, stored, offloaders = tokens(), Net(), list[BlockOffloader]()
    save_file(stored.state_dict(), tmp_path / "w.safetensors")
    expected = stored.cuda()(x)
    net = Net().to("meta")

    def stream(_: nn.Module, refs: Mapping[str, TensorRef]) -> Collection[str]:
        offloaders.append(BlockOffloader(list(net.blocks), x.device, num_resident=num_resident))
        return ()

    refs = open_tensors(tmp_path / "w.safetensors")
    load_into(net, refs, what="", dtype_of=lambda name, held: held, device=x.device, place=stream)
    (offloader,) = offloaders
    resident = [block for block in net.blocks if not offloader.is_streamed(block)]
    assert len(resident) == num_resident
    assert all(p.is_cuda for part in (net.first, *resident) for p in part.parameters())
    for stay in range(num_resident, -1, -1):
        offloader.keep(stay)
        with StreamedStage(net, offloader).running():
            assert torch.equal(net(x), expected)


@pytest.mark.gpu
def test_a_pass_that_was_left_early_does_no_harm() -> None:
    x, net = tokens(), Net()
    expected = Net().cuda()(x)
    with StreamedStage(net, BlockOffloader(list(net.blocks), x.device)).running():
        for block in net.blocks[:3]:
            block(x)
        assert torch.equal(net(x), expected)


@pytest.mark.gpu
def test_only_two_blocks_are_on_the_gpu_and_none_afterwards() -> None:
    x, net = tokens(), Net()
    offloader = BlockOffloader(list(net.blocks), x.device)
    before = torch.cuda.memory_allocated()
    stage = StreamedStage(net, offloader)
    with stage.running():
        net(x)
        outside = 2 * WIDTH * (WIDTH + 1) * 4
        assert torch.cuda.memory_allocated() - before <= 2 * offloader.streamed_bytes // NUM_BLOCKS + outside + 16_384
    assert all(p.device.type == "cpu" for p in net.blocks.parameters())


@pytest.mark.gpu
@pytest.mark.parametrize("num_granted", [0, 1, 4])
@pytest.mark.parametrize("num_resident", [0, 2, NUM_BLOCKS - 1])
def test_memory_that_is_not_locked_works_too(
    monkeypatch: pytest.MonkeyPatch, num_granted: int, num_resident: int
) -> None:
    x, net, asked = tokens(), Net(), list[int]()
    expected = Net().cuda()(x)

    def grant(data: Tensor, device: torch.device) -> bool:
        asked.append(data.numel())
        return len(asked) <= num_granted and page_lock(data, device)

    monkeypatch.setattr(packed, "page_lock", grant)
    monkeypatch.setattr(carrying, "PIECE_BYTES", 4_000)  # several of them a block, the last one shorter
    offloader = BlockOffloader(list(net.blocks), x.device, num_resident=num_resident)
    assert offloader.is_pinned == (num_granted >= NUM_BLOCKS - num_resident)
    for _ in range(2):
        with StreamedStage(net, offloader).running():
            assert all(torch.equal(net(x), expected) for _ in range(4))
            net.blocks[0](x)  # a pass that is left early


@pytest.mark.gpu
def test_blocks_that_visit_compute_the_same_and_leave_nothing_behind() -> None:
    x, net = tokens(), Net()
    expected = Net().cuda()(x)
    before = torch.cuda.memory_allocated()
    with visiting(net, list(net.blocks), x.device):
        assert all(torch.equal(net(x), expected) for _ in range(2))
    assert all(p.device.type == "cpu" for p in net.parameters())
    assert torch.cuda.memory_allocated() == before
