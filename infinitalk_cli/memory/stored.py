"""Which blocks of a network can be read from their files in every pass.

What is read must need no work before it computes: the file has to hold it in the very dtype. That is so for the large
tensors of 8-bit files, and of bfloat16 files on a GPU; small ones and those that are made of other values (scales of
another shape, biases of another dtype) are so little that RAM has room for them. Where it is not so, as for a base in
float32, twice as much would have to be read as is needed, and nothing is gained by trying.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn

from infinitalk_cli.memory.read_ahead import FileState, StoredPart
from infinitalk_cli.memory.tensor_files import TensorRef

LEAST_PART_BYTES = 2**20
"""Smaller tensors are not worth a reading of their own."""
LEAST_SHARE = 0.9
"""Of a block's bytes that must be in files as they are, for it to be read from them. LoRAs beside weights take some."""


def stored_parts(
    names: Sequence[str], blocks: Sequence[nn.Module], refs: Mapping[str, TensorRef]
) -> list[dict[str, StoredPart]]:
    """What of each block can be read as it is, by the name in it; nothing of any if one has not enough of it.

    Args: names: of the blocks in their network. blocks: their tensors have their final dtypes. refs: what is to be in
        them, by the name in the network.
    """
    states: dict[Path, FileState] = {}
    found: list[dict[str, StoredPart]] = []
    for block_name, block in zip(names, blocks, strict=True):
        parts: dict[str, StoredPart] = {}
        for name, tensor in block.named_parameters():
            ref = refs[f"{block_name}.{name}"]
            if ref.span is None or ref.dtype != tensor.dtype or tensor.nbytes < LEAST_PART_BYTES:
                continue
            path = ref.span.path
            if path not in states:
                states[path] = FileState.at(path)
            parts[name] = StoredPart(ref.span, 0, states[path])
        in_files = sum(part.source.num_bytes for part in parts.values())
        if in_files < LEAST_SHARE * sum(tensor.nbytes for tensor in block.parameters()):
            return [{} for _ in blocks]
        found.append(parts)
    return found
