"""Bytes of weight files to where they are needed, by several threads at once.

One thread that touches the pages of a mapped file gets 2 to 3 GB/s out of the system, even when the file is in its
cache, and waits for every single page when it is not. So tensors that are stored as they are wanted are read piece by
piece with plain reads, which release Python's lock, by a few threads:

- into RAM, straight to their final place;
- to a GPU, through two page-locked pieces a thread: while one is on its way, on a stream of the thread's own, the next
  is read into the other.

Another dtype is made piece by piece as well, on the side of the target. Beyond the targets this takes two or three
pieces of RAM a thread, whatever the size of the files. Which thread reads what is left to chance, the result is not.
A file that is cut while it is read gives an error, where a mapping would end the program.
"""

from __future__ import annotations

import json
import mmap
import os
import queue
import struct
import threading
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor

PIECE_BYTES = 8 * 2**20
"""Read at a time."""
LARGE_PAGES_FROM_BYTES = 4 * 2**20
"""Less is left to torch: such a page has 2 MiB."""
MAX_THREADS = 8
"""More are no faster from a cache, and disks have enough to do with these."""


class FileCutShortError(OSError):
    """A file ends before the bytes that its header speaks of. `filename` names it."""


@dataclass(frozen=True)
class FileSpan:
    """A run of bytes in a file."""

    path: Path
    start: int
    num_bytes: int


@dataclass(frozen=True, eq=False)
class Filling:
    """Values of `dtype` in a file, and the dense tensor, of any dtype, that is to have them."""

    source: FileSpan
    dtype: torch.dtype
    target: Tensor

    def pieces(self) -> Iterator[Filling]:
        """The same in pieces that are read one at a time."""
        flat = self.target.view(-1)
        at_once = PIECE_BYTES // max(self.dtype.itemsize, self.target.dtype.itemsize)
        for first in range(0, flat.numel(), at_once):
            part = flat[first : first + at_once]
            start = self.source.start + first * self.dtype.itemsize
            yield Filling(FileSpan(self.source.path, start, part.numel() * self.dtype.itemsize), self.dtype, part)


def safetensors_spans(path: Path) -> dict[str, FileSpan]:
    """Where each tensor lies in a safetensors file that the library has found sound."""
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(header_bytes))
    header.pop("__metadata__", None)
    begin = 8 + header_bytes
    ends = {name: cast("tuple[int, int]", entry["data_offsets"]) for name, entry in header.items()}
    return {name: FileSpan(path, begin + start, stop - start) for name, (start, stop) in ends.items()}


def pickle_spans(path: Path, content: Mapping[str, Tensor]) -> dict[str, FileSpan]:
    """Where the dense tensors of a mapped file of torch's zip form lie in it.

    The pickle does not say which record holds which tensor, the mapping does: storages lie in it as records do in the
    file. Nothing is found if the two do not agree in every length and distance.
    """
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in content.values()}
    places = sorted(place for place, num_bytes in storages.items() if num_bytes)
    records = _stored_records(path)
    if not places or len(places) != len(records):
        return {}
    begin = places[0] - min(records)  # of the file, in memory
    if any(records.get(place - begin) != storages[place] for place in places):
        return {}
    return {
        name: FileSpan(path, tensor.data_ptr() - begin, tensor.nbytes)
        for name, tensor in content.items()
        if tensor.is_contiguous() and tensor.nbytes
    }


def _stored_records(path: Path) -> dict[int, int]:
    """The records of values in a zip file of torch's: where each begins, and its length; none in another file."""
    if not zipfile.is_zipfile(path):
        return {}
    found: dict[int, int] = {}
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        for record in archive.infolist():
            if "/data/" not in record.filename or not record.file_size or record.compress_type != zipfile.ZIP_STORED:
                continue
            file.seek(record.header_offset + 26)  # lengths of the name and the padding that precede the values
            name_bytes, padding_bytes = struct.unpack("<HH", file.read(4))
            found[record.header_offset + 30 + name_bytes + padding_bytes] = record.file_size
    return found


