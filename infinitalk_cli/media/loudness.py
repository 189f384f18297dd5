"""Integrated loudness after ITU-R BS.1770 as a running measurement.

The result is the one of `pyloudnorm.Meter.integrated_loudness` on the whole signal: the same filters, 400 ms blocks
every 100 ms, absolute gate at -70 LUFS, relative gate 10 LU below the mean. A block is four hops of 100 ms, so only
one energy per hop is kept: ten numbers a second, whatever the length.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt
from pyloudnorm import IIRfilter
from scipy.signal import lfilter

HOPS_PER_BLOCK = 4
HOP_S = 0.1
ABSOLUTE_GATE_LUFS = -70.0
RELATIVE_GATE_LU = -10.0
OFFSET_LU = -0.691
"""Makes a 997 Hz sine at full scale read -3.01 LUFS."""


class LoudnessMeter:
    """Takes a mono signal piece by piece and tells its loudness at the end."""

    def __init__(self, rate: int) -> None:
        """`rate`: samples a second, a multiple of 10."""
        if rate % 10:
            raise ValueError(f"the rate must be a multiple of 10 Hz, not {rate}")
        self._rate = rate
        self._hop = rate // 10
        self._filters = [(b, a, np.zeros(2)) for b, a in _k_weighting(rate)]
        self._energies = list[float]()  # of the complete hops
        self._rest: npt.NDArray[np.float32] = np.zeros(0, np.float32)  # filtered samples of the hop that is not full
        self._num_samples = 0

    def add(self, samples: npt.NDArray[np.float32]) -> None:
        """Measure the next `(n,)` samples."""
        if not len(samples):
            return
        self._num_samples += len(samples)
        for index, (b, a, state) in enumerate(self._filters):
            filtered, state = lfilter(b, a, samples, zi=state)
            samples = filtered.astype(np.float32)  # pyloudnorm keeps the input's type between the two filters
            self._filters[index] = (b, a, state)
        joined = np.concatenate((self._rest, samples))
        num_hops = len(joined) // self._hop
        hops, self._rest = np.split(joined, [num_hops * self._hop])
        self._energies.extend(_energy(hops.reshape(num_hops, self._hop)).tolist())

    def integrated(self) -> float:
        """The loudness in LUFS of everything so far; -inf if no block passes the gates.

        A signal shorter than one block counts as one block of its own length.
        """
        if self._num_samples == 0:
            return -np.inf
        hops = np.array([*self._energies, float(_energy(self._rest[None])[0])])
        if self._num_samples < HOPS_PER_BLOCK * self._hop:
            return _gated(np.array([hops.sum() / self._num_samples]))
        # pyloudnorm rounds the number of blocks: the last one may reach past the end.
        block_s = HOPS_PER_BLOCK * HOP_S
        num_blocks = round((self._num_samples / self._rate - block_s) / HOP_S) + 1
        padded = np.concatenate((hops, np.zeros(HOPS_PER_BLOCK)))
        sums = np.lib.stride_tricks.sliding_window_view(padded, HOPS_PER_BLOCK)[:num_blocks].sum(axis=1)
        return _gated(sums / (HOPS_PER_BLOCK * self._hop))


def _gated(powers: npt.NDArray[np.float64]) -> float:
    """The loudness of the blocks that pass both gates. `powers`: mean squares, `(blocks,)`."""
    with np.errstate(divide="ignore"):
        loudness = _to_lufs(powers)
        loud_enough = powers[loudness >= ABSOLUTE_GATE_LUFS]
        if not len(loud_enough):
            return -np.inf
        gate = max(ABSOLUTE_GATE_LUFS, _to_lufs(loud_enough.mean()) + RELATIVE_GATE_LU)
        passing = powers[loudness > gate]
        return float(_to_lufs(passing.mean())) if len(passing) else -np.inf


def _to_lufs(power: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return OFFSET_LU + 10.0 * np.log10(power)


def _energy(hops: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Sums of squares, `(n, samples)` -> `(n,)`."""
    return np.square(hops, dtype=np.float64).sum(axis=1)


@cache
def _k_weighting(rate: int) -> tuple[tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]], ...]:
    """Numerators and denominators of the two filters: the head's shelf and the high pass."""
    shelf = IIRfilter(4.0, 1 / np.sqrt(2), 1500.0, rate, "high_shelf")
    high_pass = IIRfilter(0.0, 0.5, 38.0, rate, "high_pass")
    return tuple((stage.b, stage.a) for stage in (shelf, high_pass))
