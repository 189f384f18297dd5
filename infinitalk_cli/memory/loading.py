"""Weight files into modules: lazily, strictly, and without a second copy of the network in RAM.

A module is built on the `meta` device, where its parameters have shapes but no memory. Files are opened as tables of
`TensorRef`s: name, shape and dtype are known, the values are not read. Names and shapes are then compared, all of them
and before a single value is read, and only then is every tensor read, cast and assigned. What a file holds as it is
wanted is read by several threads (`reading.py`); what has to be made of other values, one tensor at a time.

For the latter, files are mapped, not read whole. Pages of a mapping that were touched count as the process's memory
until the mapping goes, so after reading a 65 GB file through one mapping a program seems to hold 65 GB. The mapping is
therefore dropped and made anew after every `RELEASE_AFTER_BYTES`: what is resident is the finished part of the network,
plus about one tensor. Every tensor handed to a module owns its memory, so the files may be deleted or replaced while it
is in use.

`.pth` files go through torch's restricted unpickler: a file that asks for anything but tensors is refused.
"""

from __future__ import annotations

import pickle
import pickletools
import warnings
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from infinitalk_cli.errors import WeightsError
from infinitalk_cli.memory.reading import FileSpan, Filling, fill, large_pages, pickle_spans, safetensors_spans

RELEASE_AFTER_BYTES = 64 * 2**20
NUM_NAMES_IN_MESSAGE = 8

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


def nothing_ignored(name: str) -> bool:
    """The default of `load_into`: every tensor of the files must have its place in the module."""
    del name
    return False


Place = Callable[[nn.Module, Mapping[str, TensorRef]], Collection[str]]
"""See `load_into`."""


def nowhere_else(module: nn.Module, refs: Mapping[str, TensorRef]) -> Collection[str]:
    """The default of `load_into`: every tensor gets its memory on one device."""
    del module, refs
    return ()


def load_into(
    module: nn.Module,
    tensors: Mapping[str, TensorRef],
    *,
    what: str,
    dtype_of: Callable[[str, torch.dtype], torch.dtype],
    device: torch.device | str = "cpu",
    ignore: Callable[[str], bool] = nothing_ignored,
    place: Place = nowhere_else,
) -> None:
    """Fill a module that was built on the `meta` device.

    Names and shapes are checked before anything is read. Each tensor then gets its memory, and its values are read
    there and cast, so that RAM never holds more than what of the network is in it, one tensor, and the pieces of the
    threads that read. Buffers that are not saved in files are made again by `reset_buffers()` of the modules that
    define it. A module class may list in `stored_dtype_names` those of its parameters that keep the dtype of the file
    whatever `dtype_of` says: 8-bit values and their scales.

    Args: what: the network in the user's words, for messages. dtype_of: final dtype from name and stored dtype.
        ignore: names in the files that have no place in the module, rightly.
        place: called with the module when its tensors, without memory still, have their final dtypes, and with what
        is to be read into them by name. It may give memory to some, and its answer names those that are to stay as they
        are and are not read. All others get theirs on `device`.
    Raises: WeightsError: tensors are missing, unexpected or of another shape; the message lists them. Or a file can't
        be read to its end any more.
    """
    slots = _find_slots(module)
    _check(slots, tensors, ignore, what)
    filled: dict[int, tuple[str, _Slot, TensorRef]] = {}
    for name, ref in tensors.items():
        slot = slots.get(name)
        if slot is not None and id(slot) not in filled:
            dtype = ref.dtype if slot.keeps_stored_dtype else dtype_of(name, ref.dtype)
            slot.assign(torch.empty(ref.shape, dtype=dtype, device="meta"))
            filled[id(slot)] = name, slot, ref
    left = place(module, {name: ref for name, _, ref in filled.values()})
    fillings: list[Filling] = []
    for name, slot, ref in filled.values():
        if name in left:
            continue
        target = slot.with_memory(device)
        if ref.span is None:
            target.copy_(ref.load())
        else:
            fillings.append(Filling(ref.span, ref.dtype, target))
    try:
        fill(fillings)
    except OSError as error:
        raise _damaged(Path(str(error.filename)), error) from error
    _reset_buffers(module, torch.device(device))


def check_fit(module: nn.Module, tensors: Mapping[str, TensorRef], *, what: str) -> None:
    """Compare names and shapes alone. Raises: WeightsError: as `load_into`."""
    _check(_find_slots(module), tensors, nothing_ignored, what)


