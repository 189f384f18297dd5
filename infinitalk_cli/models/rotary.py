"""Rotary position embedding: interleaved pairs of a head's components, turned by position-dependent angles.

Video tokens have three positions (latent frame, patch row, patch column), each with its own share of the pairs and its
own frequencies; audio attention has one real-valued position. Angles of the video grid are computed in float64, since
cosines of large angles would lose digits in float32; tables and products are float32, the result has the input's dtype.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_BASE = 10000.0


@dataclass(frozen=True)
class Rotation:
    """Cosines and sines, float32, `(..., L, 1, D / 2)`: one angle per token and pair, the same for all heads."""

    cos: Tensor
    sin: Tensor


def grid_rotation(grid: tuple[int, int, int], head_dim: int, device: torch.device) -> Rotation:
    """The rotation of every token of a video, in (frame, row, column) order.

    Positions start at 0 in every chunk. Of the pairs, rows and columns get a third each, rounded down; frames the rest.
    Args: grid: tokens along frames, rows, columns. head_dim: even.
    Returns: tables `(T * h * w, 1, head_dim / 2)`.
    """
    side = 2 * (head_dim // 6)
    angles = [
        _angles(torch.arange(size, dtype=torch.float64, device=device), width)
        for size, width in zip(grid, (head_dim - 2 * side, side, side), strict=True)
    ]
    frames, rows, columns = (
        table.view([size if axis == place else 1 for axis in range(3)] + [-1]).expand(*grid, -1)
        for place, (size, table) in enumerate(zip(grid, angles, strict=True))
    )
    joined = torch.cat((frames, rows, columns), dim=-1).flatten(0, 2).unsqueeze(-2)
    return Rotation(joined.cos().float(), joined.sin().float())


def position_rotation(positions: Tensor, head_dim: int) -> Rotation:
    """The rotation of tokens at real-valued positions, over the full head width.

    Args: positions: `(..., L)`, float32. Returns: tables `(..., L, 1, head_dim / 2)`.
    """
    angles = _angles(positions, head_dim).unsqueeze(-2)
    return Rotation(angles.cos(), angles.sin())


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn each pair `(x[2i], x[2i + 1])` by its angle.

    Args: x: `(B, L, H, D)`. Returns: the same shape and dtype.
    """
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = rotation.cos, rotation.sin  # products with float32 tables are float32
    turned = (even * cos - odd * sin).to(x.dtype), (even * sin + odd * cos).to(x.dtype)
    return torch.stack(turned, dim=-1).flatten(-2)


def _angles(positions: Tensor, width: int) -> Tensor:
    """`positions * 10000^(-2i / width)` for the `width / 2` pairs of an axis, in the dtype of `positions`."""
    pairs = torch.arange(0, width, 2, dtype=positions.dtype, device=positions.device)
    return positions.unsqueeze(-1) * _BASE ** (-pairs / width)
