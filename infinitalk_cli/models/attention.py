"""The one place where an attention kernel is called, and where it is chosen.

Every attention of the transformer is plain softmax attention without a mask, so one function serves them all. Which
kernel is fastest depends on the GPU, the versions of torch and cuDNN and on what else is installed, by more than 1.5
times. So on a GPU the first call in half precision times the candidates on a part of its own tensors, checks each
against torch's default, and the winner serves the rest of the process: one choice for long rows of keys, one for short
ones. `use_kernel` settles it by hand. Kernels that are not exact are never chosen, only asked for.

On a CPU, in float32 and for what a kernel can't take, torch chooses.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib import import_module
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

Kernel = Literal["torch", "cudnn", "flash", "efficient", "flash-attn-3", "flash-attn", "sage", "cudnn-fp8"]
"""torch: its own choice. cudnn, flash, efficient: torch's kernels by name. flash-attn-3, flash-attn: the packages.
Not exact, opt-in: sage, 8 bits; cudnn-fp8, 6 % off, for self-attention alone (`attention_fp8.py`)."""

EXACT: tuple[Kernel, ...] = ("torch", "cudnn", "flash", "efficient", "flash-attn-3", "flash-attn")

_HALF = (torch.bfloat16, torch.float16)
_FUSED_HEAD_DIM = 256
"""The widest head that the fused kernels take."""
_SHORT = 1024
"""Up to so many keys a call is more reading and writing than arithmetic."""
_SAMPLE = 8192
"""Tokens to time kernels with."""
_TOLERANCE = 0.02
"""Largest difference to torch's own choice, relative to the largest value, of a kernel that counts as exact."""

_wish: ContextVar[Kernel | None] = ContextVar("attention_kernel", default=None)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention with scale `1 / sqrt(head width)`.

    Args: q: `(B, L, H, D)`. k, v: `(B, M, H, D)`, all of one dtype.
    Returns: `(B, L, H, D)`.
    """
    return _CALLS[kernel_for(q, k, v)](q, k, v)


@contextmanager
def use_kernel(kernel: Kernel | None) -> Generator[None]:
    """Inside, this kernel computes wherever it can; None lets the fastest exact one be found."""
    token = _wish.set(kernel)
    try:
        yield
    finally:
        _wish.reset(token)


def kernel_asked_for() -> Kernel | None:
    """The kernel of `use_kernel`, None if the fastest is to be found."""
    return _wish.get()


def current_wish() -> Kernel | None:
    """What `use_kernel` has settled."""
    return _wish.get()


def kernel_for(q: Tensor, k: Tensor, v: Tensor) -> Kernel:
    """The kernel that serves such tensors; the first call of a kind times the candidates."""
    if not q.is_cuda or q.dtype not in _HALF or q.shape[-1] > _FUSED_HEAD_DIM or q.requires_grad:
        return "torch"
    wish = _wish.get()
    if wish is not None and (wish != "cudnn-fp8" or q.shape == k.shape):
        return wish
    kind = (q.device, q.dtype, q.shape[-1], k.shape[1] <= _SHORT)
    if kind not in _chosen:
        _chosen[kind] = fastest(q[:1, :_SAMPLE], k[:1, :_SAMPLE], v[:1, :_SAMPLE])
    return _chosen[kind]


_chosen: dict[tuple[torch.device, torch.dtype, int, bool], Kernel] = {}
"""The winners so far. Kept for the process: a second choice could differ, and with it the last bits of a video."""


def chosen_kernels() -> dict[str, Kernel]:
    """What was chosen so far, for the log: `{"cuda:0 bfloat16 long": "cudnn"}`."""
    return {
        f"{device} {str(dtype).removeprefix('torch.')} {'short' if short else 'long'}": kernel
        for (device, dtype, _, short), kernel in _chosen.items()
    }


def fastest(q: Tensor, k: Tensor, v: Tensor) -> Kernel:
    """The fastest exact kernel for these tensors on their GPU; "torch" if no other works and is faster."""
    expected = _CALLS["torch"](q, k, v).float()
    limit = _TOLERANCE * expected.abs().amax()
    times: dict[Kernel, float] = {}
    for kernel in EXACT:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's reasons why a kernel can't serve
                is_right = (_CALLS[kernel](q, k, v).float() - expected).abs().amax() <= limit
                if is_right:
                    times[kernel] = _seconds(lambda call=_CALLS[kernel]: call(q, k, v), q.device)
        except (ImportError, RuntimeError, TypeError, AttributeError):
            continue  # not installed, not for this GPU, or a version with another interface
    return min(times, key=lambda kernel: times[kernel]) if times else "torch"


def _seconds(call: Callable[[], object], device: torch.device, repeats: int = 5) -> float:
    """The shortest of some runs."""
    found: list[float] = []
    for _ in range(repeats):
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        call()
        torch.cuda.synchronize(device)
        found.append(time.perf_counter() - start)
    return min(found)


def _torch(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)


def _torch_with(backend: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(getattr(SDPBackend, backend)):
            return _torch(q, k, v)

    return call


@cache
def _function(module: str, name: str) -> Any:
    return getattr(import_module(module), name)


def _flash_attn_3(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out = _function("flash_attn_interface", "flash_attn_func")(q, k, v)
    return out[0] if isinstance(out, tuple) else out  # older versions return the log-sum too


def _flash_attn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return _function("flash_attn", "flash_attn_func")(q, k, v)


def _sage(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return _function("sageattention", "sageattn")(q, k, v, tensor_layout="NHD", is_causal=False)


def _cudnn_fp8(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return _function("infinitalk_cli.models.attention_fp8", "attention_fp8")(q, k, v)


_CALLS: dict[Kernel, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "torch": _torch,
    "cudnn": _torch_with("CUDNN_ATTENTION"),
    "flash": _torch_with("FLASH_ATTENTION"),
    "efficient": _torch_with("EFFICIENT_ATTENTION"),
    "flash-attn-3": _flash_attn_3,
    "flash-attn": _flash_attn,
    "sage": _sage,
    "cudnn-fp8": _cudnn_fp8,
}
