"""A block's tensors in one piece of RAM that the GPU can fetch by itself.

The piece is made before the values are read, so that files are read straight into it: a block is in RAM once. Its pages
are as large as the system has them, and they are locked, by several threads, when the values are there: the threads
that read come by all pages on their way, and what is there is quickly locked. 2 GB were read and locked by two threads
in 0.5 s; in 1.3 s with common pages, in 2 s where large pages were locked while others read (Linux, `mlock`).

Locked pages can't be swapped out, and a system without others ends programs. So where RAM is short, or the system
refuses, a piece stays common RAM.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from infinitalk_cli.memory.loading import own_tensors
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

    def bind(self, packed: Tensor) -> None:
        """Let the owner use the part of `packed` that is this tensor."""
        num_bytes = self.shape.numel() * self.dtype.itemsize
        value = packed[self.start : self.start + num_bytes].view(self.dtype).view(self.shape)
        setattr(self.owner, self.leaf, nn.Parameter(value, requires_grad=False) if self.is_parameter else value)


class PackedBlock:
    """The tensors of a block in one piece of RAM; they live on as parts of it.

    A block on the `meta` device gets room, to be filled by whoever made it; any other keeps its values.
    """

    def __init__(self, block: nn.Module) -> None:
        self._places, num_bytes = _plan(block)
        self.data = large_pages(num_bytes)
        self._locked: Future[bool] | None = None
        for place in self._places:
            tensor: Tensor = getattr(place.owner, place.leaf).detach()
            place.bind(self.data)
            if not tensor.is_meta:
                getattr(place.owner, place.leaf).data.copy_(tensor)

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
        for place in self._places:
            place.bind(packed)


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


def _plan(block: nn.Module) -> tuple[list[_Place], int]:
    """The places of a block's tensors in its packed form, and its size in bytes."""
    places: list[_Place] = []
    start = 0
    for owner, leaf, tensor in _tensors(block):
        is_parameter = isinstance(tensor, nn.Parameter)
        places.append(_Place(owner, leaf, start, tensor.shape, tensor.dtype, is_parameter))
        start += -(-tensor.numel() * tensor.element_size() // ALIGNMENT) * ALIGNMENT
    return places, start


def _tensors(block: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    for owner in block.modules():
        for leaf, tensor in own_tensors(owner):
            yield owner, leaf, tensor
