"""Tiles of a picture that overlap, and how what is made of them becomes one picture without seams.

The video VAE's large tensors are those of its convolutions near full size. A convolution sees a few neighbours, so a
tile with some picture around it is as good as the whole. Its attention sees the whole frame, but at the smallest size,
where a frame takes next to nothing: `vae.py` cuts only what lies between the two, and a tile's border is all that can
go wrong. There tiles overlap, and across the overlap one fades into the next: away from it the result is that of the
whole, and within it the outermost parts, which lack their neighbours, do not count.

How far off: nothing where tiles do not overlap, if they share as much as a pixel sees (9 to 13 latents); in all 0.7 %
of the frames' norm and 0.02 % of the latents' for a small network of random weights on noise. docs/profiles.md has
figures of the real size.

Lengths count latents, each 8 x 8 pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tiling:
    """Tiles of at most `size` latents on a side, neighbours sharing `overlap`; a third of the size at most."""

    size: int = 40
    overlap: int = 12

    def __post_init__(self) -> None:
        if not 0 < 3 * self.overlap <= self.size:
            raise ValueError(f"tiles of {self.size} latents can't share {self.overlap}: a third at most")

    @classmethod
    def of(cls, size: int) -> Tiling:
        """Tiles of a size with as much in common as may be."""
        return cls(size, size // 3)

    def divides(self, height: int, width: int) -> bool:
        """Whether a picture of so many latents is more than one tile."""
        return height > self.size or width > self.size

    def tiles(self, height: int, width: int) -> Iterator[Tile]:
        """The tiles of a picture, row by row; about equal in size."""
        for rows in self._spans(height):
            for columns in self._spans(width):
                yield Tile(rows, columns)

    def _spans(self, length: int) -> list[Span]:
        count = max(1, -(-(length - self.overlap) // (self.size - self.overlap)))
        cuts = [number * (length - self.overlap) // count for number in range(count + 1)]
        return [
            Span(start, stop + self.overlap, self.overlap if start else 0, self.overlap if stop != cuts[-1] else 0)
            for start, stop in pairwise(cuts)
        ]


@dataclass(frozen=True)
class Span:
    """A tile along one axis, `start` to `stop`. The first `fade_in` and the last `fade_out` are shared."""

    start: int
    stop: int
    fade_in: int
    fade_out: int

    def part(self, scale: int) -> slice:
        """Where it lies on an axis with `scale` points per latent."""
        return slice(self.start * scale, self.stop * scale)

    def weights(self, scale: int, device: torch.device) -> Tensor:
        """How much each of its points counts: all that share a point sum to 1."""
        found = torch.ones((self.stop - self.start) * scale, device=device)
        found[: self.fade_in * scale] = fade(self.fade_in * scale, device)
        found[len(found) - self.fade_out * scale :] = 1 - fade(self.fade_out * scale, device)
        return found


@dataclass(frozen=True)
class Tile:
    """A rectangle of a picture."""

    rows: Span
    columns: Span

    def cut(self, whole: Tensor, scale: int = 1) -> Tensor:
        """The tile's part of `(B, C, T, H, W)`, with `scale` points per latent: a view."""
        return whole[..., self.rows.part(scale), self.columns.part(scale)]

    def add(self, made: Tensor, whole: Tensor, scale: int = 1) -> None:
        """Add what was made of the tile to its place in `whole`, which starts from zeros and may be elsewhere."""
        rows, columns = (span.weights(scale, made.device) for span in (self.rows, self.columns))
        weighted = made * (rows[:, None] * columns).to(made.dtype)
        self.cut(whole, scale).add_(weighted.to(whole.device))


def fade(length: int, device: torch.device) -> Tensor:
    """0 in the first quarter, which is the most in want of neighbours, then in even steps to 1 in the last."""
    position = (torch.arange(length, device=device) + 0.5) / max(1, length)
    return (2 * position - 0.5).clamp(0, 1)
