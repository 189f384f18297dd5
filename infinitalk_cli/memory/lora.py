"""LoRA files added to the weights of a network, plain or in 8 bits. What a file asks for, `lora_keys.py` reads.

All files are summed in float32 on top of the weight and the result is rounded once; 8-bit weights are dequantised,
summed and quantised again row by row. Or up and down stay matrices of their own, beside the weight (`lora_beside.py`).
Nothing is left out silently: a report lists every tensor that had no effect and why, and a file that had none at all is
an error. The reference program knows only one prefix and few roles and drops the rest without a word;
`only_reference_keys` reproduces its result.

Tensors without values are left out when LoRAs are merged: they come from their files in every pass, and each time
`LateLoras` merges into them what would have been merged once.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from infinitalk_cli.errors import WeightsError
from infinitalk_cli.memory.lora_keys import LoraChange, LowRank, changes_of
from infinitalk_cli.memory.quant import QuantizedLinear
from infinitalk_cli.memory.tensor_files import TensorRef, open_tensors

REFERENCE_KEY = re.compile(r"diffusion_model\..+(?<!\.modulation)\.(lora_down\.weight|lora_up\.weight|diff|diff_b)")
"""What the reference program applies."""


@dataclass(frozen=True)
class Lora:
    """A LoRA file, not read yet, and how strongly to apply it."""

    path: Path
    scale: float
    tensors: Mapping[str, TensorRef]


@dataclass(frozen=True)
class SkippedTensor:
    """A tensor of a LoRA file that had no effect."""

    name: str
    reason: str


@dataclass(frozen=True)
class LoraReport:
    """What a LoRA file did: how many of its tensors took effect, on how many parameters, and which did not."""

    path: Path
    num_matched: int
    num_parameters: int
    skipped: tuple[SkippedTensor, ...]


@dataclass(frozen=True)
class LoraPlan:
    """What LoRA files add to the parameters of a network. Nothing of it is read yet."""

    reports: tuple[LoraReport, ...] = ()
    _additions: Mapping[str, list[tuple[float, LoraChange]]] = field(
        default_factory=dict[str, "list[tuple[float, LoraChange]]"]
    )

    @property
    def parameters(self) -> Collection[str]:
        """Those that something is added to."""
        return self._additions.keys()

    def additions_to(self, parameter: str, device: torch.device) -> Iterator[Tensor]:
        """What each file adds to a parameter, in the files' order; float32, in the shape of the parameter."""
        for scale, change in self._additions.get(parameter, ()):
            yield scale * change.make(device)

    def products_for(self, parameter: str) -> tuple[LowRank, ...]:
        """The low-rank products among what is added to a matrix, in the files' order."""
        found = self._additions.get(parameter, ())
        return tuple(change.product.times(scale) for scale, change in found if change.product is not None)

    def without_products(self, parameters: Collection[str]) -> LoraPlan:
        """What is left to add where the products for these parameters take effect otherwise."""
        left: dict[str, list[tuple[float, LoraChange]]] = {}
        for name, additions in self._additions.items():
            rest = [(scale, change) for scale, change in additions if name not in parameters or change.product is None]
            if rest:
                left[name] = rest
        return replace(self, _additions=left)


def read_lora(path: Path, scale: float = 1.0) -> Lora:
    """Open a LoRA file. Raises: WeightsError: as `open_tensors`, but for a file that the user brought along."""
    try:
        return Lora(path, scale, open_tensors(path))
    except WeightsError as error:
        hint = "check that it is a LoRA for this model, and fetch it again from where you have it"
        raise WeightsError(f"the LoRA can't be read: {error.message}", hint=hint) from error


def plan_loras(module: nn.Module, loras: Sequence[Lora], *, only_reference_keys: bool = False) -> LoraPlan:
    """What LoRA files would add to a network, which may lie on the `meta` device.

    Args: only_reference_keys: take what the reference program takes and drop the rest, `alpha` included.
    Raises: WeightsError: if a file has no effect.
    """
    targets = _Targets(module)
    plans = [_plan(lora, targets, only_reference_keys) for lora in loras]
    additions: dict[str, list[tuple[float, LoraChange]]] = {}
    for lora, (changes, _) in zip(loras, plans, strict=True):
        for change in changes:
            additions.setdefault(change.parameter, []).append((lora.scale, change))
    return LoraPlan(tuple(report for _, report in plans), additions)


def merge_loras(module: nn.Module, plan: LoraPlan, *, device: torch.device | str | None = None) -> None:
    """Add what was planned to the weights of `module`, in place.

    Args: device: where sums are made, by default where each weight is. A weight in RAM visits a GPU for it: so it
        becomes the same as one that is there, and 14B of them take seconds.
    """
    targets = _Targets(module)
    for parameter in plan.parameters:
        if targets.has_values(parameter):
            targets.add(parameter, plan, None if device is None else torch.device(device))


