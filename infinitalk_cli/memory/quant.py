"""Linear layers stored in 8 bits: how files spell them, and the plain module that computes with them.

All published forms say the same, `weight = scale * data` with 8-bit data and one scale per output row or for the whole
matrix, under different names (X is the layer):

    optimum-quanto          X.weight._data, X.weight._scale; X.input_scale and X.output_scale are 1 and without use
    LightX2V, newer ComfyUI X.weight, X.weight_scale; perhaps X.comfy_quant
    older ComfyUI           X.weight, X.scale_weight; a marker tensor `scaled_fp8`
    a plain cast            X.weight in float8 and no scale at all

`swap_quantized_linears` recognises them by the names and dtypes that are there, never by a list of layers or the json
map beside a file, because neither the files nor the maps agree on which layers they leave out. The layer becomes a
`QuantizedLinear`, and its tensors are renamed to `X.data` and `X.scale`.

`QuantizedLinear` multiplies in 8 bits where the GPU can (`quant_matmul.py`). Elsewhere, and where `is_exact` is set, it
makes its weight anew for every call: plain, exact, and the measure for the fast form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infinitalk_cli.errors import WeightsError
from infinitalk_cli.memory.quant_matmul import matmul
from infinitalk_cli.memory.tensor_files import TensorRef

FLOAT8_DTYPES = frozenset({torch.float8_e4m3fn, torch.float8_e5m2})
EIGHT_BIT_DTYPES = FLOAT8_DTYPES | {torch.int8}
LARGEST = {torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0, torch.int8: 127.0}
"""What a row's largest magnitude becomes in each form."""

SCALED_FP8_MARKER = "scaled_fp8"
UNUSED_SUFFIXES = (".input_scale", ".output_scale", ".scale_input", ".comfy_quant")
"""Of a layer in 8 bits: scales of activations, which nobody quantised, and ComfyUI's description of the form."""


class QuantizedLinear(nn.Module):
    """`x @ (scale * data)^T + bias`. `is_exact`: with `x` as it is and the weight rounded once to the dtype of `x`."""

    stored_dtype_names = frozenset({"data", "scale"})
    weight = None  # transformers' feed-forward casts its input to the dtype of `weight`, if that is a tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        data_dtype: torch.dtype = torch.int8,
        scale_dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.is_exact = False
        self.data = nn.Parameter(torch.empty(out_features, in_features, dtype=data_dtype), requires_grad=False)
        self.scale = nn.Parameter(torch.empty(out_features, 1, dtype=scale_dtype), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out_features), requires_grad=False) if bias else None

    def dequantized(self, device: torch.device | None = None) -> Tensor:
        """The weight `(out, in)`, float32, made on `device`, or where the layer is."""
        data, scale = (part.to(device or part.device) for part in (self.data, self.scale))  # in 8 bits on its way
        return data.to(torch.float32) * scale.to(torch.float32)

    def requantize(self, weight: Tensor) -> None:
        """Take another weight `(out, in)`, with new scales, in the same 8-bit form and in the same place."""
        data, scale = quantize_rows(weight, self.data.dtype, scale_dtype=self.scale.dtype)
        self.data.copy_(data)
        self.scale.copy_(scale)

    def forward(self, x: Tensor) -> Tensor:
        """`(..., in)` to `(..., out)`, in the dtype of `x`."""
        made = None if self.is_exact else matmul(x, self.data, self.scale, self.bias)
        return self.plain(x) if made is None else made

    def after_gelu(self, x: Tensor) -> Tensor:
        """`self(gelu(x))` with GELU in the tanh form."""
        made = None if self.is_exact else matmul(x, self.data, self.scale, self.bias, gelu=True)
        return self.plain(F.gelu(x, approximate="tanh")) if made is None else made

    def plain(self, x: Tensor) -> Tensor:
        """`forward` with the weight made anew in the dtype of `x`."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.dequantized().to(x.dtype), bias)


def keep_exact(module: nn.Module, where: Callable[[str], bool]) -> None:
    """Set `is_exact` in the 8-bit layers of those names: what they cost is little, and their rounding shows."""
    for name, layer in module.named_modules():
        if isinstance(layer, QuantizedLinear) and where(name):
            layer.is_exact = True


def quantize_rows(
    weight: Tensor, dtype: torch.dtype, *, scale_dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Round a matrix to 8 bits with one scale per row; from float32, bit for bit as optimum-quanto does.

    Args: weight: `(out, in)`, computed with in float32. dtype: int8 or a float8.
    Returns: data `(out, in)` and scale `(out, 1)`; a row of zeros has scale 0.
    """
    weight = weight.to(torch.float32)
    scale = (weight.abs().amax(dim=1, keepdim=True) / LARGEST[dtype]).to(scale_dtype)
    steps = torch.where(scale == 0, 1.0, scale.to(torch.float32))
    limits = torch.iinfo(dtype) if dtype == torch.int8 else torch.finfo(dtype)
    data = weight / steps
    data = data.round() if dtype == torch.int8 else data
    return data.clamp(limits.min, limits.max).to(dtype), scale


