"""Weight files as tables of tensors: names, shapes and dtypes are known, the values are not read.

What a file holds in one piece can be read straight to its final place (`TensorRef.span`, `reading.py`); what is made of
other values is read with `TensorRef.load`, one tensor at a time.

For the latter, files are mapped, not read whole. Pages of a mapping that were touched count as the process's memory
until the mapping goes, so after reading a 65 GB file through one mapping a program seems to hold 65 GB. The mapping is
therefore dropped and made anew after every `RELEASE_AFTER_BYTES`.

`.pth` files go through torch's restricted unpickler: a file that asks for anything but tensors is refused.
"""

from __future__ import annotations

import pickle
import pickletools
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from infinitalk_cli.errors import WeightsError
from infinitalk_cli.memory.reading import FileSpan, pickle_spans, safetensors_spans

RELEASE_AFTER_BYTES = 64 * 2**20

SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

TensorGetter = Callable[[str], Tensor]


@dataclass(frozen=True)
class TensorRef:
    """A tensor in a file that has not been read yet."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    path: Path
    read: Callable[[], Tensor] = field(repr=False, compare=False)

    def load(self) -> Tensor:
        """The values; they may lie in the mapped file, so copy what is to be kept."""
        return self.read()

    @property
    def span(self) -> FileSpan | None:
        """Where the values lie in the file just as they are, in one piece; None where something is made of them."""
        return self.read.span if isinstance(self.read, _StoredTensor) else None

    def rows(self, start: int, stop: int) -> TensorRef:
        """Rows `start` to `stop` of the first axis, still unread."""
        shape = (stop - start, *self.shape[1:])
        return self._part(shape, start, lambda: self.read()[start:stop])

    def reshaped(self, *shape: int) -> TensorRef:
        """The same values under another shape, still unread."""
        return self._part(shape, 0, lambda: self.read().reshape(shape))

    def _part(self, shape: tuple[int, ...], first_row: int, read: Callable[[], Tensor]) -> TensorRef:
        """Values that lie in one piece in these, from a row on."""
        if self.span is not None:
            start = self.span.start + first_row * prod(self.shape[1:]) * self.dtype.itemsize
            read = _StoredTensor(read, FileSpan(self.span.path, start, prod(shape) * self.dtype.itemsize))
        return replace(self, shape=shape, read=read)


class _MappedFile:
    """Reads tensors of one file and drops the mapping, and with it the touched pages, every so often."""

    def __init__(self, path: Path, open_getter: Callable[[Path], TensorGetter]) -> None:
        self._path = path
        self._open_getter = open_getter
        self._getter: TensorGetter | None = None
        self._touched_bytes = 0

    def read(self, name: str) -> Tensor:
        if self._getter is None or self._touched_bytes >= RELEASE_AFTER_BYTES:
            self._getter = None
            self._getter = self._open_getter(self._path)
            self._touched_bytes = 0
        tensor = self._getter(name)
        self._touched_bytes += tensor.nbytes
        return tensor


@dataclass(frozen=True)
class _StoredTensor:
    """Reads values that are in a file just as they are, in one piece."""

    read: Callable[[], Tensor]
    span: FileSpan

    def __call__(self) -> Tensor:
        return self.read()


def open_tensors(paths: Path | Iterable[Path]) -> dict[str, TensorRef]:
    """The tensors of one or more weight files, none of them read; a later file wins over an earlier one.

    Raises: WeightsError: a file is missing, cut short, not a weight file, or a pickle with code in it.
    """
    tensors: dict[str, TensorRef] = {}
    for path in [paths] if isinstance(paths, Path) else paths:
        list_tensors = _list_safetensors if path.suffix == ".safetensors" else _list_pickle
        tensors.update((ref.name, ref) for ref in list_tensors(path))
    return tensors


def merge_tensors(base: Mapping[str, TensorRef], adapter: Mapping[str, TensorRef]) -> dict[str, TensorRef]:
    """Base and adapter as one table; where both hold a name the adapter's tensor counts."""
    return {**base, **adapter}


