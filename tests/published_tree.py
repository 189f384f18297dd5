"""A tree of small weights for one speaker, as it is published."""

from __future__ import annotations

from pathlib import Path

from tests.parity.reference import manifest, reference_dir
from training.random_tree import tree_names, write_tree

UNUSED = ("override", "quant_models", "MeiGen-MultiTalk", "multi/", "teacache")
"""In the names of files that a plain run for one speaker does not read."""


def write_published(folder: Path, *, with_loras: bool = False) -> Path:
    """Write the files of a plain run for one speaker. Returns: the folder."""
    unused = UNUSED if with_loras else (*UNUSED, "lora/")
    wanted = [name for name in tree_names(manifest()) if not any(part in name for part in unused)]
    write_tree(manifest(), folder, source=reference_dir(), only=wanted)
    return folder
