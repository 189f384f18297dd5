"""Weight streaming: most blocks of a network stay in RAM and come to the GPU one ahead of their turn.

A block computes for longer than its weights take to arrive, at all but the smallest sizes. So a network of many equal
blocks needs room on the GPU for two of them, if the next is on its way while one computes:

- Every streamed block is packed into one buffer of page-locked RAM: one asynchronous copy brings it whole.
- Two slots on the GPU take turns. A side stream copies; events tell it when a slot is free again, and the computing
  stream when a slot is full. Nothing waits on the CPU.
- Behind the last streamed block comes the first again, so the next pass finds it there.
- Some blocks may stay on the GPU for good. They are spread evenly among the streamed ones, so that each copy has as
  much computing to hide behind as the others.

The same kernels see the same bits as in a resident network, so the results are the same bit for bit. Blocks are called
as they are: hooks point their parameters to the slot before a call.

Where memory can't be page-locked, a thread carries the blocks through a little that is (`carrying.py`): that costs the
CPU a copy, and computing goes on beside it. `is_pinned` tells.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from infinitalk_cli.memory.carrying import Carrier
from infinitalk_cli.memory.loading import own_tensors
from infinitalk_cli.memory.packed import PackedBlock, PageLocks
from infinitalk_cli.memory.residency import Residency

_NUM_SLOTS = 2


@dataclass
class _Slot:
    """Room for one block on the GPU.

    `holds`: number of the block in it. Events: copied to; computed with. `sent`: by a thread, behind which `full` is to
    be looked at.
    """

    data: Tensor
    full: torch.cuda.Event
    free: torch.cuda.Event
    holds: int | None = None
    sent: Future[None] | None = None


class BlockOffloader:
    """Streams the blocks of a network through two slots of a GPU.

    Blocks may be on the `meta` device still: those to be streamed then get their room in RAM, where their values are to
    be read into, and the others are left to who reads.

    Args:
        blocks: called in this order in every pass; equal in size, or nearly.
        num_resident: how many stay on the GPU; all but the others.
        pin: page-lock the RAM of streamed blocks. Locking takes time: not for a network that runs once.
    """

    def __init__(
        self, blocks: Sequence[nn.Module], device: torch.device, *, num_resident: int = 0, pin: bool = True
    ) -> None:
        self.device, self._blocks = device, blocks
        self._locks = PageLocks(device) if pin and device.type == "cuda" else None
        self._numbers: list[int] = []
        self._packed: list[PackedBlock] = []
        self._slots: list[_Slot] = []
        self._fetches = True
        self.keep(num_resident)
        for block in blocks:
            if not self.is_streamed(block) and not any(tensor.is_meta for tensor in block.parameters()):
                block.to(device)

    @property
    def num_resident(self) -> int:
        """How many blocks stay on the GPU."""
        return len(self._blocks) - len(self._numbers)

    def keep(self, num_resident: int) -> None:
        """Have no more than so many blocks stay from now on, the others join the streamed ones. Not while running."""
        packed = dict(zip(self._numbers, self._packed, strict=True))
        stay = [number for number in range(len(self._blocks)) if number not in packed]
        for place in streamed_numbers(len(stay), num_resident):
            packed[stay[place]] = PackedBlock(self._blocks[stay[place]])
        self._numbers = sorted(packed)
        self._packed = [packed[number] for number in self._numbers]

    @property
    def _streamed(self) -> list[nn.Module]:
        return [self._blocks[number] for number in self._numbers]

    @cached_property
    def _copies(self) -> torch.cuda.Stream:
        return torch.cuda.Stream(self.device)

    @cached_property
    def _carrier(self) -> Carrier:
        return Carrier(self._copies)

    @property
    def is_pinned(self) -> bool:
        """Whether the GPU fetches the blocks by itself. When asked first, their values being there, they are locked."""
        if self._locks is None:
            return not self._packed
        for packed in self._packed:
            packed.lock(self._locks)
        return all(packed.is_pinned for packed in self._packed)

    @property
    def streamed_bytes(self) -> int:
        """What travels to the GPU in every pass."""
        return sum(packed.data.numel() for packed in self._packed) if len(self._packed) > _NUM_SLOTS else 0

    def is_streamed(self, module: nn.Module) -> bool:
        """Whether `module` is one of the blocks that travel."""
        return any(module is block for block in self._streamed)

    @contextmanager
    def running(self) -> Generator[None]:
        """Have the slots on the GPU and the blocks hooked inside the `with`; afterwards the slots are gone.

        On a CPU there is nowhere to stream to: blocks compute from the RAM where they are packed.
        """
        if self.device.type != "cuda":
            yield
            return
        hooks = [
            hook
            for number, block in enumerate(self._streamed)
            for hook in (
                block.register_forward_pre_hook(partial(self._before, number)),
                block.register_forward_hook(partial(self._after, number)),
            )
        ]
        try:
            self._open_slots()
            yield
        finally:
            for hook in hooks:
                hook.remove()
            wait([slot.sent for slot in self._slots if slot.sent is not None])
            torch.cuda.current_stream(self.device).wait_stream(self._copies)  # the slots' memory may be used again
            self._slots.clear()
            for packed in self._packed:
                packed.bind(packed.data)

    def _open_slots(self) -> None:
        self._fetches = self.is_pinned  # one way for all blocks, so that copies keep their order
        size = max((packed.data.numel() for packed in self._packed), default=0)
        for number in range(min(_NUM_SLOTS, len(self._packed))):
            data = torch.empty(size, dtype=torch.uint8, device=self.device)
            slot = _Slot(data, torch.cuda.Event(), torch.cuda.Event())
            slot.free.record(torch.cuda.current_stream(self.device))
            self._slots.append(slot)
            self._fetch(number, slot)

    def _before(self, number: int, *call: object) -> None:
        """Point the block to its slot; the computing stream waits for the copy, the CPU at most for its sending."""
        slot = next((slot for slot in self._slots if slot.holds == number), None)
        if slot is None:  # a pass was left early, and another one is in the slots
            slot = self._slots[number % len(self._slots)]
            slot.free.record(torch.cuda.current_stream(self.device))
            self._fetch(number, slot)
        if slot.sent is not None:
            slot.sent.result()
        torch.cuda.current_stream(self.device).wait_event(slot.full)
        self._packed[number].bind(slot.data)

    def _after(self, number: int, *call: object) -> None:
        """The slot of this block is free for the block after the next."""
        slot = next(slot for slot in self._slots if slot.holds == number)
        slot.free.record(torch.cuda.current_stream(self.device))
        self._fetch((number + len(self._slots)) % len(self._packed), slot)

    def _fetch(self, number: int, slot: _Slot) -> None:
        if slot.holds == number:
            return
        slot.holds = number
        packed, is_locked = self._packed[number].data, self._packed[number].is_pinned
        if not self._fetches:
            slot.sent = self._carrier.carry(packed, slot.data, is_locked=is_locked, free=slot.free, full=slot.full)
            return
        with torch.cuda.stream(self._copies):
            self._copies.wait_event(slot.free)
            slot.data[: packed.numel()].copy_(packed, non_blocking=True)
            slot.full.record(self._copies)


@dataclass(frozen=True)
class StreamedStage:
    """Has a network with streamed blocks ready for its stage: the rest of it stays on the GPU from the first on."""

    module: nn.Module
    offloader: BlockOffloader

    @contextmanager
    def running(self) -> Generator[None]:
        """Have everything but the streamed blocks on the GPU, and these on their way, inside the `with`."""
        for owner, leaf, tensor in tensors_outside(self.module, self.offloader.is_streamed):
            if tensor.device.type == self.offloader.device.type:
                continue
            _assign(owner, leaf, tensor, tensor.detach().to(self.offloader.device))
        with self.offloader.running():
            yield


@contextmanager
def visiting(module: nn.Module, blocks: Sequence[nn.Module], device: torch.device) -> Generator[None]:
    """Have `module` on the device inside the `with`, each of its blocks only while it computes.

    Nothing is packed and nothing runs ahead: for a network that is called once or twice.
    """
    homes = tensors_outside(module, lambda part: any(part is block for block in blocks))
    residency, stages = Residency(device), dict[nn.Module, ExitStack]()

    def come(block: nn.Module, *call: object) -> None:
        stages[block] = ExitStack()
        stages[block].enter_context(residency.on_stage(block))

    def go(block: nn.Module, *call: object) -> None:
        stages.pop(block).close()

    with ExitStack() as at_end:
        for owner, leaf, tensor in homes:
            at_end.callback(setattr, owner, leaf, tensor)
            _assign(owner, leaf, tensor, tensor.detach().to(device))
        for block in blocks:
            at_end.callback(block.register_forward_pre_hook(come).remove)
            at_end.callback(block.register_forward_hook(go).remove)
        yield


def tensors_outside(module: nn.Module, is_block: Callable[[nn.Module], bool]) -> list[tuple[nn.Module, str, Tensor]]:
    """The parameters and buffers of a network that are in none of its blocks: owner, name, value."""
    found = [(module, leaf, tensor) for leaf, tensor in own_tensors(module)]
    for child in module.children():
        if not is_block(child):
            found += tensors_outside(child, is_block)
    return found


def _assign(owner: nn.Module, leaf: str, before: Tensor, value: Tensor) -> None:
    setattr(owner, leaf, nn.Parameter(value, requires_grad=False) if isinstance(before, nn.Parameter) else value)


def streamed_numbers(num_blocks: int, num_resident: int) -> list[int]:
    """Which blocks travel, spread evenly; the first of each group stays, so that a copy is under way from the start."""
    num_streamed = num_blocks - max(0, min(num_resident, num_blocks))
    return [(i + 1) * num_blocks // num_streamed - 1 for i in range(num_streamed)]
