"""torch's process group of a team, and the settings that it needs; NCCL on GPUs, gloo on a CPU.

All processes are on one host: they find each other through a file and talk over the loopback, so neither a port nor
a network is needed. NCCL's own watchdog would end a process that waits too long, in the middle of a video: `team`
watches instead.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from infinitalk_cli.errors import EnvironmentUnfitError

SETTINGS = {
    "NCCL_NVLS_ENABLE": "0",  # NVLink multicast needs rights that containers lack, and gains nothing here
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0",
    "TORCH_NCCL_ENABLE_MONITORING": "0",
}
"""Variables that must be so."""

DEFAULTS = {"NCCL_SOCKET_IFNAME": "lo", "GLOO_SOCKET_IFNAME": "lo"}
"""Variables that a user may have set otherwise."""

ABORT_S = 10.0
"""How long an abort may take before we go on without."""


def check_distributed(device: torch.device) -> None:
    """Raises: EnvironmentUnfitError: if processes can't compute together here."""
    hint = "leave --gpus out: one GPU does the same job"
    if not dist.is_available() or (device.type == "cuda" and not dist.is_nccl_available()):
        raise EnvironmentUnfitError(
            f"several GPUs need NCCL, which torch {torch.__version__} does not have here", hint=hint
        )
    if dist.is_initialized():
        raise EnvironmentUnfitError("this process is in a torch.distributed group already", hint=hint)


def apply_settings() -> None:
    """Put the variables in place, for this process and those that it starts."""
    os.environ.update(SETTINGS)
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)


def join_group(rank: int, num_ranks: int, device: torch.device, meeting: Path, timeout_s: float) -> None:
    """Become a rank of the default group; returns when all have. `meeting`: a file to be made, the same for all.

    Raises: EnvironmentUnfitError: if they can't reach each other.
    """
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    try:
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            store=dist.FileStore(str(meeting), num_ranks),  # pyright: ignore[reportPrivateImportUsage]
            rank=rank,
            world_size=num_ranks,
            timeout=timedelta(seconds=timeout_s),
            device_id=device if on_gpu else None,
        )
        dist.all_reduce(torch.zeros(1, device=device))
    except dist.DistBackendError as error:
        reason = str(error).splitlines()[0]
        hint = "NCCL_DEBUG=INFO and --debug show why; leave --gpus out: one GPU does the same job"
        raise EnvironmentUnfitError(f"the GPUs can't exchange data: {reason}", hint=hint) from error


def abort_group() -> None:
    """Leave the group whatever is under way: what waits for other ranks on the GPU stops waiting."""
    if not dist.is_initialized():
        return
    abort: Callable[[], None] = getattr(distributed_c10d, "_abort_process_group", dist.destroy_process_group)

    def run() -> None:
        with suppress(Exception):  # another thread has done it meanwhile
            abort()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(ABORT_S)
