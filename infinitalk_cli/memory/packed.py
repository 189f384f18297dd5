"""A block's tensors in one piece of RAM that the GPU can fetch by itself.

The piece is made before the values are read, so that files are read straight into it: a block is in RAM once. Its pages
are as large as the system has them, and they are locked, by several threads, when the values are there: the threads
that read come by all pages on their way, and what is there is quickly locked. 2 GB were read and locked by two threads
in 0.5 s; in 1.3 s with common pages, in 2 s where large pages were locked while others read (Linux, `mlock`).

Locked pages can't be swapped out, and a system without others ends programs. So where RAM is short, or the system
refuses, a piece stays common RAM.

Where RAM has no room for a block at all, only its small tensors and those that are made of other values are in the
piece. The others stay in their files, if these hold them as they are computed with, to be read in every pass.
"""

from __future__ import annotations

import weakref
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from infinitalk_cli.memory.loading import own_tensors
from infinitalk_cli.memory.read_ahead import StoredPart
from infinitalk_cli.memory.reading import large_pages

ALIGNMENT = 256
"""Bytes between the starts of tensors in a packed block: what a tensor of its own would have."""
LOCK_THREADS = 4
SPARE_BYTES = 1_500_000_000
"""RAM that is to be free where more of it is locked."""


@dataclass(frozen=True)
class _Place:
    """Where a tensor of a block lies in its packed form, and who owns it."""

    owner: nn.Module
    leaf: str
    start: int
    shape: torch.Size
    dtype: torch.dtype
    is_parameter: bool

    @property
    def end(self) -> int:
        """Where the next tensor may begin."""
        return self.start + -(-self.shape.numel() * self.dtype.itemsize // ALIGNMENT) * ALIGNMENT

    def bind(self, packed: Tensor | None) -> None:
        """Let the owner use the part of `packed` that is this tensor; None: a tensor without values."""
        if packed is None:
            value = torch.empty(self.shape, dtype=self.dtype, device="meta")
        else:
            num_bytes = self.shape.numel() * self.dtype.itemsize
            value = packed[self.start : self.start + num_bytes].view(self.dtype).view(self.shape)
        setattr(self.owner, self.leaf, nn.Parameter(value, requires_grad=False) if self.is_parameter else value)


class PackedBlock:
    """The tensors of a block in one piece of RAM; they live on as parts of it.

    A block on the `meta` device gets room, to be filled by whoever made it; any other keeps its values.

    Args: stored: parts of files, by the name in the block of the tensor that each holds. These tensors get no room and
        lose their values. They are `parts`, and come behind the others in the packed form.
    Attributes: data: the piece. num_bytes: of the whole packed form.
    """

    def __init__(self, block: nn.Module, stored: Mapping[str, StoredPart] | None = None) -> None:
        stored = stored or {}
        places = _plan(block, stored)
        self._held = [place for name, place in places.items() if name not in stored]
        self._rest = [place for name, place in places.items() if name in stored]
        self.parts = [replace(stored[name], start=place.start) for name, place in places.items() if name in stored]
        self.data = large_pages(max((place.end for place in self._held), default=0))
        self.num_bytes = max((place.end for place in places.values()), default=0)
        self._locked: Future[bool] | None = None
        for place in self._held:
            tensor: Tensor = getattr(place.owner, place.leaf).detach()
            place.bind(self.data)
            if not tensor.is_meta:
                getattr(place.owner, place.leaf).data.copy_(tensor)
        self._let_go()

    def lock(self, locks: PageLocks) -> None:
        """Begin to lock the piece, unless that was tried before."""
        if self._locked is None:
            self._locked = locks.begin(self.data)

    @property
    def is_pinned(self) -> bool:
        """Whether the GPU can fetch the piece by itself; known when the locking has come to its end."""
        return self._locked is not None and self._locked.result()

    def bind(self, packed: Tensor) -> None:
        """Let the block compute with the copy `packed`."""
        for place in (*self._held, *self._rest):
            place.bind(packed)

    def rest(self) -> None:
        """Let the block have what is in RAM of it, and no more."""
        for place in self._held:
            place.bind(self.data)
        self._let_go()

    def _let_go(self) -> None:
        for place in self._rest:
            place.bind(None)


class PageLocks:
    """Threads that lock memory for a GPU, some pieces at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._threads = ThreadPoolExecutor(LOCK_THREADS, thread_name_prefix="page-locks")

    def begin(self, data: Tensor) -> Future[bool]:
        """Have the memory of a tensor locked for as long as it lives; False if RAM is short or the system refuses."""
        return self._threads.submit(page_lock, data, self._device)


def page_lock(data: Tensor, device: torch.device) -> bool:
    """Lock the memory of a tensor in RAM for as long as it lives; False if RAM is short or the system refuses.

    torch's own pinned memory comes in powers of two: 15 % more of 37 GB.
    """
    if not data.numel():
        return True
    if psutil.virtual_memory().available < SPARE_BYTES:
        return False
    runtime: Any = torch.cuda.cudart()
    with torch.cuda.device(device):
        if int(runtime.cudaHostRegister(data.data_ptr(), data.numel(), 0)) == 0:
            weakref.finalize(data, runtime.cudaHostUnregister, data.data_ptr())
            return True
        with suppress(RuntimeError):  # the refusal would be blamed on the next kernel
            torch.zeros(1, device=device)
    return False


def _plan(block: nn.Module, last: Collection[str]) -> dict[str, _Place]:
    """The places of a block's tensors in its packed form by name, those of some names behind the others."""
    places: dict[str, _Place] = {}
    start = 0
    for name, owner, leaf, tensor in sorted(_tensors(block), key=lambda found: found[0] in last):
        place = _Place(owner, leaf, start, tensor.shape, tensor.dtype, isinstance(tensor, nn.Parameter))
        places[name], start = place, place.end
    return places


def _tensors(block: nn.Module) -> Iterator[tuple[str, nn.Module, str, Tensor]]:
    for prefix, owner in block.named_modules():
        for leaf, tensor in own_tensors(owner):
            yield f"{prefix}.{leaf}" if prefix else leaf, owner, leaf, tensor
