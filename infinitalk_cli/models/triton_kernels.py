# pyright: basic, reportMissingImports=false, reportOptionalSubscript=false
"""The Triton kernels behind `fused.py`, which says what they compute; imported only where Triton is installed.

A program takes some rows of the tokens one after another and holds a whole row at a time, so each tensor is read once
and written once; what all rows share (norm weights, scale, shift, gate) is read once per program, because read per row
it would be six times the bytes of the row itself. Sums are float32. Results are rounded where the plain forms round.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def add_norm_rows(
    x_ptr,
    change_ptr,
    gate_ptr,
    scale_ptr,
    shift_ptr,
    out_ptr,
    num_rows,
    width,
    eps,
    HAS_CHANGE: tl.constexpr,
    HAS_GATE: tl.constexpr,
    MODULATES: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`change = x + gate * change` in place, and `out = norm(change) * scale + shift` (or `* (1 + scale)`, rounded)."""
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    scale = tl.load(scale_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    shift = tl.load(shift_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    if MODULATES:
        scale += 1.0
    if HAS_GATE:
        gate = tl.load(gate_ptr + columns, mask=inside, other=0.0)
    for i in range(ROWS):
        row = (tl.program_id(0) * ROWS + i).to(tl.int64)
        here = inside & (row < num_rows)
        places = row * width + columns
        x = tl.load(x_ptr + places, mask=here, other=0.0).to(tl.float32)
        if HAS_CHANGE:
            change = tl.load(change_ptr + places, mask=here, other=0.0).to(tl.float32)
            if HAS_GATE:
                change = change * gate
            rounded = (x + change).to(change_ptr.dtype.element_ty)
            tl.store(change_ptr + places, rounded, mask=here)
            x = rounded.to(tl.float32)
        mean = tl.sum(x, axis=0) / width
        centred = tl.where(here, x - mean, 0.0)
        normed = centred * tl.rsqrt(tl.sum(centred * centred, axis=0) / width + eps)
        if MODULATES:
            normed = normed.to(out_ptr.dtype.element_ty).to(tl.float32)
        tl.store(out_ptr + places, (normed * scale + shift).to(out_ptr.dtype.element_ty), mask=here)


@triton.jit
def gated_sum_rows(x_ptr, change_ptr, gate_ptr, out_ptr, num_rows, width, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """`out = x + gate * change`."""
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    gate = tl.load(gate_ptr + columns, mask=inside, other=0.0)
    for i in range(ROWS):
        row = (tl.program_id(0) * ROWS + i).to(tl.int64)
        here = inside & (row < num_rows)
        places = row * width + columns
        x = tl.load(x_ptr + places, mask=here, other=0.0).to(tl.float32)
        change = tl.load(change_ptr + places, mask=here, other=0.0).to(tl.float32)
        tl.store(out_ptr + places, (x + change * gate).to(out_ptr.dtype.element_ty), mask=here)


@triton.jit
def rms_rotate_rows(
    x_ptr,
    weight_ptr,
    cos_ptr,
    sin_ptr,
    num_rows,
    width,
    eps,
    HEAD_PAIRS: tl.constexpr,
    NORMS: tl.constexpr,
    ROTATES: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """RMS norm over the row, then a turn of every pair by the angle of its row and its place in the head; in place."""
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    pairs = tl.arange(0, BLOCK // 2)
    lane = pairs % HEAD_PAIRS
    if NORMS:
        weight = tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    for i in range(ROWS):
        row = (tl.program_id(0) * ROWS + i).to(tl.int64)
        here = inside & (row < num_rows)
        places = row * width + columns
        x = tl.load(x_ptr + places, mask=here, other=0.0).to(tl.float32)
        if NORMS:
            x = x * tl.rsqrt(tl.sum(x * x, axis=0) / width + eps)
            x = x.to(x_ptr.dtype.element_ty).to(tl.float32) * weight
            x = x.to(x_ptr.dtype.element_ty).to(tl.float32)
        if ROTATES:
            here_pairs = (pairs < width // 2) & (row < num_rows)
            cos = tl.load(cos_ptr + row * HEAD_PAIRS + lane, mask=here_pairs, other=0.0)
            sin = tl.load(sin_ptr + row * HEAD_PAIRS + lane, mask=here_pairs, other=0.0)
            even, odd = tl.split(tl.reshape(x, [BLOCK // 2, 2]))
            x = tl.reshape(tl.join(even * cos - odd * sin, even * sin + odd * cos), [BLOCK])
        tl.store(x_ptr + places, x.to(x_ptr.dtype.element_ty), mask=here)


@triton.jit
def channel_norm_rows(
    x_ptr,
    gamma_ptr,
    out_ptr,
    num_rows,
    width,
    scale,
    floor,
    SILU: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Each row over its length, times `scale * gamma`, then perhaps SiLU."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)
    here = (rows < num_rows)[:, None] & (columns < width)[None, :]
    places = rows[:, None] * width + columns[None, :]
    x = tl.load(x_ptr + places, mask=here, other=0.0).to(tl.float32)
    gamma = tl.load(gamma_ptr + columns, mask=columns < width, other=0.0).to(tl.float32)
    length = tl.sqrt(tl.sum(x * x, axis=1))
    x = x * (scale / tl.maximum(length, floor))[:, None] * gamma[None, :]
    if SILU:
        x = x / (1.0 + tl.exp(-x))
    tl.store(out_ptr + places, x.to(out_ptr.dtype.element_ty), mask=here)


@triton.jit
def rescale(x_ptr, factor_ptr, out_ptr, count, LARGEST: tl.constexpr, BLOCK: tl.constexpr):
    """`out = x * factor`, held within `LARGEST` where `out` has 8 bits."""
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = places < count
    x = tl.load(x_ptr + places, mask=here, other=0.0).to(tl.float32) * tl.load(factor_ptr)
    if out_ptr.dtype.element_ty.primitive_bitwidth == 8:
        x = tl.minimum(tl.maximum(x, -LARGEST), LARGEST)
    tl.store(out_ptr + places, x.to(out_ptr.dtype.element_ty), mask=here)
