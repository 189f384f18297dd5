"""TeaCache: steps at which the transformer's blocks are skipped and their last residual is added again.

How far two steps differ is read off the projected time embedding, which depends on nothing but the time: so the steps
that skip are known before the first one runs, and are the same for every pass, chunk and video of a schedule. What is
kept is one residual per kind of pass, in an object that lives as long as one chunk.

Source: "Timestep Embedding Tells: It's Time to Cache for Video Diffusion Model" (Liu et al. 2024), with the
coefficients that the weights' own programs use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from infinitalk_cli.sampling.guidance import PassKind
from infinitalk_cli.sampling.settings import BucketSet

FIRST_FULL_STEPS = 5
"""Steps at the start that never skip: they lay out the picture."""

_AT_480 = (2.57151496e5, -3.54229917e4, 1.40286849e3, -1.35890334e1, 1.32517977e-1)
_AT_720 = (8.10705460e3, 2.13393892e3, -3.72934672e2, 1.66203073e1, -4.17769401e-2)

COEFFICIENTS: dict[BucketSet, tuple[float, ...]] = {"480": _AT_480, "720": _AT_720, "demo": _AT_480}
"""Polynomial from the change of the time embedding to the change of the residual, highest power first."""


def relative_change(embedding: Tensor, previous: Tensor) -> float:
    """Mean absolute change of a time embedding, relative to the previous one's mean size."""
    return float((embedding - previous).abs().mean() / previous.abs().mean())


def rescaled_change(change: float, coefficients: Sequence[float]) -> float:
    """The polynomial's value: the change to expect of the residual."""
    value = 0.0
    for coefficient in coefficients:
        value = value * change + coefficient
    return value


def steps_that_reuse(embeddings: Sequence[Tensor], threshold: float, coefficients: Sequence[float]) -> list[bool]:
    """Per step, whether its passes reuse the residual of the step before.

    Args: embeddings: the projected time embedding of every step. threshold: sum of rescaled changes at which the blocks
        run again.
    """
    reuse = [False] * len(embeddings)
    accumulated = 0.0
    for step in range(FIRST_FULL_STEPS, len(embeddings)):
        change = relative_change(embeddings[step], embeddings[step - 1])
        accumulated += rescaled_change(change, coefficients)
        reuse[step] = accumulated < threshold
        if not reuse[step]:
            accumulated = 0.0
    return reuse


@dataclass
class Residual:
    """What the blocks added to the tokens in one kind of pass, as the transformer's `residual` argument asks for it."""

    reuse: bool = False
    value: Tensor | None = None


class StepCache:
    """The residuals of one chunk. `reuse`: per step, from `steps_that_reuse`."""

    def __init__(self, reuse: Sequence[bool]) -> None:
        self._reuse = (*reuse, False)
        self._residuals: dict[PassKind, Residual] = {}

    def residual(self, step: int, kind: PassKind) -> Residual | None:
        """The holder to hand to a pass, or None if nothing is reused now and nothing kept for the next step."""
        if not self._reuse[step] and not self._reuse[step + 1]:
            self._residuals.pop(kind, None)
            return None
        holder = self._residuals.setdefault(kind, Residual())
        holder.reuse = self._reuse[step]
        return holder