def own_tensors(owner: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The parameters and buffers of a module itself, not of its submodules, with their names in it."""
    yield from owner.named_parameters(recurse=False, remove_duplicate=False)
    yield from owner.named_buffers(recurse=False, remove_duplicate=False)


@dataclass(frozen=True, eq=False)
class _Slot:
    """A parameter or saved buffer of a module, with all the places that share it (tied weights)."""

    shape: tuple[int, ...]
    is_parameter: bool
    keeps_stored_dtype: bool
    places: list[tuple[nn.Module, str]]

    def assign(self, tensor: Tensor) -> None:
        value = nn.Parameter(tensor, requires_grad=False) if self.is_parameter else tensor
        for owner, leaf in self.places:
            setattr(owner, leaf, value)

    def with_memory(self, device: torch.device | str) -> Tensor:
        """The value, which gets memory on `device` if it has none."""
        owner, leaf = self.places[0]
        held: Tensor = getattr(owner, leaf).detach()
        if not held.is_meta:
            return held
        if torch.device(device).type == "cpu":
            made = large_pages(held.nbytes).view(held.dtype).view(held.shape)
        else:
            made = torch.empty_like(held, device=device)
        self.assign(made)
        return made


def _find_slots(module: nn.Module) -> dict[str, _Slot]:
    """Every name under which a value is saved -> its slot; tied names lead to the same slot."""
    saved_names = set(module.state_dict().keys())
    by_tensor: dict[int, _Slot] = {}
    slots: dict[str, _Slot] = {}
    for prefix, owner in module.named_modules(remove_duplicate=False):
        kept = cast("frozenset[str]", getattr(owner, "stored_dtype_names", frozenset()))
        for leaf, tensor in own_tensors(owner):
            name = f"{prefix}.{leaf}" if prefix else leaf
            if name not in saved_names:
                continue
            new = _Slot(tuple(tensor.shape), isinstance(tensor, nn.Parameter), leaf in kept, [])
            slots[name] = by_tensor.setdefault(id(tensor), new)
            slots[name].places.append((owner, leaf))
    return slots


def _check(
    slots: Mapping[str, _Slot], tensors: Mapping[str, TensorRef], ignore: Callable[[str], bool], what: str
) -> None:
    present = {id(slots[name]) for name in tensors if name in slots}
    missing = [name for name, slot in slots.items() if id(slot) not in present]
    unexpected = [name for name in tensors if name not in slots and not ignore(name)]
    misshapen = [
        f"{name} (file: {list(tensors[name].shape)}, needed: {list(slot.shape)})"
        for name, slot in slots.items()
        if name in tensors and tensors[name].shape != slot.shape
    ]
    complaints = [
        f"{len(names)} {kind}: {_listing(names)}"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
        if names
    ]
    if complaints:
        files = _listing(sorted({str(ref.path) for ref in tensors.values()}))
        raise WeightsError(
            f"these weights do not fit {what}; tensors " + "; ".join(complaints) + f". Read from {files or 'no file'}",
            hint="The files belong to another model, or some are missing. Fetch the right ones: talk download",
        )


def _reset_buffers(module: nn.Module, device: torch.device) -> None:
    """Make the buffers that no file holds, which on the meta device had no values."""
    for part in module.modules():
        reset = getattr(part, "reset_buffers", None)
        if callable(reset):
            reset()
    for part in module.modules():
        for leaf, buffer in part.named_buffers(recurse=False):
            assert not buffer.is_meta or device.type == "meta", f"{type(part).__name__}.{leaf} has no values"
            if buffer.device.type != device.type:
                setattr(part, leaf, buffer.to(device))


def _listing(names: Sequence[str]) -> str:
    shown = ", ".join(names[:NUM_NAMES_IN_MESSAGE])
    rest = len(names) - NUM_NAMES_IN_MESSAGE
    return f"{shown} and {rest} more" if rest > 0 else shown


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
        raise _missing(path) from error
    except (OSError, SafetensorError) as error:
        raise _damaged(path, error) from error


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
        raise _missing(path) from error
    except pickle.UnpicklingError as error:
        if _holds_whole_pickle(path):  # sound, and yet not only tensors
            raise WeightsError(
                f"{path} is a pickle with code in it and is refused: weight files may hold tensors only",
                hint="Delete the file, do not open it with other programs, and fetch the published one: talk download",
            ) from error
        raise _damaged(path, ValueError("it is no file of tensors")) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, AttributeError, IndexError) as error:
        raise _damaged(path, error) from error
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


def _missing(path: Path) -> WeightsError:
    return WeightsError(f"{path} does not exist", hint="Fetch it: talk download")


def _damaged(path: Path, error: Exception) -> WeightsError:
    length = f"{path.stat().st_size:,} bytes" if path.is_file() else "not a file"
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return WeightsError(
        f"{path} ({length}) is damaged or was cut short: {reason}",
        hint="Delete the file and fetch it again: talk download",
    )