def _list_safetensors(path: Path) -> list[TensorRef]:
    file = _MappedFile(path, lambda path: cast("TensorGetter", _open_safetensors(path).get_tensor))
    handle = _open_safetensors(path)
    spans = safetensors_spans(path)
    refs: list[TensorRef] = []
    for name in cast("list[str]", handle.keys()):
        header = handle.get_slice(name)
        dtype = SAFETENSORS_DTYPES.get(header.get_dtype())
        if dtype is None:
            raise WeightsError(f"{path}: {name} has the unknown dtype {header.get_dtype()}")
        refs.append(
            TensorRef(
                name, tuple(header.get_shape()), dtype, path, _StoredTensor(partial(file.read, name), spans[name])
            )
        )
    return refs


def _open_safetensors(path: Path) -> Any:  # safetensors has no types
    try:
        return cast("Any", safe_open)(str(path), framework="pt", device="cpu")
    except FileNotFoundError as error:
        raise _missing_file(path) from error
    except (OSError, SafetensorError) as error:
        raise damaged_file(path, error) from error


def _list_pickle(path: Path) -> list[TensorRef]:
    file = _MappedFile(path, lambda path: _open_pickle(path).__getitem__)
    content = _open_pickle(path)
    spans = pickle_spans(path, content)
    refs: list[TensorRef] = []
    for name, tensor in content.items():
        read = partial(file.read, name)
        stored = _StoredTensor(read, spans[name]) if name in spans else read
        refs.append(TensorRef(name, tuple(tensor.shape), tensor.dtype, path, stored))
    return refs


def _open_pickle(path: Path) -> dict[str, Tensor]:
    """A flat dict of tensors, mapped where the file's form allows it."""
    try:
        content = _unpickle(path)
    except FileNotFoundError as error:
        raise _missing_file(path) from error
    except pickle.UnpicklingError as error:
        if _holds_whole_pickle(path):  # sound, and yet not only tensors
            raise WeightsError(
                f"{path} is a pickle with code in it and is refused: weight files may hold tensors only",
                hint="Delete the file, do not open it with other programs, and fetch the published one: talk download",
            ) from error
        raise damaged_file(path, ValueError("it is no file of tensors")) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, AttributeError, IndexError) as error:
        raise damaged_file(path, error) from error
    if not isinstance(content, dict) or not all(
        isinstance(v, Tensor) for v in cast("dict[Any, Any]", content).values()
    ):
        raise WeightsError(f"{path} does not hold a flat table of tensors", hint="Fetch it again: talk download")
    return cast("dict[str, Tensor]", content)


def _unpickle(path: Path) -> object:
    with path.open("rb") as file:
        is_zip = file.read(2) == b"PK"  # torch's older form is a bare pickle and can't be mapped
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # remarks on the pickle's protocol, meant for torch's developers
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)


def _holds_whole_pickle(path: Path) -> bool:
    """Whether a pickle can be followed to its end, without doing what it says."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
                return _ends(archive.read(name))
        with path.open("rb") as file:
            return _ends(file)
    except (OSError, ValueError, StopIteration, zipfile.BadZipFile):
        return False


def _ends(pickled: bytes | BinaryIO) -> bool:
    return any(opcode.name == "STOP" for opcode, _, _ in pickletools.genops(pickled))


def _missing_file(path: Path) -> WeightsError:
    return WeightsError(f"{path} does not exist", hint="Fetch it: talk download")


def damaged_file(path: Path, error: Exception) -> WeightsError:
    """The error for a file that can't be read to its end."""
    length = f"{path.stat().st_size:,} bytes" if path.is_file() else "not a file"
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return WeightsError(
        f"{path} ({length}) is damaged or was cut short: {reason}",
        hint="Delete the file and fetch it again: talk download",
    )
