"""Chains of small operations between the big ones, each as one kernel on a GPU and in plain PyTorch anywhere.

Norms, modulation, gates, residual sums and rotations compute next to nothing and move whole tensors of tokens through
memory: done one by one they cost a quarter of a block's time. A fused form reads each tensor once and writes it once.

`plain_*` are the definition. The fused forms round at the same places and sum in float32 too, in another order, so a
bfloat16 result may differ in the last bit where a sum falls between two values. They run on CUDA in bfloat16 and
float16 wherever Triton works; float32 always takes the plain form. Some write over an argument that the caller is done
with: such arguments are named `spent_*` and must not be used afterwards.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infinitalk_cli.models.rotary import Rotation, rotate

HALF_DTYPES = (torch.bfloat16, torch.float16)

NORM_SHAPE, SUM_NORM_SHAPE, RMS_SHAPE, ROTATE_SHAPE, GATE_SHAPE = (8, 8), (1, 16), (1, 4), (1, 8), (4, 8)
"""Rows of a program, and its warps for 8192 columns: the fastest of 15 pairs for 32,928 x 5120 on an H200."""

_CHANNEL_VALUES = 8192
"""Values of a program where rows are short."""

_is_allowed: ContextVar[bool] = ContextVar("is_allowed", default=True)


@contextmanager
def plain_forms() -> Generator[None]:
    """Inside, everything runs in its plain form: for comparison."""
    token = _is_allowed.set(False)
    try:
        yield
    finally:
        _is_allowed.reset(token)


def norm_modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """`layer_norm(x) * (1 + scale) + shift`, the norm rounded before the product.

    Args: x: `(1, N, D)`. shift, scale: `(1, D)`, float32. Returns: the shape and dtype of `x`.
    """
    if not is_fused(x):
        return plain_norm_modulate(x, shift, scale, eps)
    return _add_norm(x, None, None, scale, shift, eps, modulates=True)


def plain_norm_modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """The definition of `norm_modulate`."""
    normed = F.layer_norm(x, x.shape[-1:], eps=eps)
    return (normed * (1 + scale)).add_(shift).to(x.dtype)


def add_norm_modulate(
    x: Tensor, spent_change: Tensor, shift: Tensor, scale: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """`x + change`, and `norm_modulate` of it."""
    if not is_fused(x):
        total = x + spent_change
        return total, plain_norm_modulate(total, shift, scale, eps)
    return spent_change, _add_norm(x, spent_change, None, scale, shift, eps, modulates=True)


def add_norm(x: Tensor, spent_change: Tensor, gate: Tensor | None, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """`x + gate * change`, and the layer norm of it with its weight and bias.

    Args: x, spent_change: `(1, N, D)`. gate: `(1, D)` float32, None for 1.
    """
    if not is_fused(x):
        total = x + spent_change if gate is None else plain_gated_sum(x, gate, spent_change)
        return total, norm(total)
    return spent_change, _add_norm(x, spent_change, gate, norm.weight, norm.bias, norm.eps, modulates=False)


def gated_sum(x: Tensor, gate: Tensor, change: Tensor, *, out: Tensor) -> None:
    """Write `x + gate * change` to `out`, summed in float32 and rounded once to the dtype of `x`.

    Args: x, change, out: `(1, N, D)`; `out` may be one of the others. gate: `(1, D)`, float32.
    """
    if not is_fused(x):
        out.copy_(plain_gated_sum(x, gate, change))
        return
    rows, width = x.numel() // x.shape[-1], x.shape[-1]
    grid, sizes = _launch(rows, width, GATE_SHAPE)
    _kernels().gated_sum_rows[grid](
        x.contiguous(), change.contiguous(), gate.contiguous(), _own(out), rows, width, **sizes
    )


def plain_gated_sum(x: Tensor, gate: Tensor, change: Tensor) -> Tensor:
    """The definition of `gated_sum`."""
    return (change * gate).add_(x).to(x.dtype)


def rms_norm(spent_x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root mean square norm over the last axis; the quotient is rounded before it meets the weight.

    Args: spent_x: `(B, N, D)`. weight: `(D,)`. Returns: the shape of `spent_x`.
    """
    if not is_fused(spent_x):
        return plain_rms_norm(spent_x, weight, eps)
    return _rms_rotate(spent_x, weight, eps, None)


