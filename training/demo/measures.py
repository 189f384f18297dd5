"""What a talking video is measured by: mouths against speech, pauses, seams, colours, the rest of the picture.

Everything works on plain arrays: frames `(T, H, W, 3)` in [0, 1] and a known place of the mouth. The same functions
judge drawn clips, where the truth is known, and generated ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.floating[Any]]

DARK, LIGHT = 0.25, 0.65
"""What is darker than `LIGHT` x the skin's red counts in part, what is darker than red `DARK` counts in full."""
REACH_ACROSS, REACH_UP, REACH_DOWN = 1.0, 0.5, 1.3
"""How far around the middle of the mouth is looked, in half widths of the mouth."""
LONGEST_LAG = 5
PAUSE_S = 0.4


@dataclass(frozen=True)
class Mouth:
    """Where a mouth is, in pixels: its middle at rest, and half its width."""

    x: float
    y: float
    half_width: float


@dataclass(frozen=True)
class LipSync:
    """`correlation`: at lag 0. `best_lag`: in frames, positive if the mouth is late. `best`: the correlation there."""

    correlation: float
    best_lag: int
    best: float


def mouth_openings(frames: Frames, mouth: Mouth) -> NDArray[np.float64]:
    """The dark area about the mouth in every frame, in squares of the mouth's half width; `(T,)`.

    What is always dark there (a shadow, stubble, hair) does not count: from each pixel its 10th percentile over time is
    taken away. The skin's red is the upper quartile of what is looked at.
    """
    height, width = frames.shape[1:3]
    left, right = (round(mouth.x + side * REACH_ACROSS * mouth.half_width) for side in (-1, 1))
    top, bottom = (
        round(mouth.y - REACH_UP * mouth.half_width),
        round(mouth.y + REACH_DOWN * mouth.half_width),
    )
    red = frames[:, max(top, 0) : min(bottom + 1, height), max(left, 0) : min(right + 1, width), 0]
    light = max(LIGHT * float(np.percentile(red, 75)), DARK + 0.05)
    dark = np.clip((light - red.astype(np.float64)) / (light - DARK), 0, 1)
    dark = np.clip(dark - np.percentile(dark, 10, axis=0), 0, 1)
    return dark.sum(axis=(1, 2)) / mouth.half_width**2


def lip_sync(openings: NDArray[Any], envelope: NDArray[Any]) -> LipSync:
    """How a mouth follows speech. Both `(T,)`; the shorter one's length counts."""
    length = min(len(openings), len(envelope))
    first, second = (np.asarray(values[:length], np.float64) for values in (openings, envelope))
    by_lag = {lag: shifted_correlation(first, second, lag) for lag in range(-LONGEST_LAG, LONGEST_LAG + 1)}
    best = max(by_lag, key=lambda lag: by_lag[lag])
    return LipSync(by_lag[0], best, by_lag[best])


def shifted_correlation(first: NDArray[np.float64], second: NDArray[np.float64], lag: int) -> float:
    """The correlation of `first[t + lag]` with `second[t]`; 0 where one of them does not change."""
    length = len(first) - abs(lag)
    a, b = first[max(lag, 0) :][:length], second[max(-lag, 0) :][:length]
    if length < 2 or a.std() < 1e-9 or b.std() < 1e-9:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def pauses(envelope: NDArray[Any], *, quiet: float = 0.05, fps: int = 25) -> list[range]:
    """Stretches of more than `PAUSE_S` in which the speech is quiet."""
    found: list[range] = []
    start: int | None = None
    for frame, value in enumerate([*envelope, 1.0]):
        if value < quiet:
            start = frame if start is None else start
        elif start is not None:
            if frame - start > PAUSE_S * fps:
                found.append(range(start, frame))
            start = None
    return found


def opening_in_pauses(openings: NDArray[Any], envelope: NDArray[Any]) -> float:
    """The mean opening in the inner part of pauses as a share of its range (5th to 95th percentile); nan without any.

    The first and last 0.12 s of a pause are left out: a mouth takes time to close.
    """
    inner = [frame for pause in pauses(envelope) for frame in pause[3:-3] if frame < len(openings)]
    low, high = np.percentile(openings, [5, 95])
    return float((np.mean(openings[inner]) - low) / max(high - low, 1e-9)) if inner else float("nan")


def step_ratios(frames: Frames, reach: int = 12) -> NDArray[np.float64]:
    """The change to each frame from the one before against the median change around; `(T,)`, 1 for the first."""
    changes = np.array([change(before, after) for before, after in pairwise(frames)])
    usual = [np.median(changes[max(at - reach, 0) : at + reach]) for at in range(len(changes))]
    return np.array([1.0, *(changes / np.maximum(usual, 1e-9))])


def change(first: Frames, second: Frames) -> float:
    """The mean absolute difference."""
    return float(np.abs(first.astype(np.float64) - second).mean())


def psnr(first: Frames, second: Frames) -> float:
    """In dB, of pictures in [0, 1]."""
    error = np.square(first.astype(np.float64) - second).mean()
    return float(-10 * np.log10(max(error, 1e-12)))


def lab_drift(frames: Frames, reference: Frames) -> float:
    """How far the mean colour of frames is from the reference's, in Lab units."""
    import torch

    from infinitalk_cli.media.color import rgb_to_lab

    means = [
        rgb_to_lab(torch.from_numpy(np.moveaxis(np.asarray(part, np.float32), -1, 0))).flatten(1).mean(dim=1)
        for part in (frames, reference[None] if reference.ndim == 3 else reference)
    ]
    return float((means[0] - means[1]).norm())
