"""The attention kernel that a user asks for, tried before it is relied upon.

A kernel may be missing, not built for the GPU, or answer nonsense there; a run of hours should learn that at its start
and go on with what works. So the kernels behind a wish are tried on a small example, and the first one that is right
is taken. If none is, the run is told and the fastest exact kernel is found as without a wish.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from infinitalk_cli.models.attention import Kernel, attention, use_kernel
from infinitalk_cli.profiles import Attention

KERNELS: dict[Attention, tuple[Kernel, ...]] = {
    "auto": (),
    "sdpa": ("torch",),
    "flash": ("flash-attn-3", "flash-attn", "flash"),
    "cudnn": ("cudnn",),
    "sage": ("sage",),
    "fp8": ("cudnn-fp8",),
}
"""What serves a wish, the best first."""

EXAMPLE = (1, 512, 2, 128)
"""Batch, tokens, heads and head width of the example; the width is that of the published networks."""
TOLERANCE = 0.2
"""Largest difference of a kernel that works, relative to the largest value; the inexact ones stay well below."""


def wished_kernel(wish: Attention, device: torch.device, on_note: Callable[[str], None]) -> Kernel | None:
    """The kernel to use for a wish, None to find the fastest; `on_note` hears when a wish can't be met."""
    if wish == "auto":
        return None
    if device.type != "cuda":
        on_note(f"note: --attention {wish} has no effect on the CPU")
        return None
    reasons: list[str] = []
    for kernel in KERNELS[wish]:
        reason = why_unusable(kernel, device)
        if not reason:
            return kernel
        reasons.append(f"{kernel}: {reason}")
    on_note(f"attention {wish} does not work here ({'; '.join(reasons)}): the fastest exact kernel is used instead")
    return None


def why_unusable(kernel: Kernel, device: torch.device) -> str:
    """What keeps a kernel from computing on the device, "" if nothing does."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(EXAMPLE, generator=generator).to(device, torch.bfloat16) for _ in range(3))
    with use_kernel("torch"):
        expected = attention(q, k, v).float()
    try:
        with use_kernel(kernel):
            found = attention(q, k, v).float()
        worst = float((found - expected).abs().max() / expected.abs().max())
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed"
    except Exception as error:  # whatever a kernel says is the reason
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:200]
    return "" if worst <= TOLERANCE else f"its result is wrong by {worst:.0%}"
