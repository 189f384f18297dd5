"""Self-attention with 8-bit products in a Triton kernel of our own, from compute capability 8.0: fast, and not exact.

Scores are products of whole numbers. What is done so that 8 bits suffice changes nothing in exact arithmetic:
- keys lose their mean over all tokens: it adds the same to every score of a query, which softmax does not see;
- queries and keys are turned by one orthogonal matrix (Hadamard's), which spreads a channel that is far larger than
  the others over all of them, and no product of a query with a key changes;
- then queries get a scale each, keys one for a block of tokens, both are rounded to int8.
The softmax runs over the blocks in float32. Its weights meet the values, less their mean and with a scale per channel,
in one of two forms: both in float16, or both in fp8 (e4m3; from 8.9). Sums over blocks are float32.

Error at 32,928 tokens (norm of the difference over norm, H200), on normal random numbers: 1.2 % with values in 16 bits,
5.0 % in fp8; cuDNN's fp8 with a scale per tensor has 6.2 %, bfloat16 0.24 %. With two channels 8 times as large in
queries and keys, which have a mean: 0.19, 0.35, 25 and 0.17 %. `plain_attention_int8` is the definition; the kernel
differs from it in the order of sums.

Sources: SageAttention (Zhang et al., arXiv 2410.02367 and 2411.10958: int8 scores, keys less their mean, fp8 weights
and values with sums apart), FlashAttention-3 (Shah et al., arXiv 2407.08608: Hadamard turn), the online softmax of
FlashAttention (Dao et al., arXiv 2205.14135). The code is ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

WIDTHS = (64, 128)
"""Head widths that the kernel serves."""
HEADS_AT_ONCE = 20
"""Rounded tokens of so many heads are held, so that a pass needs no more memory than with an exact kernel."""
FP8 = torch.float8_e4m3fn
LARGEST_INT8, LARGEST_FP8 = 127.0, 448.0
WEIGHT_EXPONENT = 8
"""Weights of the softmax are multiplied with 2 to this power before they are rounded."""
LEAST = 1e-12
"""The smallest magnitude that is divided by."""


@dataclass(frozen=True)
class Shape:
    """How the kernel is cut: queries of a program, keys of a block, warps, blocks on their way at once.

    `shifted`: whether whole numbers become floats by an offset to the sum's start in place of a conversion. `apart`:
    whether the weighted values of a block are summed by themselves, in float16 where that is their form.
    """

    rows: int
    block: int
    warps: int
    stages: int
    shifted: bool = False
    apart: bool = False
    max_registers: int | None = None


def attention_int8(q: Tensor, k: Tensor, v: Tensor, *, fp8_values: bool = False, shape: Shape | None = None) -> Tensor:
    """Softmax attention with scale `1 / sqrt(head width)`.

    Args: q: `(B, L, H, D)`. k, v: `(B, M, H, D)`, all on one GPU and of one half-precision dtype. `shape`: None for the
        one known to be good on that GPU.
    Returns: `(B, L, H, D)`.
    Raises: ModuleNotFoundError: without Triton. RuntimeError: for a GPU or a head width that the kernel doesn't serve.
    """
    refuse_unfit(q, fp8_values=fp8_values)
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    shape = shape or shape_for(torch.cuda.get_device_capability(q.device), fp8_values=fp8_values)
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    for first in range(0, q.shape[2], HEADS_AT_ONCE):
        heads = slice(first, first + HEADS_AT_ONCE)
        _attend(q[:, :, heads], k[:, :, heads], v[:, :, heads], out[:, :, heads], shape, fp8_values=fp8_values)
    return out


def _attend(q: Tensor, k: Tensor, v: Tensor, out: Tensor, shape: Shape, *, fp8_values: bool) -> None:
    """Write the attention of some heads to `out`."""
    kernels: Any = import_module("infinitalk_cli.models.attention_int8_kernels")
    queries, query_scales = rounded_tokens(kernels, q, None, shape.rows)
    keys, key_scales = rounded_tokens(kernels, k, turned_mean(k), shape.block)
    values, value_mean, value_scale = rounded_values(kernels, v, shape.block, fp8=fp8_values)
    (batch, num_queries, heads, width), num_keys = q.shape, k.shape[1]
    registers = {"maxnreg": shape.max_registers} if shape.max_registers else {}
    kernels.attend[(-(-num_queries // shape.rows), batch * heads)](
        queries, query_scales, keys, key_scales, values, value_scale, value_mean, out, score_scale(width),
        num_queries, queries.shape[2], num_keys, keys.shape[2], heads, *out.stride()[:3],
        WIDTH=width, ROWS=shape.rows, BLOCK=shape.block, FP8=fp8_values, RAGGED=num_keys < keys.shape[2],
        SHIFTED=shape.shifted, APART=shape.apart,
        num_warps=shape.warps, num_stages=shape.stages, **registers,
    )  # fmt: skip


def refuse_unfit(q: Tensor, *, fp8_values: bool) -> None:
    """Raises: RuntimeError: where the kernel can't serve."""
    if q.shape[-1] not in WIDTHS:
        raise RuntimeError(f"int8 attention serves heads of {' or '.join(map(str, WIDTHS))} values, not {q.shape[-1]}")
    oldest = (8, 9) if fp8_values else (8, 0)
    found = torch.cuda.get_device_capability(q.device)
    if found < oldest:
        raise RuntimeError(f"it needs compute capability {'.'.join(map(str, oldest))}, this is {found[0]}.{found[1]}")


