"""Which network is on the compute device when.

A run has stages: text, image and audio are encoded, then frames are encoded, denoised and decoded. On a small card the
networks of different stages don't fit side by side, so each is brought in for its stage and leaves after it. Weights
don't change during a run: the copy in RAM is kept, and leaving means no more than to let go of the device's copy.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Residency:
    """Brings networks to `device` for their stages. `keep`: they stay there after the first."""

    device: torch.device
    keep: bool = False

    @contextmanager
    def on_stage(self, module: nn.Module) -> Generator[None]:
        """Have the parameters and buffers of `module` on the device inside the `with`.

        Does nothing for a module that is there already, so stages of one module may be nested.
        """
        elsewhere = [tensor for tensor in _tensors(module) if tensor.device.type != self.device.type]
        left_behind = [tensor.data for tensor in elsewhere]
        try:
            for tensor in elsewhere:
                tensor.data = tensor.data.to(self.device, non_blocking=True)
            yield
        finally:
            if not self.keep:
                for tensor, data in zip(elsewhere, left_behind, strict=True):
                    tensor.data = data


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]
