"""The one place where an attention kernel is called, and where it is chosen.

Every attention of the transformer is plain softmax attention without a mask, so one function serves them all. Which
kernel is fastest depends on the GPU, the versions of torch and cuDNN and on what else is installed, by more than 1.5
times. So on a GPU the first call in half precision times the candidates on a part of its own tensors, checks each
against torch's default, and the winner serves the rest of the process: one choice for long rows of keys, one for short
ones. `use_kernel` settles it by hand. Kernels that are not exact take part only where that is asked for.

On a CPU, in float32 and for what a kernel can't take, torch chooses.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib import import_module
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from infinitalk_cli.models.attention_int8 import WIDTHS as INT8_WIDTHS
from infinitalk_cli.models.attention_int8 import attention_int8

Kernel = Literal[
    "torch", "cudnn", "flash", "efficient", "flash-attn-3", "flash-attn", "sage", "cudnn-fp8", "int8", "int8-fp8"
]
"""torch: its own choice. cudnn, flash, efficient: torch's kernels by name. flash-attn-3, flash-attn: the packages.
Not exact, opt-in: sage, 8 bits, the package; cudnn-fp8 (`attention_fp8.py`); int8 and int8-fp8, which has values in fp8
too (`attention_int8.py`). The last three are for self-attention alone."""

Wish = Kernel | tuple[Kernel, ...] | None
"""A kernel by name, several of which the fastest serves, or the fastest exact one."""

EXACT: tuple[Kernel, ...] = ("torch", "cudnn", "flash", "efficient", "flash-attn-3", "flash-attn")
EIGHT_BIT: tuple[Kernel, ...] = ("int8", "sage", "int8-fp8", "cudnn-fp8")

_HALF = (torch.bfloat16, torch.float16)
_FUSED_HEAD_DIM = 256
"""The widest head that the fused kernels take."""
_SHORT = 1024
"""Up to so many keys a call is more reading and writing than arithmetic."""
_SAMPLE = 8192
"""Tokens to time kernels with."""
_TOLERANCE = 0.02
"""Largest difference to torch's own choice, relative to the largest value, of a kernel that counts as exact."""
_TOLERANCE_8_BIT = 0.2
"""The same of one in 8 bits that works."""
_HANDICAP: dict[Kernel, float] = {"int8": 1.1, "sage": 1.1, "int8-fp8": 1.2, "cudnn-fp8": 1.3}
"""The time of an inexact kernel counts so many times: it must be worth its error."""

_wish: ContextVar[Wish] = ContextVar("attention_kernel", default=None)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention with scale `1 / sqrt(head width)`.

    Args: q: `(B, L, H, D)`. k, v: `(B, M, H, D)`, all of one dtype.
    Returns: `(B, L, H, D)`.
    """
    return _CALLS[kernel_for(q, k, v)](q, k, v)


@contextmanager
def use_kernel(kernel: Wish) -> Generator[None]:
    """Inside, this kernel computes wherever it can; of several the fastest, of None the fastest exact one."""
    token = _wish.set(kernel)
    try:
        yield
    finally:
        _wish.reset(token)


def current_wish() -> Wish:
    """What `use_kernel` has settled."""
    return _wish.get()


def kernel_for(q: Tensor, k: Tensor, v: Tensor) -> Kernel:
    """The kernel that serves such tensors; the first call of a kind times the candidates."""
    if not q.is_cuda or q.dtype not in _HALF or q.shape[-1] > _FUSED_HEAD_DIM or q.requires_grad:
        return "torch"
    wish = _wish.get()
    if isinstance(wish, str) and can_serve(wish, q, k):
        return wish
    among = wish if isinstance(wish, tuple) and is_self_attention(q, k) else EXACT
    kind = (q.device, q.dtype, q.shape[-1], k.shape[1] <= _SHORT, among)
    if kind not in _chosen:
        _chosen[kind] = fastest(q[:1, :_SAMPLE], k[:1, :_SAMPLE], v[:1, :_SAMPLE], among)
    return _chosen[kind]


def is_self_attention(q: Tensor, k: Tensor) -> bool:
    """Whether tokens meet each other, all of them or some with all; the keys of text, picture and speech are few."""
    return q.shape == k.shape or k.shape[1] > _SHORT


def can_serve(kernel: Kernel, q: Tensor, k: Tensor) -> bool:
    """Whether a kernel is for such tensors: those of our own in 8 bits are for self-attention."""
    if kernel == "cudnn-fp8":
        return q.shape == k.shape
    if kernel in ("int8", "int8-fp8"):
        return q.shape[-1] in INT8_WIDTHS and is_self_attention(q, k)
    return True


_chosen: dict[tuple[torch.device, torch.dtype, int, bool, tuple[Kernel, ...]], Kernel] = {}
"""The winners so far. Kept for the process: a second choice could differ, and with it the last bits of a video."""


def chosen_kernels() -> dict[str, Kernel]:
    """What was chosen so far, for the log: `{"cuda:0 bfloat16 long": "cudnn"}`."""
    named: dict[str, Kernel] = {}
    for (device, dtype, _, short, among), kernel in _chosen.items():
        kind = ("short" if short else "long") + ("" if among == EXACT else " 8-bit")
        named[f"{device} {str(dtype).removeprefix('torch.')} {kind}"] = kernel
    return named


def fastest(q: Tensor, k: Tensor, v: Tensor, among: Sequence[Kernel] = EXACT) -> Kernel:
    """The fastest right kernel for these tensors on their GPU; "torch" if none works."""
    expected = _CALLS["torch"](q, k, v).float()
    largest = expected.abs().amax()
    times: dict[Kernel, float] = {}
    for kernel in among:
        if not can_serve(kernel, q, k):
            continue
        limit = largest * (_TOLERANCE_8_BIT if kernel in EIGHT_BIT else _TOLERANCE)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's reasons why a kernel can't serve
                is_right = (_CALLS[kernel](q, k, v).float() - expected).abs().amax() <= limit
                if is_right:
                    taken_s = _seconds(lambda call=_CALLS[kernel]: call(q, k, v), q.device)
                    times[kernel] = taken_s * _HANDICAP.get(kernel, 1.0)
        except Exception:
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


def _int8(*, fp8_values: bool) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention_int8(q, k, v, fp8_values=fp8_values)

    return call


_CALLS: dict[Kernel, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "torch": _torch,
    "cudnn": _torch_with("CUDNN_ATTENTION"),
    "flash": _torch_with("FLASH_ATTENTION"),
    "efficient": _torch_with("EFFICIENT_ATTENTION"),
    "flash-attn-3": _flash_attn_3,
    "flash-attn": _flash_attn,
    "sage": _sage,
    "cudnn-fp8": _cudnn_fp8,
    "int8": _int8(fp8_values=False),
    "int8-fp8": _int8(fp8_values=True),
}
