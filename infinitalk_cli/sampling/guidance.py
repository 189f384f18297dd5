"""Guidance: which passes of the network a step needs, and how their velocities become one.

A pass asks the network under one condition. `cond` has the prompt and the speech, `drop_text` the negative prompt and
the speech, `drop_audio` the prompt and zero audio, `uncond` neither. A scale of 1 makes passes cancel out; those are
not run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from infinitalk_cli.sampling.settings import ApgSettings

PassKind = Literal["cond", "drop_text", "uncond", "drop_audio"]


def is_off(scale: float) -> bool:
    """Whether a guidance scale leaves the prediction as it is."""
    return math.isclose(scale, 1.0)


def pass_kinds(text_scale: float, audio_scale: float) -> tuple[PassKind, ...]:
    """The fewest passes from which the guided velocity follows, in the order in which they run."""
    if is_off(text_scale):
        return ("cond",) if is_off(audio_scale) else ("cond", "drop_audio")
    return ("cond", "drop_text") if is_off(audio_scale) else ("cond", "drop_text", "uncond")


class Guidance:
    """Combines the velocities of a step's passes. One object per chunk: with APG it remembers earlier steps."""

    def __init__(self, text_scale: float, audio_scale: float, apg: ApgSettings | None = None) -> None:
        self.text_scale = text_scale
        self.audio_scale = audio_scale
        self.kinds = pass_kinds(text_scale, audio_scale)
        self._text_projection = apg and AdaptiveProjection(apg)
        self._audio_projection = apg and AdaptiveProjection(apg)

    def combine(self, velocities: Mapping[PassKind, Tensor]) -> Tensor:
        """The guided velocity. `velocities`: one per kind of `kinds`, all of one shape."""
        cond = velocities["cond"]
        guided = cond
        if not is_off(self.text_scale):
            direction = _project(self._text_projection, cond - velocities["drop_text"], cond)
            guided = guided + (self.text_scale - 1) * direction
        if not is_off(self.audio_scale):
            direction = _project(self._audio_projection, self._audio_direction(velocities), cond)
            guided = guided + (self.audio_scale - 1) * direction
        return guided

    def _audio_direction(self, velocities: Mapping[PassKind, Tensor]) -> Tensor:
        """What the speech changes: with text guidance on, under the negative prompt."""
        if is_off(self.text_scale):
            return velocities["cond"] - velocities["drop_audio"]
        return velocities["drop_text"] - velocities["uncond"]


class AdaptiveProjection:
    """One guidance direction after APG: with momentum, limited in length, orthogonal to the prediction.

    Source: "Eliminating oversaturation and artifacts of high guidance scales in diffusion models" (Sadat et al. 2024).
    """

    def __init__(self, settings: ApgSettings) -> None:
        self.settings = settings
        self._running: Tensor | None = None

    def __call__(self, direction: Tensor, prediction: Tensor) -> Tensor:
        if self._running is not None:
            direction = direction + self.settings.momentum * self._running
        self._running = direction
        if self.settings.norm_threshold > 0:
            direction = direction * (self.settings.norm_threshold / direction.norm()).clamp(max=1.0)
        # float64: the inner product runs over millions of values and nearly all of it is taken away again
        unit = torch.nn.functional.normalize(prediction.double().flatten(), dim=0).view_as(prediction)
        parallel = (direction * unit).sum() * unit
        return (direction - (1 - self.settings.parallel_weight) * parallel).to(prediction.dtype)


def _project(projection: AdaptiveProjection | None, direction: Tensor, prediction: Tensor) -> Tensor:
    return direction if projection is None else projection(direction, prediction)