def swap_quantized_linears(module: nn.Module, tensors: Mapping[str, TensorRef]) -> dict[str, TensorRef]:
    """Replace each linear layer of which `tensors` holds an 8-bit form, and name its tensors after the new layer's.

    Args: module: changed in place. tensors: under the module's names, with the suffixes of the form.
    Returns: the tensors to load; those that are not of a replaced layer as they were, the marker left out.
    Raises: WeightsError: if data has no scale, or a scale of no use.
    """
    named = {name: ref for name, ref in tensors.items() if name.split(".")[-1] != SCALED_FP8_MARKER}
    for layer, linear in [(name, part) for name, part in module.named_modules() if isinstance(part, nn.Linear)]:
        form = _take_form(layer, named)
        if form is None:
            continue
        data, scale = form
        named[f"{layer}.data"], named[f"{layer}.scale"] = data, _one_per_row(scale, data, layer)
        for suffix in UNUSED_SUFFIXES:
            named.pop(layer + suffix, None)
        parent, _, leaf = layer.rpartition(".")
        setattr(module.get_submodule(parent), leaf, _like(linear, data.dtype, named[f"{layer}.scale"].dtype))
    return named


def quantize_on_load(
    module: nn.Module, tensors: Mapping[str, TensorRef], dtype: torch.dtype, where: Callable[[str], bool]
) -> dict[str, TensorRef]:
    """Replace linear layers by 8-bit ones whose values are made from the weights of the files as these are read.

    Args: module: changed in place. tensors: under the module's names. dtype: int8 or a float8. where: told a layer's
        name. Layers whose weight is in 8 bits already stay as they are.
    Returns: the tensors to load.
    """
    named = dict(tensors)
    for layer, linear in [(name, part) for name, part in module.named_modules() if isinstance(part, nn.Linear)]:
        weight = named.get(f"{layer}.weight")
        if weight is None or not where(layer) or weight.dtype in EIGHT_BIT_DTYPES:
            continue
        del named[f"{layer}.weight"]
        halves = _RowsOf(weight, dtype)
        named[f"{layer}.data"] = replace(weight, dtype=dtype, read=halves.data)
        named[f"{layer}.scale"] = replace(weight, shape=(weight.shape[0], 1), dtype=torch.float32, read=halves.scale)
        parent, _, leaf = layer.rpartition(".")
        setattr(module.get_submodule(parent), leaf, _like(linear, dtype, torch.float32))
    return named


class _RowsOf:
    """The 8-bit form of a stored weight. Data and scale are read one after the other; they are made once."""

    def __init__(self, weight: TensorRef, dtype: torch.dtype) -> None:
        self._weight, self._dtype = weight, dtype
        self._scale: Tensor | None = None

    def data(self) -> Tensor:
        """Values `(out, in)`."""
        data, self._scale = quantize_rows(self._weight.load(), self._dtype)
        return data

    def scale(self) -> Tensor:
        """Scales `(out, 1)`."""
        scale, self._scale = self._scale, None
        return quantize_rows(self._weight.load(), self._dtype)[1] if scale is None else scale


def _like(linear: nn.Linear, data_dtype: torch.dtype, scale_dtype: torch.dtype) -> QuantizedLinear:
    """An empty 8-bit layer in place of `linear`, on its device."""
    with linear.weight.device:
        return QuantizedLinear(
            linear.in_features,
            linear.out_features,
            bias="bias" in dict(linear.named_parameters()),
            data_dtype=data_dtype,
            scale_dtype=scale_dtype,
        )


def _take_form(layer: str, named: dict[str, TensorRef]) -> tuple[TensorRef, TensorRef | None] | None:
    """Take the data and the scale of a layer out of `named`, whatever they are called; None if it is not in 8 bits."""
    weight = f"{layer}.weight"
    if f"{weight}._data" in named:
        if f"{weight}._scale" not in named:
            raise WeightsError(f"{named[weight + '._data'].path}: {weight}._data has no {weight}._scale")
        return named.pop(f"{weight}._data"), named.pop(f"{weight}._scale")
    if weight not in named or named[weight].dtype not in EIGHT_BIT_DTYPES:
        return None
    scale = named.pop(f"{layer}.weight_scale", None) or named.pop(f"{layer}.scale_weight", None)
    if scale is None and named[weight].dtype == torch.int8:
        raise WeightsError(f"{named[weight].path}: {weight} is int8 and has no scale")
    return named.pop(weight), scale


def _one_per_row(scale: TensorRef | None, data: TensorRef, layer: str) -> TensorRef:
    """A scale of any published shape as `(out, 1)`; ones where there is none."""
    num_rows = data.shape[0]
    if scale is None:
        return replace(data, shape=(num_rows, 1), dtype=torch.float32, read=lambda: torch.ones(num_rows, 1))
    if scale.shape not in ((), (1,), (1, 1), (num_rows,), (num_rows, 1)):
        raise WeightsError(
            f"{scale.path}: the scale of {layer} has shape {list(scale.shape)}, one number or {num_rows} are possible"
        )
    return replace(scale, shape=(num_rows, 1), read=lambda: scale.load().reshape(-1, 1).expand(num_rows, 1))
