"""The tensors of a LoRA file, and what they ask to be added to which parameter.

Tools spell the same few statements in many ways. A key is read as prefix, layer and role:

    prefix  none, `diffusion_model.`, `model.diffusion_model.`, `transformer.`, `pipe.dit.`, or `lora_unet_(_)` with
            underscores instead of dots in what follows
    layer   the network's own names, or those of the diffusers library
    role    lora_down and lora_up, or lora_A and lora_B: weight += scale * up @ down, times alpha / rank if there is
            an `alpha`; diff: weight += scale * diff; diff_b: bias; diff_m or modulation.diff: modulation

Nothing is read before a change is made. Whether the network has such a parameter is `lora.py`'s to find out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from infinitalk_cli.memory.keymaps import has_diffusers_names, original_name
from infinitalk_cli.memory.tensor_files import TensorRef

DOTTED_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "transformer.", "pipe.dit.")
UNDERSCORE_PREFIXES = ("lora_unet__", "lora_unet_")

_KEY = re.compile(
    r"(?P<layer>.+?)\.(?P<role>lora_down|lora_up|lora_A|lora_B|alpha|modulation\.diff|diff_m|diff_b|diff)"
    r"(\.default)?(\.weight)?"
)
_ROLES = {"lora_A": "lora_down", "lora_B": "lora_up", "modulation.diff": "diff_m"}
_DIFFERENCES = {"diff": "weight", "diff_b": "bias", "diff_m": "modulation"}


def _impossible(device: torch.device) -> Tensor:
    raise AssertionError(f"a change with a problem was asked for on {device}")


@dataclass(frozen=True)
class LowRank:
    """The product `strength() * up @ down` that is to be added to a matrix, still unread.

    `down`: `(rank, in)`; `up`: `(out, rank)`. `strength`: all scales in one number.
    """

    down: TensorRef
    up: TensorRef
    strength: Callable[[], float]

    @property
    def rank(self) -> int:
        """How narrow it is."""
        return self.down.shape[0]

    def times(self, scale: float) -> LowRank:
        """The same, so much stronger."""
        return replace(self, strength=lambda: scale * self.strength())


@dataclass(frozen=True)
class LoraChange:
    """An addition to one parameter, still unread; with a `problem` it cannot be made. `product`: if it is one."""

    parameter: str
    refs: tuple[TensorRef, ...]  # the tensors of the file that it is made of
    shape: tuple[int, ...] = ()
    make: Callable[[torch.device], Tensor] = _impossible
    problem: str = ""
    product: LowRank | None = None


def changes_of(refs: Sequence[TensorRef], layer_of_underscores: Callable[[str], str]) -> list[LoraChange]:
    """Everything that the tensors of a file ask for; each tensor is part of exactly one change.

    Args: layer_of_underscores: the layer whose name has underscores in place of dots.
    """
    changes: list[LoraChange] = []
    layers: dict[str, dict[str, TensorRef]] = {}
    in_diffusers_names = has_diffusers_names(_without_dotted_prefix(ref.name) for ref in refs)
    for ref in refs:
        layer, role = _layer_and_role(ref.name, layer_of_underscores, in_diffusers_names)
        roles = layers.setdefault(layer, {})
        if not role or role in roles:
            problem = f"a second {role} of {layer}" if role else "in no known form of LoRA"
            changes.append(LoraChange(layer, (ref,), problem=problem))
        else:
            roles[role] = ref
    for layer, roles in layers.items():
        changes += _layer_changes(layer, roles)
    return changes


def _layer_and_role(key: str, layer_of_underscores: Callable[[str], str], in_diffusers_names: bool) -> tuple[str, str]:
    """Layer, under the network's own name, and role of a key; an empty role if it has no known form."""
    match = _KEY.fullmatch(key)
    if match is None:
        return key, ""
    layer, role = match["layer"], _ROLES.get(match["role"], match["role"])
    if prefix := next((p for p in UNDERSCORE_PREFIXES if layer.startswith(p)), ""):
        return layer_of_underscores(layer.removeprefix(prefix)), role
    layer = _without_dotted_prefix(layer)
    return original_name(layer) if in_diffusers_names else layer, role


def _without_dotted_prefix(name: str) -> str:
    return name.removeprefix(next((prefix for prefix in DOTTED_PREFIXES if name.startswith(prefix)), ""))


def _layer_changes(layer: str, roles: Mapping[str, TensorRef]) -> Iterator[LoraChange]:
    down, up, alpha = (roles.get(role) for role in ("lora_down", "lora_up", "alpha"))
    pair = tuple(ref for ref in (down, up, alpha) if ref is not None)
    if down is not None and up is not None:
        yield _product(f"{layer}.weight", pair, down, up, alpha)
    elif pair:
        yield LoraChange(f"{layer}.weight", pair, problem="the rest of the pair is not in the file")
    for role, leaf in _DIFFERENCES.items():
        if role in roles:
            yield _difference(f"{layer}.{leaf}", roles[role])


def _product(
    parameter: str, refs: tuple[TensorRef, ...], down: TensorRef, up: TensorRef, alpha: TensorRef | None
) -> LoraChange:
    """`alpha / rank * up @ down`: down `(rank, in, ...)`, up `(out, rank, ...)`; further axes are a convolution's."""
    shape = (up.shape[0], *down.shape[1:])
    if len(up.shape) < 2 or len(down.shape) < 2 or up.shape[1] != down.shape[0]:
        return LoraChange(parameter, refs, problem=f"up {list(up.shape)} and down {list(down.shape)} do not multiply")

    def strength() -> float:
        return 1.0 if alpha is None else alpha.load().item() / down.shape[0]

    def make(device: torch.device) -> Tensor:
        left, right = (ref.load().to(device, torch.float32).flatten(1) for ref in (up, down))
        return strength() * (left @ right).reshape(shape)

    return LoraChange(parameter, refs, shape, make, product=LowRank(down, up, strength))


def _difference(parameter: str, ref: TensorRef) -> LoraChange:
    return LoraChange(parameter, (ref,), ref.shape, lambda device: ref.load().to(device, torch.float32))
