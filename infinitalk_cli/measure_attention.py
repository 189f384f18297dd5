"""How fast every attention kernel is that works here, and how far off: `talk bench attention`.

Times are of self-attention at the size of a pass. Errors are against float32, on normal random numbers and on such as
trouble 8 bits: two channels of queries and keys 8 times as large as the others, keys that share a large offset, values
with a mean. Each is the norm of the difference over the norm of the exact result.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import get_args

import torch
from torch import Tensor

from infinitalk_cli.measure import REAL_DIT, TINY_DIT, Measured, Stopwatch, Workload
from infinitalk_cli.models.attention import Kernel, attention, kernel_for, use_kernel

ERROR_HEADS, ERROR_QUERIES = 2, 512
"""Heads whose error is measured, and queries of them."""
Heads = tuple[Tensor, Tensor, Tensor]
"""Queries, keys and values, `(1, L, H, D)`."""


@torch.no_grad()
def measure_attention(work: Workload, watch: Stopwatch) -> Iterator[Measured]:
    """Time every kernel of `models.attention` that works on the device; others are left out."""
    config = TINY_DIT if work.is_tiny else REAL_DIT
    given = normal_heads(work.num_tokens, config.num_heads, config.head_dim, watch.device)
    tflop = 4 * work.num_tokens**2 * config.dim / 1e12
    for kernel in get_args(Kernel):
        with use_kernel(kernel), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's reasons why a kernel can't serve
            if kernel_for(*given) != kernel:
                continue
            try:
                note = error_note(attention, work.num_tokens, config.head_dim, watch.device)
                yield watch.measure(f"attention {kernel}", lambda: attention(*given), tflop=tflop, note=note)
            except torch.OutOfMemoryError:
                raise
            except (ImportError, RuntimeError, TypeError, AttributeError):
                continue  # not installed, not for this GPU, or a version with another interface


def error_note(call: Callable[[Tensor, Tensor, Tensor], Tensor], length: int, width: int, device: torch.device) -> str:
    """Both errors of an attention function, in words."""
    found = [
        relative_error(call, make(length, ERROR_HEADS, width, device)) for make in (normal_heads, heads_with_outliers)
    ]
    return f"off {found[0]:.2%}, outliers {found[1]:.2%}"


def relative_error(call: Callable[[Tensor, Tensor, Tensor], Tensor], given: Heads) -> float:
    """How far `call(q, k, v)` is from attention in float32."""
    q, k, v = (x.float().transpose(1, 2) for x in given)
    rows = slice(0, None, max(1, q.shape[2] // ERROR_QUERIES))
    exact = torch.softmax(q[:, :, rows] @ k.mT / q.shape[-1] ** 0.5, dim=-1) @ v
    found = call(*given)[:, rows].transpose(1, 2).float()
    return float((found - exact).norm() / exact.norm())


def normal_heads(length: int, num_heads: int, width: int, device: torch.device) -> Heads:
    """Normal random numbers."""
    draw = torch.Generator(device).manual_seed(2)
    shape = (3, 1, length, num_heads, width)
    q, k, v = torch.randn(shape, generator=draw, device=device, dtype=torch.bfloat16)
    return q, k, v


def heads_with_outliers(length: int, num_heads: int, width: int, device: torch.device) -> Heads:
    """The same with what makes rounding to 8 bits hard."""
    q, k, v = (x.float() for x in normal_heads(length, num_heads, width, device))
    draw = torch.Generator(device).manual_seed(3)
    offset = torch.randn(2, width, generator=draw, device=device)
    large = torch.ones(width, device=device)
    large[[1, width // 2]] = 8
    q, k, v = q * large / 2, k * large / 2 + 2 * offset[0], v + offset[1]
    return q.bfloat16(), k.bfloat16(), v.bfloat16()