SHAPES: Mapping[tuple[tuple[int, int], bool], Shape] = {
    ((8, 0), False): Shape(128, 64, 8, 3, shifted=True),
    ((8, 6), False): Shape(128, 64, 8, 3, apart=True),
    ((8, 9), True): Shape(128, 64, 8, 3, apart=True),
    ((9, 0), False): Shape(128, 64, 8, 3, shifted=True, max_registers=128),
    ((9, 0), True): Shape(64, 128, 4, 3, apart=True),
    ((12, 0), False): Shape(128, 64, 8, 3, apart=True),
    ((12, 0), True): Shape(128, 64, 8, 3, apart=True),
}
"""By the first compute capability that it is for, and whether values are fp8. Those of 9.0 were the fastest on an H200
(benchmarks/h200-attention-int8.txt). The others are not measured: they fit into the shared memory and the registers
of these GPUs, where larger ones do not."""


def shape_for(capability: tuple[int, int], *, fp8_values: bool) -> Shape:
    """The shape for a GPU: that of the newest one listed which is not newer."""
    known = [first for first, is_fp8 in SHAPES if is_fp8 == fp8_values]
    return SHAPES[max((first for first in known if first <= capability), default=min(known)), fp8_values]


def score_scale(width: int) -> float:
    """What a product of two turned vectors is multiplied with: a score to base 2."""
    return math.log2(math.e) / math.sqrt(width) / width


