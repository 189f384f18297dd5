"""What the beginning and the length of a weight file tell about it, without reading its values and without torch.

A safetensors file states the place of every tensor: together they must fill the file exactly, so that a file that was
cut, continued wrongly or made up by hand is found in milliseconds. A `.pth` file is a zip archive, whose directory is
at its end. The header is foreign data: its size is bounded, and everything in it is checked before it is used.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, cast

LARGEST_HEADER_BYTES = 100_000_000
"""The format's own bound."""

LENGTH_BYTES = 8
METADATA = "__metadata__"
TORCH_SUFFIXES = (".pth", ".pt", ".bin")
BYTES_OF_DTYPE = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "U16": 2,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "U32": 4,
    "I32": 4,
    "F32": 4,
    "U64": 8,
    "I64": 8,
    "F64": 8,
    "C64": 8,
}


class DamagedHeaderError(ValueError):
    """The header is not what the format says."""


def header_problem(path: Path) -> str | None:
    """What is wrong with a file as far as its header and its length tell; None if nothing."""
    try:
        if path.suffix == ".safetensors":
            read_safetensors_header(path)
        elif path.suffix in TORCH_SUFFIXES:
            _check_archive(path)
        elif path.suffix == ".json":
            json.loads(path.read_bytes())
    except OSError as error:
        return f"can't be read: {error.strerror}"
    except (ValueError, RecursionError) as error:
        return str(error) or type(error).__name__
    return None


def read_safetensors_header(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Names, dtypes and shapes of a safetensors file's tensors.

    Raises: DamagedHeaderError: if the header is malformed or does not fill the file. OSError: if it can't be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(LENGTH_BYTES), "little")
        if size < LENGTH_BYTES or not 2 <= header_bytes <= min(LARGEST_HEADER_BYTES, size - LENGTH_BYTES):
            raise DamagedHeaderError(f"no safetensors file, or cut short: {size} bytes")
        text = file.read(header_bytes)
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_once_each)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise DamagedHeaderError("the header is not JSON") from error
    if not isinstance(header, dict):
        raise DamagedHeaderError("the header is not a table of tensors")
    table = cast("dict[str, Any]", header)
    tensors = {name: _read_tensor(name, item) for name, item in table.items() if name != METADATA}
    _check_ranges([tensor[2:] for tensor in tensors.values()], size - LENGTH_BYTES - header_bytes)
    return {name: tensor[:2] for name, tensor in tensors.items()}


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise DamagedHeaderError("the header names something twice")
    return table


def _read_tensor(name: str, item: Any) -> tuple[str, tuple[int, ...], int, int]:
    """Dtype, shape, and where the values begin and end."""
    try:
        dtype, shape, (begin, end) = item["dtype"], item["shape"], item["data_offsets"]
        numbers = [*shape, begin, end]
        fits = all(type(number) is int and number >= 0 for number in numbers)
        if not fits or end - begin != math.prod(shape) * BYTES_OF_DTYPE[dtype]:
            raise DamagedHeaderError(f"the header's entry {name[:80]!r} contradicts itself")
        return dtype, tuple(shape), begin, end
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, DamagedHeaderError):
            raise
        raise DamagedHeaderError(f"the header's entry {name[:80]!r} is malformed") from error


def _check_ranges(ranges: list[tuple[int, int]], data_bytes: int) -> None:
    """The tensors lie one behind the other and fill the file."""
    end = 0
    for begin, next_end in sorted(ranges):
        if begin != end:
            raise DamagedHeaderError("the header's tensors overlap or leave gaps")
        end = next_end
    if end != data_bytes:
        missing = end - data_bytes
        what = f"{missing} bytes are missing at its end" if missing > 0 else f"{-missing} bytes too many"
        raise DamagedHeaderError(what)


def is_bare_pickle(path: Path) -> bool:
    """Whether a file has the ending of torch's own format, and not the archive that torch writes since 1.6."""
    return path.suffix in TORCH_SUFFIXES and not _begins_as_archive(path)


def _begins_as_archive(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _check_archive(path: Path) -> None:
    """A file that begins like a zip archive must end like one; older ones are bare pickles and say nothing."""
    if not _begins_as_archive(path):
        if path.stat().st_size == 0:
            raise DamagedHeaderError("empty")
        return
    import zipfile  # brings three decompressors that `talk --help` need not wait for

    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile as error:
        raise DamagedHeaderError(f"a damaged archive: {error}") from error
    if not names:
        raise DamagedHeaderError("an empty archive")
