"""Where a run finds the blocks of its transformer again: in RAM, or in the files that they came from.

What is known of the files when the transformer is read is kept, for blocks may leave the GPU later. LoRAs were added
once to all that is in memory; a block that is read in every pass gets them anew each time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import psutil
import torch

from infinitalk_cli.hardware_memory import read_ram
from infinitalk_cli.memory.lora import LateLoras, LoraPlan
from infinitalk_cli.memory.offload import BlockFiles, BlockOffloader
from infinitalk_cli.memory.stored import stored_parts
from infinitalk_cli.memory.tensor_files import TensorRef
from infinitalk_cli.models.dit import DiT


@dataclass(frozen=True)
class BlockSource:
    """Makes the offloader of a transformer. `files`: None if RAM has room for all. `late`: None without LoRAs."""

    dit: DiT
    device: torch.device
    files: BlockFiles | None = None
    late: LateLoras | None = None

    @classmethod
    def of(
        cls,
        dit: DiT,
        device: torch.device,
        refs: Mapping[str, TensorRef],
        loras: LoraPlan,
        most_in_ram: int | None,
    ) -> BlockSource:
        """Of a transformer that is being read.

        Args: refs: what is read into it. loras: what is merged into that. most_in_ram: blocks, None for all.
        """
        if most_in_ram is None:
            return cls(dit, device)
        names = [_name(number) for number in range(len(dit.blocks))]
        files = BlockFiles(stored_parts(names, list(dit.blocks), refs), most_in_ram)
        return cls(dit, device, files, LateLoras(dit, loras, refs) if loras.parameters else None)

    def offloader(self, num_resident: int) -> BlockOffloader:
        """What streams all blocks but so many."""
        made = BlockOffloader(list(self.dit.blocks), self.device, num_resident=num_resident, files=self.files)
        late = self.late
        if late is not None:
            made.arrived = lambda number: late.add_to(_names_in(number, made.left_in_files(number)))
        return made

    def left_in_files(self, offloader: BlockOffloader) -> Collection[str]:
        """The tensors, by their names in the transformer, that are read in every pass and not now."""
        numbers = range(len(self.dit.blocks))
        return {name for number in numbers for name in _names_in(number, offloader.left_in_files(number))}


def placement_notes(offloader: BlockOffloader, num_blocks: int) -> Iterator[str]:
    """What to tell the user of streamed blocks, and if they are slower than they might be."""
    stay, num_stored = offloader.num_resident, offloader.num_stored
    yield f"{stay} of {num_blocks} transformer blocks stay on the GPU, the others are streamed"
    if num_stored:
        held = f"RAM has room for {num_blocks - stay - num_stored} of these"
        others = "one is" if num_stored == 1 else f"{num_stored} are"
        yield f"{held}; {others} read from the disk in every pass ({offloader.stored_bytes / 1e9:.1f} GB)"
    if not offloader.is_pinned:
        yield "RAM is too short to lock all of them in it: they are carried by a thread, which takes some of the CPU"


def usable_ram_bytes() -> int:
    """RAM that this process may take in all, what it has taken already included."""
    own = psutil.Process().memory_info()
    return read_ram(psutil, Path("/")).usable_bytes + own.rss - cast("int", getattr(own, "shared", 0))


def _name(number: int) -> str:
    return f"blocks.{number}"


def _names_in(number: int, leaves: Collection[str]) -> list[str]:
    return [f"{_name(number)}.{leaf}" for leaf in leaves]
