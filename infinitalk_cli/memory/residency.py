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

from infinitalk_cli.memory.loading import own_tensors


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
        homes = [
            (owner, leaf, tensor)
            for owner in module.modules()
            for leaf, tensor in own_tensors(owner)
            if tensor.device.type != self.device.type
        ]
        try:
            self._bring(homes)
            yield
        finally:
            if not self.keep:
                for owner, leaf, tensor in homes:
                    setattr(owner, leaf, tensor)

    def _bring(self, homes: list[tuple[nn.Module, str, Tensor]]) -> None:
        brought: dict[int, Tensor] = {}  # tied tensors travel once
        for owner, leaf, tensor in homes:
            if id(tensor) not in brought:
                copy = tensor.detach().to(self.device, non_blocking=True)
                is_parameter = isinstance(tensor, nn.Parameter)
                brought[id(tensor)] = nn.Parameter(copy, requires_grad=False) if is_parameter else copy
            setattr(owner, leaf, brought[id(tensor)])
