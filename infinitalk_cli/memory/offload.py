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

Where RAM has no room for all streamed blocks, some of them are read from their files in every pass, a little ahead
(`read_ahead.py`); they lie evenly among the others, so that the disk has as much time for each. `num_stored` tells.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from infinitalk_cli.memory.carrying import Carrier
from infinitalk_cli.memory.packed import PackedBlock, PageLocks
from infinitalk_cli.memory.read_ahead import HasLeft, ReadAhead, StoredPart, at_once, make_ring

_NUM_SLOTS = 2


@dataclass
class _Slot:
    """Room for one block on the GPU.

    `holds`: number of the block in it. Events: copied to; computed with. `sent`: by a thread, behind which `full` is to
    be looked at. `is_new`: nobody has computed with what is in it.
    """

    data: Tensor
    full: torch.cuda.Event
    free: torch.cuda.Event
    holds: int | None = None
    sent: Future[None] | None = None
    is_new: bool = False


@dataclass(frozen=True)
class BlockFiles:
    """Where blocks can be read in every pass. `parts`: for each block, by the names in it of tensors that a file holds
    as they are computed with. `most_in_ram`: streamed blocks that RAM has room for; those beyond are read."""

    parts: Sequence[Mapping[str, StoredPart]]
    most_in_ram: int


