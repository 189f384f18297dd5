"""What to do when the GPU's memory runs out: let go of everything, step down, and try the same once more.

What is tried again must give the same each time it is called, and hold nothing of the time before. The ladder knows
neither what the rungs are nor what stands on them; it is told how to find the next one and how to take it.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

Rung = TypeVar("Rung")
Made = TypeVar("Made")

SIGNS = (
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
)
"""How CUDA and its libraries say it, where torch does not."""


@dataclass
class Ladder(Generic[Rung]):
    """Tries again, lower down, what fails for want of GPU memory.

    Args:
        rung: where it stands.
        lower: the rung to try after this one; None if there is none.
        take: put a rung into effect.
        on_step: told of the rung that is tried next. on_found: told of the rung that worked after a step down.
        last_failed: what to raise when the last rung has failed, from what the library said.
    """

    rung: Rung
    lower: Callable[[Rung], Rung | None]
    take: Callable[[Rung], None]
    on_step: Callable[[Rung], None]
    on_found: Callable[[Rung], None]
    last_failed: Callable[[str], Exception]

    def attempt(self, make: Callable[[], Made]) -> Made:
        """What `make` gives, on this rung or the first below that has the memory for it."""
        stepped = False
        while True:
            try:
                made = make()
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                said = (str(error).splitlines() or [type(error).__name__])[0]
            else:
                if stepped:
                    self.on_found(self.rung)
                return made
            stepped = True
            self._step(said)  # out of the `except`, whose error holds on to the tensors of the attempt

    def _step(self, said: str) -> None:
        release_gpu_memory()
        lower = self.lower(self.rung)
        if lower is None:
            raise self.last_failed(said)
        self.rung = lower
        self.on_step(lower)
        self.take(lower)
        release_gpu_memory()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the GPU's memory is used up, in torch's words or in those of a library."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


def release_gpu_memory() -> None:
    """Give back to the GPU what nobody holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
