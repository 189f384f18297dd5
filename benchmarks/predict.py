"""Predict passes and runs on cards that nobody has measured here, from the formula of the estimates.

    python benchmarks/predict.py        # prints the table of docs/profiles.md

A pass takes the longer of two times, since they overlap: its arithmetic at 60 % of the vendor's dense bfloat16 peak,
and the copying of the streamed blocks over PCIe, 25 GB/s on 16 lanes of generation 4. Peaks, profiles and presets are
the package's own (`profile_table.py`), memory and time those of `estimate.py`. The last column is of a machine with
little RAM: blocks that stay on the GPU, those read from the disk in every pass (at 1 GB/s, assumed), and a pass. Every
figure is a prediction; that of the H200, the one card that was measured, shows how far such a figure may be off.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from infinitalk_cli.console import duration
from infinitalk_cli.estimate import GIB, Estimate, estimate, rate_of
from infinitalk_cli.footprint import JobShape
from infinitalk_cli.hardware_gpu import Gpu, PcieLink
from infinitalk_cli.profiles import Profile, Wishes, find_preset, find_profile, settle

WIDTH, HEIGHT, CHUNK_FRAMES = 896, 448, 81
DRIVER_BYTES = 600_000_000
"""Of a card's memory that a run does not get: the driver's, and a desktop's."""
LITTLE_RAM_BYTES = 12 * 10**9
"""Free of 16 GB."""
SHORT = "12 GB of RAM free"
HEADINGS = ("card", "weights", "blocks that stay", "GPU memory", "RAM", "a pass", "fast", "balanced", "quality", SHORT)


@dataclass(frozen=True)
class Wanted:
    """A card to predict: its name as the driver tells it, its profile, its memory and its slot (generation, lanes)."""

    name: str
    profile: str
    memory_gib: int
    pcie: tuple[int, int]


CARDS = (
    Wanted("NVIDIA GeForce RTX 5090", "rtx-5090", 32, (5, 16)),
    Wanted("NVIDIA GeForce RTX 4090", "rtx-4090", 24, (4, 16)),
    Wanted("NVIDIA GeForce RTX 3090", "rtx-3090", 24, (4, 16)),
    Wanted("NVIDIA GeForce RTX 4060 Ti", "rtx-4060-ti", 16, (4, 8)),
    Wanted("NVIDIA GeForce RTX 3060", "rtx-3060", 12, (4, 16)),
    Wanted("NVIDIA H200", "h200", 141, (5, 16)),
)


def row(card: Wanted) -> tuple[str, ...]:
    """The cells of one card under `HEADINGS`."""
    profile, found = predicted(card, "fast")
    assert found.pass_s is not None
    assert found.vram_bytes is not None
    seconds = [predicted(card, preset)[1].seconds or 0.0 for preset in ("fast", "balanced", "quality")]
    short = predicted(card, "fast", LITTLE_RAM_BYTES)[1]
    assert short.pass_s is not None
    return (
        card.name.removeprefix("NVIDIA ").removeprefix("GeForce "),
        "bf16" if profile.quant == "none" else profile.quant,
        f"{found.num_resident} of {found.num_blocks}",
        f"{found.vram_bytes / 1e9:.1f} GB",
        f"{found.ram_bytes / 1e9:.1f} GB",
        f"{found.pass_s:.1f} s",
        *(duration(each) for each in seconds),
        f"{short.num_resident} stay, {short.num_read} read, {short.pass_s:.1f} s",
    )


def predicted(card: Wanted, preset: str, free_ram_bytes: int | None = None) -> tuple[Profile, Estimate]:
    """What the card's profile becomes with a preset, and one chunk with it.

    Where RAM is limited, as many blocks stay on the GPU as it holds, as `profile_choice` has it.
    """
    total_bytes = card.memory_gib * GIB
    generation, lanes = card.pcie
    gpu = Gpu(0, card.name, total_bytes=total_bytes, pcie=PcieLink(generation, lanes, generation, lanes))
    profile = settle(find_profile(card.profile), Wishes(), "infinitetalk", find_preset(preset))
    if free_ram_bytes is not None:
        profile = replace(profile, num_persistent_param_in_dit=None)
    shape, free_bytes = JobShape(WIDTH, HEIGHT, CHUNK_FRAMES), total_bytes - DRIVER_BYTES
    return profile, estimate(shape, profile, rate_of(gpu), free_bytes=free_bytes, free_ram_bytes=free_ram_bytes)


def table() -> str:
    """The rows as Markdown."""
    head, *body = ("| " + " | ".join(cells) + " |" for cells in (HEADINGS, *map(row, CARDS)))
    return "\n".join([head, "|---" * len(HEADINGS) + "|", *body])


if __name__ == "__main__":
    print(table())
