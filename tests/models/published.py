"""Names and shapes of the published weight files, from the reference set's list."""

from __future__ import annotations

import re

from tests.parity.reference import full_manifest


def published_shapes(part_of_name: str) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape of the one published file whose name contains `part_of_name`."""
    (tensors,) = (entry["tensors"] for name, entry in full_manifest()["files"].items() if part_of_name in name)
    shapes: dict[str, tuple[int, ...]] = {}
    for name, (_, shape) in tensors.items():
        span = re.search(r"\{(\d+)\.\.(\d+)\}", name)  # blocks.{0..23}.norm1.weight
        numbers = range(int(span[1]), int(span[2]) + 1) if span else [0]
        shapes.update((re.sub(r"\{.*\}", str(number), name), tuple(shape)) for number in numbers)
    return shapes