@cache
def hadamard(width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The matrix of 1 and -1 whose product with its transpose is `width` times the identity, `(width, width)`."""
    matrix = torch.ones(1, 1)
    while len(matrix) < width:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix.to(device, dtype)


def rounded_tokens(kernels: Any, x: Tensor, mean: Tensor | None, block: int) -> tuple[Tensor, Tensor]:
    """Turned, in int8, `(B, H, padded, D)`, and scales: for keys, which have a mean, one a block, else one a token."""
    batch, num_tokens, heads, width = x.shape
    num_blocks = -(-num_tokens // block)
    out = torch.empty(batch, heads, num_blocks * block, width, dtype=torch.int8, device=x.device)
    num_scales = num_blocks * block if mean is None else num_blocks
    scales = torch.empty(batch, heads, num_scales, dtype=torch.float32, device=x.device)
    turn = hadamard(width, x.device, x.dtype)
    kernels.quantize_tokens[(num_blocks, batch * heads)](
        x, x if mean is None else mean, turn, out, scales, num_tokens, num_blocks * block, heads, *x.stride()[:3],
        WIDTH=width, BLOCK=block, KEYS=mean is not None, num_warps=8,
    )  # fmt: skip
    return out, scales


def turned_mean(k: Tensor) -> Tensor:
    """The mean of the turned keys, `(B, H, D)` in float32."""
    return k.mean(dim=1, dtype=torch.float32) @ hadamard(k.shape[-1], k.device, torch.float32)


def rounded_values(kernels: Any, v: Tensor, block: int, *, fp8: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Values `(B, H, blocks, block, D)`, in fp8 `(.., D, block)` in the kernel's order; mean and scale of channels."""
    batch, num_keys, heads, width = v.shape
    num_blocks = -(-num_keys // block)
    mean, scale = mean_and_scale(v, fp8=fp8)
    out = torch.empty(batch, heads, num_blocks, width, block, dtype=FP8 if fp8 else torch.float16, device=v.device)
    kernels.quantize_values[(num_blocks, batch * heads)](
        v, mean, scale, out, num_keys, num_blocks * block, heads, *v.stride()[:3],
        WIDTH=width, BLOCK=block, FP8=fp8, num_warps=8,
    )  # fmt: skip
    return out, mean, scale


def mean_and_scale(v: Tensor, *, fp8: bool) -> tuple[Tensor, Tensor]:
    """Over the tokens, `(B, H, D)` in float32: the mean, and what takes the largest distance from it to 448 or 1."""
    mean = v.mean(dim=1, dtype=torch.float32)
    low, high = torch.aminmax(v, dim=1)
    return mean, torch.maximum(high - mean, mean - low).clamp_min(LEAST) / (LARGEST_FP8 if fp8 else 1.0)


@torch.no_grad()
def plain_attention_int8(q: Tensor, k: Tensor, v: Tensor, *, fp8_values: bool = False, block: int = 128) -> Tensor:
    """The definition of `attention_int8` with blocks of so many keys, on any device."""
    width = q.shape[-1]
    turn = hadamard(width, q.device, torch.float32)
    queries = q.transpose(1, 2).float() @ turn
    keys = k.transpose(1, 2).float() @ turn - turned_mean(k).unsqueeze(2)
    mean, scale = (x.unsqueeze(2) for x in mean_and_scale(v, fp8=fp8_values))
    value_dtype = FP8 if fp8_values else torch.float16
    values = ((v.transpose(1, 2).float() - mean) / scale).to(value_dtype).float()
    whole_q, q_scale = _rounded(queries, dims=(-1,))
    out = torch.zeros_like(queries)
    total, highest = out[..., :1].clone(), torch.full_like(out[..., :1], -torch.inf)
    for start in range(0, k.shape[1], block):
        whole_k, k_scale = _rounded(keys[:, :, start : start + block], dims=(-2, -1))
        scores = whole_q @ whole_k.mT * (q_scale * k_scale * score_scale(width))
        higher = torch.maximum(highest, scores.amax(-1, keepdim=True))
        weights, fade = (scores - higher + WEIGHT_EXPONENT).exp2(), (highest - higher).exp2()
        total = total * fade + weights.sum(-1, keepdim=True)
        out = out * fade + weights.to(value_dtype).float() @ values[:, :, start : start + block]
        highest = higher
    return (out / total * scale + mean).to(v.dtype).transpose(1, 2)


def _rounded(x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """`x` in whole numbers up to 127, and what leads back, one for all along `dims`."""
    largest = x.abs().amax(dims, keepdim=True).clamp_min(LEAST)
    return (x * (LARGEST_INT8 / largest) + 0.5).floor(), largest / LARGEST_INT8
