"""How torch hands out the GPU's memory.

By default torch keeps pieces of the sizes that it was once asked for, and pieces of one stage of a run do not fit those
of the next: a streamed run whose tensors took 4.2 GB held 7.3 GB of an H200. Segments that grow and shrink hold hardly
more than the tensors take, so predictions hold and other programs find room.
"""

from __future__ import annotations

import os
import sys

import torch

VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""The newer name, which torch knows from 2.9 on, and the older one."""


def use_growing_segments() -> None:
    """Ask for segments that grow, before anything is on a GPU; what the user has set stays. Linux only, as in torch."""
    if not sys.platform.startswith("linux") or any(name in os.environ for name in VARIABLES):
        return
    major, minor = (int(part) for part in torch.__version__.split(".")[:2])
    os.environ[VARIABLES[0] if (major, minor) >= (2, 9) else VARIABLES[1]] = "expandable_segments:True"
