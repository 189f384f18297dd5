"""8-bit matrix products on the units that GPUs have for them: activations are rounded to 8 bits row by row, too.

    y = (x8 @ w8^T) * s_x * s_w + bias      s_x one per token, s_w one per output, products summed in float32 or int32

Twice the rate of bfloat16, and no weight is ever made in bfloat16. The price is the rounding of the activations: about
2.6 % of a layer's output for fp8 (three bits of mantissa), 1 % for int8, independent from layer to layer; the weights'
own rounding is the same as in the plain form. float8 products need compute capability 8.9 or newer, int8 ones 8.0.

Two further forms are tried on the GPU, best first, and the first that runs and is right is kept: scales inside the
product (`_scaled_mm` with a scale per row), or a product without scales that is scaled afterwards.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

LARGEST_ACTIVATION = {torch.float8_e4m3fn: 448.0, torch.int8: 127.0}
HALF_DTYPES = (torch.bfloat16, torch.float16)
ALIGNMENT = 16
"""Sizes of the weight must be multiples of this."""
_SMALLEST_CAPABILITY = {torch.float8_e4m3fn: (8, 9), torch.int8: (8, 0)}
_FEWEST_ROWS = 17
"""`_int_mm` refuses fewer, and `_scaled_mm` takes the scale of a single row for that of the whole matrix."""
_INT8_ROWS = 8192
"""Rows of an int8 product at a time: its int32 sums are twice as large as the output."""
_PROBE_ERROR = 0.05

Product = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None, torch.dtype], Tensor]
"""x8 `(M, K)`, s_x `(M, 1)`, w8 `(N, K)`, s_w `(N, 1)`, bias, output dtype -> `(M, N)`."""


def matmul(x: Tensor, data: Tensor, scale: Tensor, bias: Tensor | None, *, gelu: bool = False) -> Tensor | None:
    """`x @ (scale * data)^T + bias` in 8-bit arithmetic; None where that can't be done.

    Args: x: `(..., K)`. data: `(N, K)`. scale: `(N, 1)`. gelu: apply GELU (tanh) to `x` on the way.
    """
    if not x.is_cuda or x.dtype not in HALF_DTYPES or data.dtype not in LARGEST_ACTIVATION:
        return None
    rows = x.numel() // x.shape[-1]
    if data.shape[0] % ALIGNMENT or data.shape[1] % ALIGNMENT or rows < _FEWEST_ROWS:
        return None
    product = best_product(x.device, data.dtype, x.dtype)
    if product is None:
        return None
    if gelu:
        x8, x_scale = quantize_activations(as_rows(x), data.dtype, gelu=True)
    else:
        x8, x_scale = _last_input.quantized(x, data.dtype)
    out = product(x8, x_scale, data, scale.float(), None if bias is None else bias.to(x.dtype), x.dtype)
    return out.view(*x.shape[:-1], -1)


@cache
def best_product(device: torch.device, eight_bit: torch.dtype, dtype: torch.dtype) -> Product | None:
    """The first form that runs on the GPU and is right; None if there is none."""
    if torch.cuda.get_device_capability(device) < _SMALLEST_CAPABILITY[eight_bit]:
        return None
    forms: tuple[Product, ...] = (_int8_product,) if eight_bit == torch.int8 else (_rowwise_product, _plain_product)
    for form in forms:
        try:
            if _is_right(form, device, eight_bit, dtype):
                return form
        except Exception:  # whatever a version of torch or Triton, or a GPU, answers to what it has not got
            continue
    return None


def as_rows(x: Tensor) -> Tensor:
    """`(..., K)` as dense `(M, K)`."""
    return x.reshape(-1, x.shape[-1]).contiguous()


def quantize_activations(x: Tensor, dtype: torch.dtype, *, gelu: bool = False) -> tuple[Tensor, Tensor]:
    """Round to 8 bits with one scale per row, in one pass over memory.

    Args: x: `(M, K)`, on a GPU. gelu: apply GELU (tanh) first. Returns: `(M, K)` and float32 `(M, 1)`.
    """
    rows, width = x.shape
    out = torch.empty_like(x, dtype=dtype)
    scale = torch.empty(rows, 1, dtype=torch.float32, device=x.device)
    block = 1 << (width - 1).bit_length()
    _kernels().quantize_rows_kernel[(rows,)](
        x,
        out,
        scale,
        width,
        LARGEST_ACTIVATION[dtype],
        GELU=gelu,
        ROUNDS=dtype == torch.int8,
        BLOCK=block,
        num_warps=max(1, min(16, block // 1024)),
    )
    return out, scale


@dataclass
class _LastInput:
    """The last rounded activations: queries, keys and values are made from the same tokens, one layer after another."""

    source: weakref.ref[Tensor] | None = None
    key: tuple[int, torch.dtype] | None = None
    value: tuple[Tensor, Tensor] | None = None

    def quantized(self, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """`x` as rows in 8 bits; made anew unless it is the very tensor of the call before, unchanged."""
        key = (x._version, dtype)
        if self.value is None or self.source is None or self.source() is not x or self.key != key:
            self.value = None  # before the next one is made
            self.value = quantize_activations(as_rows(x), dtype)
            self.source, self.key = weakref.ref(x, self._forget), key
        return self.value

    def _forget(self, source: weakref.ref[Tensor]) -> None:
        if source is self.source:
            self.source, self.value = None, None


_last_input = _LastInput()


def _rowwise_product(
    x8: Tensor, x_scale: Tensor, data: Tensor, scale: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    scaled_mm = _operation("_scaled_mm")
    return scaled_mm(
        x8, data.t(), scale_a=x_scale, scale_b=scale.t().contiguous(), bias=bias, out_dtype=dtype, use_fast_accum=True
    )


def _plain_product(
    x8: Tensor, x_scale: Tensor, data: Tensor, scale: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    scaled_mm = _operation("_scaled_mm")
    one = torch.ones((), dtype=torch.float32, device=x8.device)
    product = scaled_mm(x8, data.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True)
    return _scaled(product, x_scale, scale, bias, dtype)


def _int8_product(
    x8: Tensor, x_scale: Tensor, data: Tensor, scale: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    int_mm = _operation("_int_mm")
    out = torch.empty(x8.shape[0], data.shape[0], dtype=dtype, device=x8.device)
    parts = -(-x8.shape[0] // _INT8_ROWS)
    pieces = zip(x8.tensor_split(parts), x_scale.tensor_split(parts), out.tensor_split(parts), strict=True)
    for some_x, some_scale, some_out in pieces:
        _scaled(int_mm(some_x, data.t()), some_scale, scale, bias, dtype, out=some_out)
    return out


def _scaled(
    product: Tensor,
    x_scale: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    *,
    out: Tensor | None = None,
) -> Tensor:
    rows, width = product.shape
    made = torch.empty(rows, width, dtype=dtype, device=product.device) if out is None else out
    _kernels().scale_product_kernel[(rows, -(-width // 1024))](
        product, x_scale, scale, product if bias is None else bias, made, width, HAS_BIAS=bias is not None, BLOCK=1024
    )
    return made


def _is_right(form: Product, device: torch.device, eight_bit: torch.dtype, dtype: torch.dtype) -> bool:
    """Whether a form multiplies a small matrix rightly."""
    draw = torch.Generator(device).manual_seed(0)
    x = torch.randn(32, 64, generator=draw, device=device)
    bias = torch.randn(48, generator=draw, device=device)
    largest = LARGEST_ACTIVATION[eight_bit]
    data = (torch.rand(48, 64, generator=draw, device=device) * 2 - 1).mul_(largest).to(eight_bit)
    scale = torch.rand(48, 1, generator=draw, device=device) / largest
    x8, x_scale = quantize_activations(x.to(dtype), eight_bit)
    found = form(x8, x_scale, data, scale, bias.to(dtype), dtype).float()
    expected = x @ (data.float() * scale).t() + bias
    return bool((found - expected).norm() <= _PROBE_ERROR * expected.norm())


def _operation(name: str) -> Any:
    """torch has no public names for its 8-bit products; these have stood since 2.1."""
    return getattr(torch, name)


@cache
def _kernels() -> Any:
    return import_module("infinitalk_cli.memory.quant_kernels")
