"""A GPU with what is to be done in it: the rung to start on, what to remember of a run, what to say when none is left.

How a GPU is shared out is a `Rung`, chosen by arithmetic (`rungs`) or known from a run that had to step down
(`rung_store`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from infinitalk_cli.errors import OutOfGpuMemoryError
from infinitalk_cli.footprint import (
    CONTEXT_BYTES,
    JobShape,
    Rung,
    decoding_bytes,
    keys_values_bytes,
    most_in_ram,
    vram_bytes,
    working_bytes,
)
from infinitalk_cli.memory.ladder import release_gpu_memory
from infinitalk_cli.models.config import DiTConfig
from infinitalk_cli.profiles import Profile
from infinitalk_cli.rung_store import store_rung, stored_rung
from infinitalk_cli.rungs import first_rung, lower_rung


@dataclass(frozen=True)
class GpuRoom:
    """A GPU with its free memory, and what is to be done in it. `ram_bytes`: beside it, None for all that is needed."""

    device: torch.device
    profile: Profile
    shape: JobShape
    sizes: DiTConfig
    free_bytes: int
    ram_bytes: int | None = None

    def start(self) -> Rung:
        """The rung to start on: by arithmetic, or below, where a run like this one ended."""
        rung = first_rung(self.profile, self.shape, self.free_bytes, self.sizes)
        known = stored_rung(self._gpu, self.shape, self.profile, self.free_bytes)
        return rung if known is None else rung.and_not_above(known)

    def remember(self, rung: Rung) -> None:
        """Start here the next time."""
        store_rung(self._gpu, self.shape, self.profile, rung, self.free_bytes)

    def refuse(self, said: str) -> OutOfGpuMemoryError:
        """What to tell the user when the last rung has failed. `said`: by the library."""
        lowest = Rung(0)
        while (lower := lower_rung(lowest, self.sizes.num_layers, "transformer")) is not None:
            lowest = lower
        while (lower := lower_rung(lowest, self.sizes.num_layers, "vae")) is not None:
            lowest = lower
        need = vram_bytes(self.shape, self.profile, lowest, self.sizes) / 1e9
        size = f"{self.shape.width}x{self.shape.height}, {self.profile.chunk_frames} frames at a time"
        return OutOfGpuMemoryError(
            f"the GPU has too little memory: {said}",
            hint=f"{size} take about {need:.1f} GB at the least, {self.free_bytes / 1e9:.1f} GB were free at the start"
            "; what takes less: --quant fp8 or int8, --size 480, fewer --frames; or close other GPU programs",
        )

    def most_in_ram(self, rung: Rung) -> int | None:
        """How many streamed blocks RAM has room for, None for all."""
        return (
            None if self.ram_bytes is None else most_in_ram(self.profile, rung.num_resident, self.ram_bytes, self.sizes)
        )

    def spare_bytes(self, rung: Rung) -> int:
        """What passes may take beyond what they need: what decoding takes afterwards, or what is counted in for it."""
        working = working_bytes(self.shape, self.profile, rung, self.sizes)
        counted = keys_values_bytes(self.shape, self.profile, self.sizes) if self._has_all(rung) else 0
        return max(counted, decoding_bytes(self.shape, self.profile, rung) - working)

    def fits_exact_vae(self, rung: Rung) -> bool:
        """Whether the video VAE finds room in float32, beside the whole transformer; streaming is for want of room."""
        exact = replace(self.profile, vae_dtype="float32")
        return self._has_all(rung) and vram_bytes(self.shape, exact, rung, self.sizes) <= self.free_bytes

    def _has_all(self, rung: Rung) -> bool:
        return rung.num_resident == self.sizes.num_layers

    @property
    def _gpu(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"


def free_gpu_bytes(device: torch.device) -> int:
    """What is free on the GPU, this program's own share included: what was free before it came."""
    release_gpu_memory()
    free_bytes, _ = torch.cuda.mem_get_info(device)
    return free_bytes + torch.cuda.memory_reserved(device) + CONTEXT_BYTES
