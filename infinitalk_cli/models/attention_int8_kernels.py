# pyright: basic, reportMissingImports=false, reportOptionalSubscript=false
"""The Triton kernels behind `attention_int8.py`, which says what they compute; imported only where Triton is installed.

One kernel rounds queries and keys, one the values, the third attends. What is rounded lies head by head, padded with
zeros to whole blocks, so that only scores need a mask, and only in the last block.
"""

from __future__ import annotations

import triton
import triton.language as tl

P_EXPONENT = tl.constexpr(8.0)
"""Weights of the softmax, at most 1, are multiplied with 2 to this power before they are rounded."""
WHOLE, WHOLE_BITS = tl.constexpr(12582912.0), tl.constexpr(0x4B400000)
"""1.5 * 2**23, and its bits. Floats around it are whole numbers, so these bits plus `n` are those of `WHOLE + n`."""
FEWEST = tl.constexpr(-(2**31))
"""Below every whole number that a product can be."""
LEAST = tl.constexpr(1e-12)
"""The smallest magnitude that is divided by."""


@triton.jit
def quantize_tokens(
    x_ptr,
    mean_ptr,
    turn_ptr,
    out_ptr,
    scale_ptr,
    num_tokens,
    num_padded,
    num_heads,
    stride_batch,
    stride_token,
    stride_head,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    KEYS: tl.constexpr,
):
    """A block of tokens of one head, turned, to int8. `KEYS`: less the mean, with one scale; else a scale each."""
    block, head = tl.program_id(0), tl.program_id(1)
    tokens, lanes = block * BLOCK + tl.arange(0, BLOCK), tl.arange(0, WIDTH)
    there = (tokens < num_tokens)[:, None]
    x_ptr += (head // num_heads).to(tl.int64) * stride_batch + (head % num_heads).to(tl.int64) * stride_head
    x = tl.load(x_ptr + tokens.to(tl.int64)[:, None] * stride_token + lanes[None, :], mask=there, other=0.0)
    turned = tl.dot(x, tl.load(turn_ptr + lanes[:, None] * WIDTH + lanes[None, :]))
    largest = tl.max(tl.abs(turned), axis=1)
    if KEYS:
        turned = tl.where(there, turned - tl.load(mean_ptr + head * WIDTH + lanes)[None, :], 0.0)
        largest = tl.max(tl.abs(turned), axis=1)
        largest = tl.zeros([BLOCK], tl.float32) + tl.max(largest, axis=0)
    largest = tl.maximum(largest, LEAST)
    rounded = tl.floor(turned * (127.0 / largest)[:, None] + 0.5).to(tl.int8)
    out_ptr += head.to(tl.int64) * num_padded * WIDTH
    tl.store(out_ptr + tokens.to(tl.int64)[:, None] * WIDTH + lanes[None, :], rounded)
    if KEYS:
        tl.store(scale_ptr + head * (num_padded // BLOCK) + block, tl.max(largest, axis=0) / 127.0)
    else:
        tl.store(scale_ptr + head * num_padded + tokens, largest / 127.0)


@triton.jit
def quantize_values(
    v_ptr,
    mean_ptr,
    scale_ptr,
    out_ptr,
    num_keys,
    num_padded,
    num_heads,
    stride_batch,
    stride_token,
    stride_head,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    FP8: tl.constexpr,
):
    """A block of values of one head, less the mean, over the scale of their channel, rounded.

    `FP8`: they are written as `[WIDTH, BLOCK]`, and within 16 keys in the order of `_in_order_of_values`.
    """
    block, head = tl.program_id(0), tl.program_id(1)
    places, lanes = tl.arange(0, BLOCK), tl.arange(0, WIDTH)
    tokens = block * BLOCK + places
    if FP8:
        tokens = block * BLOCK + places // 16 * 16 + places // 2 % 2 * 8 + places // 4 % 4 * 2 + places % 2
    there = (tokens < num_keys)[:, None]
    v_ptr += (head // num_heads).to(tl.int64) * stride_batch + (head % num_heads).to(tl.int64) * stride_head
    values = tl.load(v_ptr + tokens.to(tl.int64)[:, None] * stride_token + lanes[None, :], mask=there, other=0.0)
    centred = values.to(tl.float32) - tl.load(mean_ptr + head * WIDTH + lanes)[None, :]
    scaled = tl.where(there, centred / tl.load(scale_ptr + head * WIDTH + lanes)[None, :], 0.0)
    out_ptr += head.to(tl.int64) * num_padded * WIDTH + block.to(tl.int64) * BLOCK * WIDTH
    if FP8:
        tl.store(out_ptr + lanes[None, :] * BLOCK + places[:, None], scaled.to(out_ptr.dtype.element_ty))
    else:
        tl.store(out_ptr + places[:, None] * WIDTH + lanes[None, :], scaled.to(out_ptr.dtype.element_ty))


@triton.jit
def _in_order_of_values(weights, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Columns `8 h + 2 t + e` of every 16 to `4 t + 2 h + e`.

    A thread holds the scores of columns `2 t` and `8 + 2 t` with their neighbours, and for an 8-bit product it must
    hold the weights of `4 t` to `4 t + 3`. In another order of keys these are the same: nothing moves.
    """
    parts = tl.reshape(weights, [ROWS, BLOCK // 16, 2, 4, 2])
    return tl.reshape(tl.permute(parts, [0, 1, 3, 2, 4]), [ROWS, BLOCK])


@triton.jit
def _meet_block(
    block,
    out,
    total,
    highest,
    q,
    q_scale,
    k_ptr,
    k_scale_ptr,
    v_ptr,
    num_keys,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    FP8: tl.constexpr,
    MASKED: tl.constexpr,
    SHIFTED: tl.constexpr,
    APART: tl.constexpr,
):
    """The sums after one more block of keys: weighted values, weights, and the highest score."""
    columns, lanes = tl.arange(0, BLOCK), tl.arange(0, WIDTH)
    keys = tl.load(k_ptr + block * (BLOCK * WIDTH) + (columns[None, :] * WIDTH + lanes[:, None]))
    factor = q_scale * tl.load(k_scale_ptr + block)
    if SHIFTED:
        counts = tl.dot(q, keys, tl.full([ROWS, BLOCK], WHOLE_BITS, tl.int32), out_dtype=tl.int32)
    else:
        counts = tl.dot(q, keys, out_dtype=tl.int32)
    if MASKED:
        counts = tl.where((columns < num_keys - block * BLOCK)[None, :], counts, FEWEST)
    # The largest of whole numbers: GPUs compare three of them at once.
    if SHIFTED:
        most, zero = (tl.max(counts, axis=1) - WHOLE_BITS).to(tl.float32), WHOLE
        counts = counts.to(tl.float32, bitcast=True)
    else:
        most, zero = tl.max(counts, axis=1).to(tl.float32), 0.0
        counts = counts.to(tl.float32)
    higher = tl.maximum(highest, most * factor)
    base = higher + zero * factor - P_EXPONENT
    weights = tl.exp2(counts * factor[:, None] - base[:, None])
    fade = tl.exp2(highest - higher)
    total = total * fade + tl.sum(weights, axis=1)
    rounded = weights.to(v_ptr.dtype.element_ty)
    if FP8:
        rounded = _in_order_of_values(rounded, ROWS, BLOCK)
        values = tl.load(v_ptr + block * (BLOCK * WIDTH) + (lanes[None, :] * BLOCK + columns[:, None]))
    else:
        values = tl.load(v_ptr + block * (BLOCK * WIDTH) + (columns[:, None] * WIDTH + lanes[None, :]))
    # A sum of its own for every block. In fp8 tensor cores keep few bits of a sum, and this was a little faster on an
    # H200, too. In float16 consumer cards since Ampere add twice as fast as in float32, but not as far as all keys.
    if APART and FP8:
        out = out * fade[:, None] + tl.dot(rounded, values, max_num_imprecise_acc=BLOCK)
    elif APART:
        out = out * fade[:, None] + tl.dot(rounded, values, out_dtype=tl.float16).to(tl.float32)
    else:
        out = tl.dot(rounded, values, out * fade[:, None])
    return out, total, higher


@triton.jit
def attend(
    q_ptr,
    q_scale_ptr,
    k_ptr,
    k_scale_ptr,
    v_ptr,
    v_scale_ptr,
    v_mean_ptr,
    out_ptr,
    score_scale,
    num_queries,
    num_padded_queries,
    num_keys,
    num_padded_keys,
    num_heads,
    out_stride_batch,
    out_stride_token,
    out_stride_head,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    FP8: tl.constexpr,
    RAGGED: tl.constexpr,
    SHIFTED: tl.constexpr,
    APART: tl.constexpr,
):
    """Attention of `ROWS` queries of one head to all keys. `score_scale`: of a product, for a score to base 2."""
    head = tl.program_id(1)
    batch, own = (head // num_heads).to(tl.int64), (head % num_heads).to(tl.int64)
    rows, lanes = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDTH)
    q_ptr += head.to(tl.int64) * num_padded_queries * WIDTH
    q = tl.load(q_ptr + rows.to(tl.int64)[:, None] * WIDTH + lanes[None, :])
    q_scale = tl.load(q_scale_ptr + head * num_padded_queries + rows) * score_scale
    k_ptr += head.to(tl.int64) * num_padded_keys * WIDTH
    k_scale_ptr += head * (num_padded_keys // BLOCK)
    v_ptr += head.to(tl.int64) * num_padded_keys * WIDTH
    out = tl.zeros([ROWS, WIDTH], tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    highest = tl.full([ROWS], float("-inf"), tl.float32)
    num_whole = num_keys // BLOCK
    for block in range(0, num_whole):
        out, total, highest = _meet_block(
            block, out, total, highest, q, q_scale, k_ptr, k_scale_ptr, v_ptr, num_keys,
            WIDTH, ROWS, BLOCK, FP8, False, SHIFTED, APART,
        )  # fmt: skip
    if RAGGED:
        out, total, highest = _meet_block(
            num_whole, out, total, highest, q, q_scale, k_ptr, k_scale_ptr, v_ptr, num_keys,
            WIDTH, ROWS, BLOCK, FP8, True, SHIFTED, APART,
        )  # fmt: skip
    scale = tl.load(v_scale_ptr + head * WIDTH + lanes)[None, :]
    out = out / total[:, None] * scale + tl.load(v_mean_ptr + head * WIDTH + lanes)[None, :]
    out_ptr += batch * out_stride_batch + own * out_stride_head
    places = rows.to(tl.int64)[:, None] * out_stride_token + lanes[None, :]
    tl.store(out_ptr + places, out.to(out_ptr.dtype.element_ty), mask=(rows < num_queries)[:, None])
