"""Where a video lies while it is in the making: names beside its target, which nobody else's file may bear.

Apart from the writer, so that a request can be checked without loading it.
"""

from __future__ import annotations

import os
from pathlib import Path


def real_path_of(output: Path) -> Path:
    """The file that is meant: what a link points at, even if it is not there yet."""
    return Path(os.path.realpath(output)) if output.is_symlink() else output


def part_folder_of(output: Path) -> Path:
    """The folder of the finished pieces."""
    real = real_path_of(output)
    return real.with_name(f"{real.stem}.part")


def part_path_of(output: Path) -> Path:
    """The pieces of a run that was stopped, joined so that they can be played."""
    real = real_path_of(output)
    return real.with_name(f"{real.stem}.part.mp4")


LOCK = "lock"
"""The file in that folder which the run that writes there holds."""


def holds_pieces(folder: Path) -> bool:
    """Whether an earlier run has left finished pieces in such a folder."""
    return (folder / "0001.mp4").exists()
