"""The attention kernel that a user asks for, tried before it is relied upon.

A kernel may be missing, not built for the GPU, or answer nonsense there; a run of hours should learn that at its start
and go on with what works. So the kernels behind a wish are tried on a small example, and the first one that is right
is taken. If none is, the run is told and the fastest exact kernel is found as without a wish. A trial imports and
compiles for seconds, so it runs in a thread while weights are read.

A small example does not show all. So the outcome of the run's first pass is looked at, too: where it is no number
(which would make black frames), torch's own kernel computes that pass again and serves the run.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from infinitalk_cli.errors import WeightsError
from infinitalk_cli.models.attention import EIGHT_BIT, EXACT, Kernel, Wish, attention, chosen_kernels, use_kernel
from infinitalk_cli.profiles import Attention

KERNELS: dict[Attention, tuple[Kernel, ...]] = {
    "auto": (),
    "sdpa": ("torch",),
    "flash": ("flash-attn-3", "flash-attn", "flash"),
    "cudnn": ("cudnn",),
    "sage": ("sage",),
    "fp8": ("cudnn-fp8",),
    "int8": ("int8", "int8-fp8"),
    "8bit": (*EXACT, *EIGHT_BIT),
}
"""What serves a wish, the best first."""
TIMED: tuple[Attention, ...] = ("int8", "8bit")
"""Wishes that every kernel which works may serve: the first call times them."""

EXAMPLE = (1, 500, 2)
"""Batch, tokens and heads of the example."""
TOLERANCE = 0.2
"""Largest difference of a kernel that works, relative to the largest value; the inexact ones stay well below."""


@dataclass(frozen=True)
class Tried:
    """What came of trying a wish: what `use_kernel` is to be told, and what the user is, "" for nothing."""

    kernel: Wish
    note: str = ""


@contextmanager
def trying(wish: Attention, device: torch.device, width: int) -> Generator[Callable[[], Tried]]:
    """Try a wish beside what is done inside the `with`; the value waits for the outcome. Args: as `try_wish`."""
    with ThreadPoolExecutor(1) as aside:
        yield aside.submit(try_wish, wish, device, width).result


@contextmanager
def attention_of_run(
    tried: Tried, dit: nn.Module, device: torch.device, on_note: Callable[[str], None]
) -> Generator[None]:
    """Inside, the transformer attends as tried; its first pass is checked, and on a GPU the kernel is named after it.

    Raises: WeightsError: in the first pass, if no kernel makes numbers of it.
    """
    kernel = tried.kernel
    if tried.note:
        on_note(tried.note)
    with ExitStack() as settled:
        settled.enter_context(use_kernel(kernel))

        def check(module: nn.Module, args: tuple[Any, ...], keywords: Mapping[str, Any], made: Tensor) -> Tensor | None:
            hook.remove()
            if made.isfinite().all():
                if device.type == "cuda":
                    on_note(f"attention: {kernel_names(kernel)}")
                return None
            with use_kernel("torch"):
                again: Tensor = module(*args, **keywords)
            if not again.isfinite().all():
                raise WeightsError(
                    "the transformer's first pass gives values that are no numbers (NaN)",
                    hint="its files may be damaged (talk weights verify checks them), or a LoRA's scale is too large",
                )
            on_note(
                f"attention by {kernel_names(kernel)} gives no numbers (NaN) here: torch's own kernel is used instead"
            )
            settled.enter_context(use_kernel("torch"))
            return again

        hook = dit.register_forward_hook(check, with_kwargs=True)
        settled.callback(hook.remove)
        yield


def kernel_names(wished: Wish) -> str:
    """What computes: the kernel that was wished for, or those found to be the fastest so far."""
    if isinstance(wished, str):
        return wished
    found = sorted(set(chosen_kernels().values()))
    return f"{' and '.join(found)} (the fastest here)" if found else "torch"


def try_wish(wish: Attention, device: torch.device, width: int) -> Tried:
    """Find what serves a wish. Args: width: of a head."""
    if wish == "auto":
        return Tried(None)
    if device.type != "cuda":
        return Tried(None, f"note: --attention {wish} has no effect on the CPU")
    usable: list[Kernel] = []
    reasons: list[str] = []
    for kernel in KERNELS[wish]:
        reason = why_unusable(kernel, device, width)
        if reason:
            reasons.append(f"{kernel}: {reason}")
        elif wish in TIMED:
            usable.append(kernel)
        else:
            return Tried(kernel)
    if usable:
        return Tried(tuple(usable) if len(usable) > 1 else usable[0])
    said = f"attention {wish} does not work here ({'; '.join(reasons)}): the fastest exact kernel is used instead"
    return Tried(None, said)


def why_unusable(kernel: Kernel, device: torch.device, width: int) -> str:
    """What keeps a kernel from computing on the device, "" if nothing does."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(*EXAMPLE, width, generator=generator).to(device, torch.bfloat16) for _ in range(3))
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
