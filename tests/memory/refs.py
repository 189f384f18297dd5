"""Tensor references without files, for tests of what is done with names and shapes; and small files of tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from infinitalk_cli.memory.tensor_files import TensorRef

NOWHERE = Path("nowhere.safetensors")


def ref_of(name: str, tensor: Tensor) -> TensorRef:
    """A reference to a tensor in memory."""
    return TensorRef(name, tuple(tensor.shape), tensor.dtype, NOWHERE, lambda: tensor)


def refs_of(tensors: Mapping[str, Tensor]) -> dict[str, TensorRef]:
    """References to tensors in memory."""
    return {name: ref_of(name, tensor) for name, tensor in tensors.items()}


def unreadable(name: str, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> TensorRef:
    """A reference whose values must not be asked for."""

    def read() -> Tensor:
        raise AssertionError(f"{name} was read")

    return TensorRef(name, tuple(shape), dtype, NOWHERE, read)


def save(path: Path, tensors: dict[str, Tensor]) -> Path:
    """A file of these tensors, in the form that its ending names."""
    if path.suffix == ".pth":
        torch.save(tensors, path)
    else:
        save_file(tensors, path)
    return path
