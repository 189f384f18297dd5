"""Where a video lies while it is in the making: names beside its target, which nobody else's file may bear.

Apart from the writer, so that a request can be checked without loading it.
"""

from __future__ import annotations

import os
from pathlib import Path


def real_path_of(output: Path) -> Path:
    """The file that is meant: what a link points at, even if it is not there yet."""
    return Path(os.path.realpath(output)) if output.is_symlink() else output


def part_path_of(output: Path) -> Path:
    """The file that grows chunk by chunk."""
    real = real_path_of(output)
    return real.with_name(f"{real.stem}.part.mp4")


def whole_path_of(output: Path) -> Path:
    """The complete file before it gets its name."""
    real = real_path_of(output)
    return real.with_name(f"{real.stem}.whole.part.mp4")
