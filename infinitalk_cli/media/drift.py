"""How far a long video strays: the colours of every chunk, and how much its first frame jumps.

Each chunk starts from the end of the one before, so small errors may add up (drift) and the picture may jump where two
meet (a seam). Both are measured on the frames as they are written, on a coarse grid, which costs milliseconds a chunk:

- colours: mean and deviation in CIE Lab, and the distance of the mean from that of the reference picture. 1 is just
  visible side by side, 4 at a glance.
- seams: the mean difference between the frames on both sides, in levels of 0 to 255, over the median of the
  differences within the chunk. It stands out from the motion around it above 1.5, unless some frames within the chunk
  differ as much: a mouth that opens just there is no seam.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from infinitalk_cli.media.color import rgb_to_lab

LARGEST_LAB_DISTANCE = 4.0
LARGEST_SEAM_RATIO = 1.5

GRID = 96
"""Samples along the longer side of a frame, at most about twice as many."""

FRAMES_FOR_COLOR = 8
"""Frames of a chunk whose colours are looked at, at most about twice as many."""

INVISIBLE_STEP = 0.25
"""Levels of 255: steps below count as this many, so that a still picture's noise makes no seam."""

Lab = tuple[float, float, float]


@dataclass(frozen=True)
class ChunkFigures:
    """What was measured of a chunk's new frames. `start`: number of the first one in the video.

    `lab_mean`, `lab_std`: L, a, b. `lab_distance`: of the mean from the reference's. `step`: the median difference of
    neighbouring frames, in levels; of a single frame, that of the chunk before. `largest_step`: the largest one.
    `seam`: the difference to the frame before the chunk; None where nothing is to be continued.
    """

    start: int
    num_frames: int
    lab_mean: Lab
    lab_std: Lab
    lab_distance: float
    step: float
    seam: float | None
    largest_step: float = 0.0

    @property
    def stands_out(self) -> bool:
        """Whether the seam shows."""
        ratio = self.seam_ratio
        return ratio is not None and ratio > LARGEST_SEAM_RATIO and (self.seam or 0.0) > self.largest_step

    @property
    def seam_ratio(self) -> float | None:
        """The step across the seam over the usual one."""
        return None if self.seam is None else max(self.seam, INVISIBLE_STEP) / max(self.step, INVISIBLE_STEP)


@dataclass(frozen=True)
class Drift:
    """The figures of all chunks so far. `last`: the last frame's samples `(3, 1, h, w)`, which the next seam needs."""

    chunks: tuple[ChunkFigures, ...] = ()
    last: Tensor | None = None

    def after(self, frames: Tensor, reference: Tensor, start: int, *, continues: bool) -> Drift:
        """With one more chunk. `continues`: it goes on where the one before ended; arguments as `measure`."""
        samples = sampled(frames)
        figures = measure(samples, sampled(reference), start, self.last if continues else None)
        if continues and self.chunks and figures.num_frames == 1:  # no step of its own to compare the seam with
            before = self.chunks[-1]
            figures = replace(figures, step=before.step, largest_step=before.largest_step)
        return Drift((*self.chunks, figures), samples[:, -1:].clone())

    @property
    def farthest(self) -> ChunkFigures | None:
        """The chunk whose colours are farthest from the reference's."""
        return max(self.chunks, key=lambda chunk: chunk.lab_distance, default=None)

    @property
    def worst_seam(self) -> ChunkFigures | None:
        """The chunk that begins with the largest jump."""
        return max(self._seams, key=_ratio, default=None)

    @property
    def _seams(self) -> list[ChunkFigures]:
        return [chunk for chunk in self.chunks if chunk.seam is not None]

    def summary(self) -> dict[str, float | int | None]:
        """The worst of all, in a few numbers."""
        farthest, worst = self.farthest, self.worst_seam
        return {
            "lab_distance": round(farthest.lab_distance, 2) if farthest else None,
            "lab_distance_frame": farthest.start if farthest else None,
            "num_seams": len(self._seams),
            "num_seams_that_stand_out": len(self._standing_out()),
            "seam_ratio": round(worst.seam_ratio or 0.0, 2) if worst else None,
            "seam_frame": worst.start if worst else None,
        }

    def _standing_out(self) -> list[ChunkFigures]:
        return [chunk for chunk in self._seams if chunk.stands_out]

    def complaint(self, fps: int) -> str:
        """One line on what is off, with the time; "" if nothing is."""
        told, farthest = list[str](), self.farthest
        if farthest and farthest.lab_distance > LARGEST_LAB_DISTANCE:
            told.append(
                f"at {farthest.start / fps:.2f} s the colours are {farthest.lab_distance:.1f} from the reference's "
                f"(above {LARGEST_LAB_DISTANCE:g} is visible)"
            )
        if many := len(standing_out := self._standing_out()):
            worst = max(standing_out, key=_ratio)
            told.append(
                f"{many} of {len(self._seams)} seams {'stands' if many == 1 else 'stand'} out, most at "
                f"{worst.start / fps:.2f} s ({worst.seam_ratio:.1f} times the usual change)"
            )
        return "; ".join(told)


