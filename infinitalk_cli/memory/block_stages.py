"""Stages of a network whose blocks come to the device one at a time: ahead of their turn, or when they compute.

What is in none of the blocks is on the device for the whole stage.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from infinitalk_cli.memory.loading import own_tensors
from infinitalk_cli.memory.offload import BlockOffloader
from infinitalk_cli.memory.residency import Residency


@dataclass(frozen=True)
class StreamedStage:
    """Has a network with streamed blocks ready for its stage: the rest of it stays on the GPU from the first on."""

    module: nn.Module
    offloader: BlockOffloader

    @contextmanager
    def running(self) -> Generator[None]:
        """Have everything but the streamed blocks on the GPU, and these on their way, inside the `with`."""
        for owner, leaf, tensor in tensors_outside(self.module, self.offloader.is_streamed):
            if tensor.device.type == self.offloader.device.type:
                continue
            _assign(owner, leaf, tensor, tensor.detach().to(self.offloader.device))
        with self.offloader.running():
            yield


@contextmanager
def visiting(module: nn.Module, blocks: Sequence[nn.Module], device: torch.device) -> Generator[None]:
    """Have `module` on the device inside the `with`, each of its blocks only while it computes.

    Nothing is packed and nothing runs ahead: for a network that is called once or twice.
    """
    homes = tensors_outside(module, lambda part: any(part is block for block in blocks))
    residency, stages = Residency(device), dict[nn.Module, ExitStack]()

    def come(block: nn.Module, *call: object) -> None:
        stages[block] = ExitStack()
        stages[block].enter_context(residency.on_stage(block))

    def go(block: nn.Module, *call: object) -> None:
        stages.pop(block).close()

    with ExitStack() as at_end:
        for owner, leaf, tensor in homes:
            at_end.callback(setattr, owner, leaf, tensor)
            _assign(owner, leaf, tensor, tensor.detach().to(device))
        for block in blocks:
            at_end.callback(block.register_forward_pre_hook(come).remove)
            at_end.callback(block.register_forward_hook(go).remove)
        yield


def tensors_outside(module: nn.Module, is_block: Callable[[nn.Module], bool]) -> list[tuple[nn.Module, str, Tensor]]:
    """The parameters and buffers of a network that are in none of its blocks: owner, name, value."""
    found = [(module, leaf, tensor) for leaf, tensor in own_tensors(module)]
    for child in module.children():
        if not is_block(child):
            found += tensors_outside(child, is_block)
    return found


def _assign(owner: nn.Module, leaf: str, before: Tensor, value: Tensor) -> None:
    setattr(owner, leaf, nn.Parameter(value, requires_grad=False) if isinstance(before, nn.Parameter) else value)
