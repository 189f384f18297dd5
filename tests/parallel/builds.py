"""What the processes of the tests load: small networks, and ways to fail."""

from __future__ import annotations

import os
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace

import torch

from infinitalk_cli.errors import OutOfGpuMemoryError
from infinitalk_cli.models.dit import DiT
from tests.models.tiny import TINY

CONFIG = replace(TINY, num_heads=4)


def small_dit() -> DiT:
    """The same weights in every process."""
    torch.manual_seed(7)
    return DiT(CONFIG).eval()


@contextmanager
def build_small(device: torch.device) -> Generator[DiT]:
    """A network that works."""
    yield small_dit()


@contextmanager
def build_too_large(device: torch.device) -> Generator[DiT]:
    """A GPU that is too small."""
    raise OutOfGpuMemoryError("the GPU has too little memory", hint="use a smaller --size")
    yield small_dit()


@contextmanager
def build_dying(device: torch.device) -> Generator[DiT]:
    """A process that the system kills in its first pass."""
    dit = small_dit()
    dit.blocks[1].register_forward_pre_hook(lambda *_: os.kill(os.getpid(), 9))
    yield dit


@contextmanager
def build_failing(device: torch.device) -> Generator[DiT]:
    """A network that fails in its first pass."""

    def fail(*_: object) -> None:
        raise ValueError("no such block")

    dit = small_dit()
    dit.blocks[1].register_forward_pre_hook(fail)
    yield dit


@contextmanager
def build_stuck(device: torch.device) -> Generator[DiT]:
    """A network that never comes back."""
    dit = small_dit()
    dit.blocks[1].register_forward_pre_hook(lambda *_: time.sleep(600))
    yield dit
