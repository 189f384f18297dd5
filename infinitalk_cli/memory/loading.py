"""Weights into modules: strictly, and without a second copy of the network in RAM.

A module is built on the `meta` device, where its parameters have shapes but no memory. Its names and shapes are
compared with those of the files (`tensor_files.py`), all of them and before a single value is read, and only then is
every tensor read, cast and assigned. What a file holds as it is wanted is read by several threads (`reading.py`); what
has to be made of other values, one tensor at a time.

So what is resident is the finished part of the network, plus about one tensor. Every tensor handed to a module owns its
memory, so the files may be deleted or replaced while it is in use.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from infinitalk_cli.errors import WeightsError
from infinitalk_cli.memory.reading import Filling, fill, large_pages
from infinitalk_cli.memory.tensor_files import TensorRef, damaged_file

NUM_NAMES_IN_MESSAGE = 8


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
        raise damaged_file(Path(str(error.filename)), error) from error
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