def measure(samples: Tensor, reference: Tensor, start: int, before: Tensor | None) -> ChunkFigures:
    """The figures of a chunk's samples `(3, n, h, w)`.

    Args: reference: samples of the picture that its colours are compared with. before: of the frame before, `(3, 1, h,
        w)`, None where the chunk continues nothing.
    """
    every = max(1, samples.shape[1] // FRAMES_FOR_COLOR)
    std, mean = lab_statistics(samples[:, ::every])
    _, wanted = lab_statistics(reference)
    steps = mean_steps(samples)
    return ChunkFigures(
        start=start,
        num_frames=samples.shape[1],
        lab_mean=_three(mean),
        lab_std=_three(std),
        lab_distance=round(float((mean - wanted).norm()), 3),
        step=round(float(steps.median()), 4) if len(steps) else 0.0,
        largest_step=round(float(steps.max()), 4) if len(steps) else 0.0,
        seam=None if before is None else round(float(mean_steps(torch.cat([before, samples[:, :1]], dim=1))[0]), 4),
    )


def sampled(frames: Tensor) -> Tensor:
    """Every n-th pixel of frames `(1, 3, n, H, W)` in [-1, 1]: `(3, n, h, w)` in [0, 1], on the CPU."""
    stride = max(1, max(frames.shape[3:]) // GRID)
    return (frames[0, :, :, ::stride, ::stride].float().cpu() + 1).div(2).clamp(0, 1)


def lab_statistics(samples: Tensor) -> tuple[Tensor, Tensor]:
    """Deviation and mean of L, a and b over all of `(3, n, h, w)`: `(3,)` each."""
    return torch.std_mean(rgb_to_lab(samples), dim=(1, 2, 3), correction=0)


def mean_steps(samples: Tensor) -> Tensor:
    """Mean difference of each frame to the one before, in levels of 0 to 255: `(n - 1,)`."""
    return samples.diff(dim=1).abs().mean(dim=(0, 2, 3)) * 255


def to_json(drift: Drift) -> str:
    """The figures as text; the last frame's samples are not in it."""
    return json.dumps([asdict(chunk) for chunk in drift.chunks])


def from_json(text: str, last: Tensor | None) -> Drift:
    """The same again. Raises: ValueError, KeyError, TypeError: if it is something else."""
    stored: Sequence[dict[str, Any]] = json.loads(text)
    chunks = [ChunkFigures(**item) for item in stored]
    exact = [replace(chunk, lab_mean=_three(chunk.lab_mean), lab_std=_three(chunk.lab_std)) for chunk in chunks]
    return Drift(tuple(exact), last)


def _ratio(chunk: ChunkFigures) -> float:
    return chunk.seam_ratio or 0.0


def _three(values: Iterable[Tensor | float]) -> Lab:
    lightness, a, b = (round(float(value), 3) for value in values)
    return lightness, a, b