def fill(fillings: Sequence[Filling]) -> None:
    """Give all targets their values; they are there when this returns. Targets may be in RAM and on GPUs.

    Raises: FileCutShortError, OSError: with the file's name.
    """
    waiting = queue.SimpleQueue[Filling]()
    for filling in fillings:
        for piece in filling.pieces():
            waiting.put(piece)
    num_threads = min(MAX_THREADS, os.cpu_count() or 1, waiting.qsize())
    if num_threads == 0:
        return
    devices = {filling.target.device for filling in fillings}
    crews = [
        {device: _ToGpu(device) if device.type == "cuda" else _ToRam() for device in devices}
        for _ in range(num_threads)
    ]
    stop = threading.Event()
    with ThreadPoolExecutor(num_threads, thread_name_prefix="weights") as pool:
        try:
            for done in [pool.submit(_work, crew, waiting, stop) for crew in crews]:
                done.result()
        finally:
            stop.set()  # after Ctrl-C or an error nobody starts another piece


def _work(
    crew: Mapping[torch.device, _ToRam | _ToGpu], waiting: queue.SimpleQueue[Filling], stop: threading.Event
) -> None:
    """Move pieces, each by who goes to its device, until none is left. An error stops the other threads, too."""
    files: dict[Path, BinaryIO] = {}
    with ExitStack() as opened:
        try:
            while not stop.is_set():
                piece = waiting.get_nowait()
                path = piece.source.path
                if path not in files:
                    files[path] = opened.enter_context(path.open("rb", buffering=0))
                crew[piece.target.device].move(piece, files[path])
        except queue.Empty:
            pass
        except BaseException:
            stop.set()
            raise
        finally:
            for mover in crew.values():
                mover.finish()


class _ToRam:
    """Reads pieces straight into their targets, or beside them where the dtype changes."""

    def __init__(self) -> None:
        self._beside: Tensor | None = None

    def move(self, piece: Filling, file: BinaryIO) -> None:
        if piece.dtype == piece.target.dtype:
            read_span(piece.source, file, piece.target)
            return
        if self._beside is None:
            self._beside = torch.empty(PIECE_BYTES, dtype=torch.uint8)
        stored = self._beside[: piece.source.num_bytes].view(piece.dtype)
        read_span(piece.source, file, stored)
        piece.target.copy_(stored)

    def finish(self) -> None:
        """Nothing is under way."""


class _ToGpu:
    """Reads pieces into page-locked RAM and sends them on; a dtype changes on the GPU.

    To be made where the targets were: its stream waits for what was begun there.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._stream.wait_stream(torch.cuda.current_stream(device))
        self._stages = [(page_locked(PIECE_BYTES), torch.cuda.Event()) for _ in range(2)]

    def move(self, piece: Filling, file: BinaryIO) -> None:
        stage, has_left = self._stages[0]
        self._stages.reverse()
        has_left.synchronize()
        stored = stage[: piece.source.num_bytes].view(piece.dtype)
        read_span(piece.source, file, stored)
        with torch.cuda.stream(self._stream):
            if piece.dtype != piece.target.dtype:
                stored = stored.to(self._device, non_blocking=True)
            piece.target.copy_(stored, non_blocking=True)
            has_left.record()

    def finish(self) -> None:
        """Wait for what is under way."""
        self._stream.synchronize()


def large_pages(num_bytes: int) -> Tensor:
    """Bytes of RAM, without values, in pages as large as the system gives: many of them are quicker to come by."""
    if num_bytes < LARGE_PAGES_FROM_BYTES or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(num_bytes, dtype=torch.uint8)
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)


def page_locked(num_bytes: int) -> Tensor:
    """Bytes of RAM that the GPU can fetch by itself; common RAM, which is slower, where the system refuses."""
    try:
        return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)
    except RuntimeError:
        return torch.empty(num_bytes, dtype=torch.uint8)


def read_span(source: FileSpan, file: BinaryIO, target: Tensor) -> None:
    """Fill a flat tensor in RAM with bytes of an open file. Raises: FileCutShortError, OSError."""
    left = target.view(torch.uint8).numpy().data.cast("B")
    file.seek(source.start)
    while len(left):
        num_read = file.readinto(left)  # pyright: ignore[reportAttributeAccessIssue]  a raw file has it
        if not num_read:
            raise FileCutShortError(None, "it ends before its last tensor", str(source.path))
        left = left[num_read:]