def plain_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The definition of `rms_norm`."""
    return F.rms_norm(x, (x.shape[-1],), eps=eps) * weight


def rms_rotate(spent_x: Tensor, weight: Tensor, eps: float, rotation: Rotation, num_heads: int) -> Tensor:
    """RMS norm over the full width, then the rotation within each head.

    Args: spent_x: `(1, N, H * D)`. rotation: tables `(N, 1, D / 2)`. Returns: `(1, N, H, D)`.
    """
    if not is_fused(spent_x):
        return rotate(plain_rms_norm(spent_x, weight, eps).unflatten(-1, (num_heads, -1)), rotation)
    return _rms_rotate(spent_x, weight, eps, rotation).unflatten(-1, (num_heads, -1))


def rotate_heads(spent_x: Tensor, rotation: Rotation) -> Tensor:
    """The rotation alone. Args: spent_x: `(B, L, H, D)`. rotation: tables `(B, L, 1, D / 2)`."""
    if not is_fused(spent_x):
        return rotate(spent_x, rotation)
    return _rms_rotate(spent_x.flatten(-2), None, 0.0, rotation).view_as(spent_x)


def linear_gelu(linear: nn.Module, x: Tensor) -> Tensor:
    """`gelu(linear(x))` in the tanh form: in the end of the matrix product where torch offers that.

    There GELU sees the sum before it is rounded. Args: x: `(1, N, D)`.
    """
    product: Any = getattr(torch, "_addmm_activation", None)
    if type(linear) is not nn.Linear or product is None or not is_fused(x):
        return F.gelu(linear(x), approximate="tanh")
    return product(linear.bias, x.flatten(0, 1), linear.weight.t(), use_gelu=True).unflatten(0, x.shape[:2])


def can_norm_silu(x: Tensor) -> bool:
    """Whether `channel_norm_silu` takes `(B, C, T, H, W)` like `x`: one clip, channels side by side in memory."""
    return is_fused(x) and x.shape[0] == 1 and x.is_contiguous(memory_format=torch.channels_last_3d)


def channel_norm_silu(x: Tensor, gamma: Tensor, floor: float, *, out: Tensor) -> None:
    """Write `silu(x * sqrt(C) / length over the channels * gamma)` to `out`.

    It is rounded once, where the steps one by one round three times.
    Args: x, out: `(1, C, T, H, W)`, both as `can_norm_silu` wants them. gamma: `C` values. floor: least length.
    """
    width = x.shape[1]
    rows, block = x.numel() // width, 1 << (width - 1).bit_length()
    at_once = max(1, _CHANNEL_VALUES // block)
    _kernels().channel_norm_rows[(-(-rows // at_once),)](
        x, gamma.contiguous(), out, rows, width, width**0.5, floor, SILU=True, ROWS=at_once, BLOCK=block, num_warps=8
    )


def is_fused(x: Tensor) -> bool:
    """Whether tensors like `x` take the fused forms."""
    return x.is_cuda and x.dtype in HALF_DTYPES and _is_allowed.get() and triton_works(x.device)


@cache
def triton_works(device: torch.device) -> bool:
    """Whether a small kernel compiles and runs; Triton may be absent, or lack a C compiler."""
    x = torch.ones(1, 2, 16, dtype=torch.bfloat16, device=device)
    gate = torch.ones(1, 16, device=device)
    try:
        grid, sizes = _launch(2, 16, GATE_SHAPE)
        _kernels().gated_sum_rows[grid](x, x, gate, x, 2, 16, **sizes)
        return bool((x == 2).all())
    except Exception:
        return False


def _add_norm(
    x: Tensor, change: Tensor | None, gate: Tensor | None, scale: Tensor, shift: Tensor, eps: float, *, modulates: bool
) -> Tensor:
    """Launch the kernel: `change` becomes the sum, the norm is returned. What is not there is passed as `x`."""
    x = x.contiguous()
    out = torch.empty_like(x)
    rows, width = x.numel() // x.shape[-1], x.shape[-1]
    grid, sizes = _launch(rows, width, NORM_SHAPE if change is None else SUM_NORM_SHAPE)
    _kernels().add_norm_rows[grid](
        x,
        x if change is None else _own(change),
        x if gate is None else gate.contiguous(),
        scale.contiguous(),
        shift.contiguous(),
        out,
        rows,
        width,
        eps,
        HAS_CHANGE=change is not None,
        HAS_GATE=gate is not None,
        MODULATES=modulates,
        **sizes,
    )
    return out


def _rms_rotate(x: Tensor, weight: Tensor | None, eps: float, rotation: Rotation | None) -> Tensor:
    """Launch the kernel on `(..., D)`, in place. What is not there is passed as `x`."""
    x = _own(x)
    rows, width = x.numel() // x.shape[-1], x.shape[-1]
    grid, sizes = _launch(rows, width, RMS_SHAPE if rotation is None else ROTATE_SHAPE)
    _kernels().rms_rotate_rows[grid](
        x,
        x if weight is None else weight,
        x if rotation is None else rotation.cos.contiguous(),
        x if rotation is None else rotation.sin.contiguous(),
        rows,
        width,
        eps,
        HEAD_PAIRS=1 if rotation is None else rotation.cos.shape[-1],
        NORMS=weight is not None,
        ROTATES=rotation is not None,
        **sizes,
    )
    return x


def _own(spent: Tensor) -> Tensor:
    """A tensor to write over. It must be dense: a copy would hide that the caller's own stays as it was."""
    assert spent.is_contiguous(), "a fused operation writes in place and needs a dense tensor"
    return spent


def _launch(rows: int, width: int, shape: tuple[int, int]) -> tuple[tuple[int], dict[str, int]]:
    """Number of programs, and the sizes of one, for rows of this width."""
    block = 1 << (width - 1).bit_length()
    return (-(-rows // shape[0]),), {"ROWS": shape[0], "BLOCK": block, "num_warps": max(1, shape[1] * block // 8192)}


@cache
def _kernels() -> Any:
    return import_module("infinitalk_cli.models.triton_kernels")
