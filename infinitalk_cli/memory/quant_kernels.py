# pyright: basic, reportMissingImports=false, reportOptionalSubscript=false
"""Triton kernels around 8-bit matrix products; imported only where Triton is installed. `quant.py` says what for."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra import libdevice


@triton.jit
def quantize_rows_kernel(
    x_ptr, out_ptr, scale_ptr, width, largest, GELU: tl.constexpr, ROUNDS: tl.constexpr, BLOCK: tl.constexpr
):
    """Each row, perhaps after GELU, over `scale = largest magnitude / largest`, rounded to the dtype of `out`."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    x = tl.load(x_ptr + row * width + columns, mask=inside, other=0.0).to(tl.float32)
    if GELU:
        inner = 0.7978845608028654 * (x + 0.044715 * x * x * x)  # sqrt(2 / pi)
        x = x / (1.0 + tl.exp(-2.0 * inner))  # 0.5 * (1 + tanh(a)) is 1 / (1 + exp(-2 a))
    scale = tl.max(tl.abs(x), axis=0) / largest
    scaled = x * (1.0 / tl.where(scale == 0, 1.0, scale))
    if ROUNDS:
        scaled = libdevice.rint(scaled)
    scaled = tl.minimum(tl.maximum(scaled, -largest), largest)
    tl.store(out_ptr + row * width + columns, scaled.to(out_ptr.dtype.element_ty), mask=inside)
    tl.store(scale_ptr + row, scale)


@triton.jit
def scale_product_kernel(
    product_ptr, row_scale_ptr, column_scale_ptr, bias_ptr, out_ptr, width, HAS_BIAS: tl.constexpr, BLOCK: tl.constexpr
):
    """`out = product * row_scale * column_scale + bias`: an exact integer product to the values that it stands for."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    total = tl.load(product_ptr + row * width + columns, mask=inside, other=0).to(tl.float32)
    total = total * tl.load(row_scale_ptr + row) * tl.load(column_scale_ptr + columns, mask=inside, other=0.0)
    if HAS_BIAS:
        total += tl.load(bias_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * width + columns, total.to(out_ptr.dtype.element_ty), mask=inside)
