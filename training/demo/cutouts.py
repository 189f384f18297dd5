"""The cut-out people as they are stored; `people.py` makes them, `portraits.py` moves them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

CUTOUT_SIZE = 160
"""Pixels of a side of a cut-out."""


@dataclass(frozen=True)
class Cutouts:
    """People as pictures of `CUTOUT_SIZE` squared.

    open_eyes, closed_eyes: `(n, S, S, 3)` 8-bit sRGB in front of grey. alpha: `(n, S, S)`, 255 where somebody is.
    mouths: `(n, 4)`: x, y of the mouth's middle and half the way from its left to its right corner, in shares of the
        side.
    """

    open_eyes: NDArray[np.uint8]
    closed_eyes: NDArray[np.uint8]
    alpha: NDArray[np.uint8]
    mouths: NDArray[np.float32]

    @classmethod
    def load(cls, path: Path) -> Cutouts:
        with np.load(path) as stored:
            return cls(stored["open_eyes"], stored["closed_eyes"], stored["alpha"], stored["mouths"])

    def save(self, path: Path) -> None:
        np.savez_compressed(path, **vars(self))