class BlockOffloader:
    """Streams the blocks of a network through two slots of a GPU.

    Blocks may be on the `meta` device still: those to be streamed then get their room in RAM, where their values are to
    be read into, and the others are left to who reads. `left_in_files` names what nobody is to read.

    Args:
        blocks: called in this order in every pass; equal in size, or nearly.
        num_resident: how many stay on the GPU; all but the others.
        pin: page-lock the RAM of streamed blocks. Locking takes time: not for a network that runs once.
        files: from which to read what RAM has no room for; None if it has room for all.
    Attributes: arrived: told the number of a block that comes from files, whenever it is there and before it computes.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        device: torch.device,
        *,
        num_resident: int = 0,
        pin: bool = True,
        files: BlockFiles | None = None,
    ) -> None:
        self.device, self._blocks, self._files = device, blocks, files
        self.arrived: Callable[[int], None] = lambda number: None
        self._locks = PageLocks(device) if pin and device.type == "cuda" else None
        self._numbers: list[int] = []
        self._packed: list[PackedBlock] = []
        self._slots: list[_Slot] = []
        self._fetches = True
        self._ahead: ReadAhead | None = None
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
        leave = [stay[place] for place in streamed_numbers(len(stay), num_resident)]
        stored = self._beyond_ram(leave, packed)
        for number in leave:
            packed[number] = PackedBlock(self._blocks[number], stored.get(number))
        self._numbers = sorted(packed)
        self._packed = [packed[number] for number in self._numbers]

    @property
    def num_stored(self) -> int:
        """How many blocks are read from files in every pass."""
        return len(self._stored)

    @property
    def stored_bytes(self) -> int:
        """What is read from files in every pass."""
        return sum(part.source.num_bytes for packed in self._stored for part in packed.parts)

    def left_in_files(self, number: int) -> Collection[str]:
        """The tensors of a block, by their names in it, that have no values but while they compute."""
        packed = dict(zip(self._numbers, self._packed, strict=True)).get(number)
        return self._files.parts[number].keys() if self._files and packed and packed.parts else ()

    def _beyond_ram(
        self, leave: Sequence[int], packed: Mapping[int, PackedBlock]
    ) -> dict[int, Mapping[str, StoredPart]]:
        """Of blocks that leave the GPU those for which RAM has no room, spread evenly; what of each is in files."""
        if self._files is None:
            return {}
        room = self._files.most_in_ram - sum(not block.parts for block in packed.values())
        return {leave[place]: self._files.parts[leave[place]] for place in streamed_numbers(len(leave), room)}

    @property
    def _stored(self) -> list[PackedBlock]:
        return [packed for packed in self._packed if packed.parts]

    @property
    def _streamed(self) -> list[nn.Module]:
        return [self._blocks[number] for number in self._numbers]

    @cached_property
    def _copies(self) -> torch.cuda.Stream:
        return torch.cuda.Stream(self.device)

    @cached_property
    def _carrier(self) -> Carrier:
        return Carrier(self._copies)

    @cached_property
    def _ring(self) -> Sequence[Tensor]:
        return make_ring()

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
        return sum(packed.num_bytes for packed in self._packed) if len(self._packed) > _NUM_SLOTS else 0

    def is_streamed(self, module: nn.Module) -> bool:
        """Whether `module` is one of the blocks that travel."""
        return any(module is block for block in self._streamed)

    @contextmanager
    def running(self) -> Generator[None]:
        """Have the slots on the GPU and the blocks hooked inside the `with`; afterwards the slots are gone.

        On a CPU there is nowhere to stream to: blocks compute from the RAM where they are packed, those from files from
        RAM for one of them.
        """
        on_gpu = self.device.type == "cuda"
        before, after = (self._before, self._after) if on_gpu else (self._before_in_ram, self._after_in_ram)
        hooks = [
            hook
            for rank, block in enumerate(self._streamed)
            if on_gpu or self._packed[rank].parts
            for hook in (
                block.register_forward_pre_hook(partial(before, rank)),
                block.register_forward_hook(partial(after, rank)),
            )
        ]
        try:
            if self.num_stored:
                self._ahead = ReadAhead([packed.parts for packed in self._stored], self._ring)
            if on_gpu:
                self._open_slots()
            yield
        finally:
            for hook in hooks:
                hook.remove()
            self._close()

    def _open_slots(self) -> None:
        self._fetches = self.is_pinned and not self.num_stored  # one way for all blocks: copies keep their order
        size = max((packed.num_bytes for packed in self._packed), default=0)
        for number in range(min(_NUM_SLOTS, len(self._packed))):
            data = torch.empty(size, dtype=torch.uint8, device=self.device)
            slot = _Slot(data, torch.cuda.Event(), torch.cuda.Event())
            slot.free.record(torch.cuda.current_stream(self.device))
            self._slots.append(slot)
            self._fetch(number, slot)

    def _close(self) -> None:
        """Wait for what is under way, and let go of the slots."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None
        if self.device.type == "cuda":
            wait([slot.sent for slot in self._slots if slot.sent is not None])
            torch.cuda.current_stream(self.device).wait_stream(self._copies)  # the slots' memory may be used again
            if self.num_stored:
                self._copies.synchronize()  # and so may the ring
            self._slots.clear()
        for packed in self._packed:
            packed.rest()

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
        if slot.is_new and self._packed[number].parts:
            self.arrived(self._numbers[number])
        slot.is_new = False

    def _after(self, number: int, *call: object) -> None:
        """The slot of this block is free for the block after the next."""
        slot = next(slot for slot in self._slots if slot.holds == number)
        slot.free.record(torch.cuda.current_stream(self.device))
        self._fetch((number + len(self._slots)) % len(self._packed), slot)

    def _fetch(self, number: int, slot: _Slot) -> None:
        if slot.holds == number:
            return
        slot.holds, slot.is_new = number, True
        if not self._fetches:
            send = partial(self._send, number, slot.data)
            slot.sent = self._carrier.carry(send, free=slot.free, full=slot.full)
            return
        packed = self._packed[number].data
        with torch.cuda.stream(self._copies):
            self._copies.wait_event(slot.free)
            slot.data[: packed.numel()].copy_(packed, non_blocking=True)
            slot.full.record(self._copies)

    def _send(self, number: int, target: Tensor) -> None:
        """Ask for the copies of a block, on the thread that carries."""
        packed = self._packed[number]
        front = target[: packed.data.numel()]
        if packed.is_pinned:
            front.copy_(packed.data, non_blocking=True)
        else:
            self._carrier.send_in_pieces(packed.data, front)
        self._take_stored(number, partial(self._carrier.send_stored, target))

    def _take_stored(self, number: int, send: Callable[[StoredPart, Tensor], HasLeft]) -> None:
        """Have what is in files of a block, if something is, sent as it is read."""
        if self._ahead is not None and self._packed[number].parts:
            self._ahead.take(sum(bool(packed.parts) for packed in self._packed[:number]), send)

    def _before_in_ram(self, number: int, *call: object) -> None:
        """Put a block together in RAM of its own."""
        packed = self._packed[number]
        room = torch.empty(packed.num_bytes, dtype=torch.uint8)
        room[: packed.data.numel()] = packed.data

        def copy(piece: StoredPart, read: Tensor) -> HasLeft:
            room[piece.start : piece.start + read.numel()] = read
            return at_once

        self._take_stored(number, copy)
        packed.bind(room)
        self.arrived(self._numbers[number])

    def _after_in_ram(self, number: int, *call: object) -> None:
        self._packed[number].rest()


def streamed_numbers(num_blocks: int, num_resident: int) -> list[int]:
    """Which blocks travel, spread evenly; the first of each group stays, so that a copy is under way from the start."""
    num_streamed = num_blocks - max(0, min(num_resident, num_blocks))
    return [(i + 1) * num_blocks // num_streamed - 1 for i in range(num_streamed)]