class LateLoras:
    """LoRAs for tensors that come anew, as their files have them, whenever they are needed.

    Args: module: of which they are. plan: what is to be merged into it. refs: what its files hold, under its names: a
        scale that is there may go with values which had LoRAs in them, and is read again.
    """

    def __init__(self, module: nn.Module, plan: LoraPlan, refs: Mapping[str, TensorRef]) -> None:
        self._plan, self._targets, self._refs = plan, _Targets(module), refs

    def add_to(self, names: Iterable[str]) -> None:
        """Merge into tensors that have just come: weights, or the data of 8-bit layers."""
        for name in names:
            layer = name.removesuffix(".data")
            parameter = name if layer == name else f"{layer}.weight"
            if parameter in self._plan.parameters:
                if layer != name:
                    self._targets.set_scale(parameter, self._refs[f"{layer}.scale"].load())
                self._targets.add(parameter, self._plan, None)


class _Targets:
    """The parameters of a network that a LoRA may change; the weight of an 8-bit layer counts as one parameter."""

    def __init__(self, module: nn.Module) -> None:
        self._quantized = {
            f"{name}.weight": part for name, part in module.named_modules() if isinstance(part, QuantizedLinear)
        }
        self._module = module
        self._shapes = {name: tuple(value.shape) for name, value in module.named_parameters()}
        self._layers_by_underscores = {name.replace(".", "_"): name for name, _ in module.named_modules()}

    def layer_of_underscores(self, name: str) -> str:
        """The layer whose name has underscores here in place of dots, else `name`."""
        return self._layers_by_underscores.get(name, name)

    def misfit(self, change: LoraChange) -> str:
        """Why a change cannot be applied, or nothing."""
        if change.parameter in self._quantized:
            shape = tuple(self._quantized[change.parameter].data.shape)
        elif change.parameter in self._shapes:
            shape = self._shapes[change.parameter]
        else:
            return f"the network has no {change.parameter}"
        return "" if change.shape == shape else f"shape {list(change.shape)}, {change.parameter} has {list(shape)}"

    def has_values(self, parameter: str) -> bool:
        """Whether there is something to add to."""
        layer = self._quantized.get(parameter)
        return not (self._module.get_parameter(parameter) if layer is None else layer.data).is_meta

    @torch.no_grad()
    def set_scale(self, parameter: str, scale: Tensor) -> None:
        """Give the weight of an 8-bit layer the scale that goes with its data."""
        self._quantized[parameter].scale.copy_(scale)

    @torch.no_grad()
    def add(self, parameter: str, plan: LoraPlan, device: torch.device | None) -> None:
        """Sum in float32, on `device` or where the weight is, and round once."""
        layer = self._quantized.get(parameter)
        if layer is None:
            held = self._module.get_parameter(parameter)
            total = held.to(device or held.device).to(torch.float32, copy=True)
        else:
            total = layer.dequantized(device)
        for addition in plan.additions_to(parameter, total.device):
            total += addition
        if layer is None:
            self._module.get_parameter(parameter).copy_(total)
        else:
            layer.requantize(total)


def _plan(lora: Lora, targets: _Targets, only_reference_keys: bool) -> tuple[list[LoraChange], LoraReport]:
    """Sort a file's tensors into changes that fit and tensors that have no effect."""
    refs = list(lora.tensors.values())
    ignored = {ref.name for ref in refs if only_reference_keys and not REFERENCE_KEY.fullmatch(ref.name)}
    skipped = {ref.name: "the reference program ignores it" for ref in refs if ref.name in ignored}
    fitting: list[LoraChange] = []
    wanted = [ref for ref in refs if ref.name not in ignored]
    for change in changes_of(wanted, targets.layer_of_underscores):
        problem = change.problem or targets.misfit(change)
        if problem:
            skipped.update((ref.name, problem) for ref in change.refs)
        else:
            fitting.append(change)
    if not fitting:
        raise _no_effect(lora, skipped)
    return fitting, LoraReport(
        path=lora.path,
        num_matched=len(refs) - len(skipped),
        num_parameters=len({change.parameter for change in fitting}),
        skipped=tuple(SkippedTensor(name, reason) for name, reason in skipped.items()),
    )


def _no_effect(lora: Lora, skipped: Mapping[str, str]) -> WeightsError:
    first = next((f"{name}: {reason}" for name, reason in skipped.items()), "it is empty")
    return WeightsError(
        f"LoRA {lora.path}: none of its {len(skipped)} tensors fits the network, for one thing {first}",
        hint="Use a LoRA that was made for Wan2.1 14B, image-to-video or text-to-video",
    )
