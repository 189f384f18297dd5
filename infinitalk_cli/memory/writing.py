"""A safetensors file written tensor by tensor: the header first, for shapes and dtypes tell where everything will lie.

RAM holds one slice of one tensor. Bytes go beside the target, into a file whose name carries a digest of the header;
it is renamed when it is whole. The same header with the same sources gives the same bytes, so an attempt that was
killed is continued at the last tensor that it had finished, and a header that says anything else begins anew.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from infinitalk_cli.memory.tensor_files import SAFETENSORS_DTYPES

READ_BYTES = 4 * 2**20
HEADER_ALIGNMENT = 8
NAMED_HEX_DIGITS = 16
SUFFIX = ".part"

DTYPE_NAMES = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}


@dataclass(frozen=True)
class TensorToWrite:
    """A tensor that will be made when its turn comes, as slices along its first axis, in order."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    slices: Callable[[], Iterator[Tensor]] = field(repr=False, compare=False)

    @property
    def num_bytes(self) -> int:
        """Its length in the file."""
        return prod(self.shape) * self.dtype.itemsize


class SafetensorsWriter:
    """One file to be written. `num_bytes`: of the whole file; `part`: where it grows."""

    def __init__(self, path: Path, tensors: Iterable[TensorToWrite], metadata: Mapping[str, str]) -> None:
        self.path = path
        self._tensors = _aligned(list(tensors))
        self._header = _header(self._tensors, metadata)
        self.num_bytes = len(self._header) + sum(tensor.num_bytes for tensor in self._tensors)
        digest = hashlib.sha256(self._header).hexdigest()[:NAMED_HEX_DIGITS]
        self.part = path.with_name(f"{path.name}.{digest}{SUFFIX}")

    @property
    def have_bytes(self) -> int:
        """How much of an earlier attempt can be kept."""
        return self._resume_at()[1]

    def write(self, on_bytes: Callable[[int], None] = lambda count: None) -> str:
        """Write what is missing and put the file into its place.

        Args: on_bytes: told how many more bytes are there, those of an earlier attempt first; may raise to stop.
        Returns: the SHA-256 of the file. Raises: OSError: if the disk is full or can't be written to.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for other in self.path.parent.glob(f"{self.path.name}.*{SUFFIX}"):
            if other != self.part or other.is_symlink():  # a link may lead to a file that is not ours to write
                other.unlink(missing_ok=True)
        next_tensor, kept_bytes = self._resume_at()
        hasher = hashlib.sha256()
        with self.part.open("r+b" if kept_bytes else "w+b", buffering=0) as file:
            file.truncate(kept_bytes)
            while data := file.read(READ_BYTES):
                hasher.update(data)
                on_bytes(len(data))
            for data in self._rest(next_tensor, is_new=not kept_bytes):
                _write_all(file, data)
                hasher.update(data)
                on_bytes(len(data))
            os.fsync(file.fileno())
        self.part.replace(self.path)
        return hasher.hexdigest()

    def _rest(self, next_tensor: int, *, is_new: bool) -> Iterator[memoryview]:
        if is_new:
            yield memoryview(self._header)
        for tensor in self._tensors[next_tensor:]:
            num_bytes = 0
            for piece in tensor.slices():
                data = _bytes_of(piece.to(tensor.dtype))
                num_bytes += len(data)
                yield data
            assert num_bytes == tensor.num_bytes, f"{tensor.name} has {num_bytes} bytes, not {tensor.num_bytes}"

    def _resume_at(self) -> tuple[int, int]:
        """The first tensor to write, and the bytes before it that are there: none if the header is not whole."""
        try:
            found_bytes = self.part.stat().st_size
            with self.part.open("rb") as file:
                is_ours = file.read(len(self._header)) == self._header
        except OSError:
            return 0, 0
        if not is_ours:
            return 0, 0
        end = len(self._header)
        for index, tensor in enumerate(self._tensors):
            if end + tensor.num_bytes > found_bytes:
                return index, end
            end += tensor.num_bytes
        return len(self._tensors), end


def _aligned(tensors: list[TensorToWrite]) -> list[TensorToWrite]:
    """As they are if each then begins at a multiple of its item size, which readers that map files need.

    Else the widest items first.
    """
    offset = 0
    for tensor in tensors:
        if offset % tensor.dtype.itemsize:
            return sorted(tensors, key=lambda tensor: -tensor.dtype.itemsize)
        offset += tensor.num_bytes
    return tensors


def _header(tensors: Sequence[TensorToWrite], metadata: Mapping[str, str]) -> bytes:
    table: dict[str, object] = {"__metadata__": dict(metadata)}
    offset = 0
    for tensor in tensors:
        end = offset + tensor.num_bytes
        table[tensor.name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(table, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % HEADER_ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def _write_all(file: io.FileIO, data: memoryview) -> None:
    """Write to an unbuffered file, which may take less than it is given."""
    while data:
        data = data[file.write(data) :]
