"""Failures of the libraries and the sampler, said in a user's words.

A GPU that fails (a reset, a fallen bus, an assertion in a kernel) shows as a `RuntimeError` of many wordings, from
whatever call comes next. The process can't use that GPU any more, so such an error has a class of its own.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch

from infinitalk_cli.errors import DoesNotFitError, GpuFailedError, InputError, OutOfGpuMemoryError
from infinitalk_cli.memory.ladder import is_out_of_memory
from infinitalk_cli.sampling.settings import InvalidInput

GPU_SIGNS = (
    "CUDA error",
    "CUDA driver error",
    "Triton Error [CUDA]",
    "CUDNN_STATUS_EXECUTION_FAILED",
    "NCCL error",
    "NVML_SUCCESS == r",
)
"""How CUDA and what stands on it say that the GPU, or its driver, has failed."""

RAM_SIGN = "DefaultCPUAllocator"
"""Who speaks when torch finds no RAM, on Linux, macOS and Windows: in a plain `RuntimeError`."""


@contextmanager
def foreseen_errors() -> Generator[None]:
    """Turn them into the errors that the command line tells."""
    try:
        yield
    except InvalidInput as error:
        raise InputError(error.message, hint=error.hint) from error
    except RuntimeError as error:
        if is_out_of_memory(error):
            hint = "use 8-bit weights (--quant fp8 or int8), a smaller --size, or fewer --frames; close other programs"
            raise OutOfGpuMemoryError(f"the GPU has too little memory: {first_line(error)}", hint=hint) from error
        if RAM_SIGN in str(error):
            raise _short_of_ram() from error
        if not is_gpu_failure(error):
            raise
        hint = "`talk doctor` looks at the GPU; `sudo dmesg | grep -i xid` has what its driver saw"
        raise GpuFailedError(f"the GPU failed: {first_line(error)}", hint=hint) from error
    except MemoryError as error:
        raise _short_of_ram() from error


def _short_of_ram() -> DoesNotFitError:
    hint = "close other programs, or use fewer --frames, a smaller --size or 8-bit weights (--quant fp8 or int8)"
    return DoesNotFitError("this computer has too little memory (RAM)", hint=hint)


def is_gpu_failure(error: RuntimeError) -> bool:
    """Whether an error says that the GPU can't be used any more. Newer versions of torch have a class for it."""
    kind = getattr(torch, "AcceleratorError", None)
    return (kind is not None and isinstance(error, kind)) or any(sign in str(error) for sign in GPU_SIGNS)


def first_line(error: BaseException) -> str:
    """What an exception says, without what follows in further lines."""
    return (str(error).splitlines() or [type(error).__name__])[0]
