"""Where a video lies while it is in the making: names beside its target, which nobody else's file may bear.

Apart from the writer, so that a request can be checked without loading it.
"""

from __future__ import annotations

from pathlib import Path


def part_path_of(output: Path) -> Path:
    """The file that grows chunk by chunk."""
    return output.with_name(f"{output.stem}.part.mp4")


def whole_path_of(output: Path) -> Path:
    """The complete file before it gets its name."""
    return output.with_name(f"{output.stem}.whole.part.mp4")
