"""What a run of the sampler is told: one frozen dataclass, checked when it is made.

The two original programs (InfiniteTalk and MultiTalk) are two values of `engine`. Where we differ from them on purpose,
their rule stays reachable as a named switch of `Compatibility`; the parity tests turn these on and nothing else does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Engine = Literal["infinitetalk", "multitalk"]
BucketSet = Literal["480", "720", "demo"]

LATENT_STRIDE = 4
"""Frames that one latent frame stands for; the first frame has a latent frame of its own."""


class InvalidInput(ValueError):
    """A setting or an input that the sampler cannot use. The message says what and where, `hint` what to do next."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


@dataclass(frozen=True)
class ApgSettings:
    """Adaptive projected guidance: momentum, limit of the norm, share of the part parallel to the prediction."""

    momentum: float = -0.75
    norm_threshold: float = 55.0
    parallel_weight: float = 0.0


@dataclass(frozen=True)
class Compatibility:
    """Rules of the original programs that ours replace; all off by default."""

    reference_trim: bool = False
    """Chunks and cuts as the original loop of the engine makes them: the first speaker ends the loop; InfiniteTalk cuts
    by the last speaker, MultiTalk takes the first speaker's tail away."""
    refuse_short_audio: bool = False
    """Refuse audio that is not longer than one chunk, instead of padding it."""
    any_motion_length: bool = False
    """Accept motion lengths that are not 4n + 1 (the encoder drops the surplus frames)."""
    nan_for_empty_mask: bool = False
    """A speaker mask without a token makes every token background, instead of only losing that speaker."""


@dataclass(frozen=True)
class SamplingSettings:
    """Everything that shapes a video apart from its inputs and the networks.

    Args:
        chunk_frames, motion_frames: 4n + 1 frames; the last `motion_frames` of a chunk start the next one.
        max_frames: upper limit of the video's length, none if None.
        num_steps, shift: the schedule. text_guidance_scale, audio_guidance_scale: 1.0 means off.
        step_cache_threshold: accumulated change up to which a step reuses the last residual; None means never.
        seed: of the noise; the same seed gives the same noise on every device.
        color_strength: 0 keeps the decoded colours, 1 takes those of the reference.
        color_reference: the picture that lends its colours: the reference of the first chunk, or of each chunk (which
            is the same for a still picture).
        cross_fade: blend the motion frames of two chunks, which show the same time; otherwise the earlier chunk's stay.
        reanchor_every: every so many chunks of a scene, start from the reference picture again; None means never.
    Raises: InvalidInput: if a value is out of range or two of them do not go together.
    """

    engine: Engine = "infinitetalk"
    bucket_set: BucketSet = "480"
    chunk_frames: int = 81
    motion_frames: int = 9
    max_frames: int | None = None
    num_steps: int = 40
    shift: float = 7.0
    text_guidance_scale: float = 5.0
    audio_guidance_scale: float = 4.0
    apg: ApgSettings | None = None
    step_cache_threshold: float | None = None
    seed: int = 42
    color_strength: float = 1.0
    color_reference: Literal["first", "chunk"] = "chunk"
    cross_fade: bool = False
    reanchor_every: int | None = None
    compatibility: Compatibility = field(default_factory=Compatibility)

    def __post_init__(self) -> None:
        _check_at_least("the number of steps", self.num_steps, 1)
        _check_at_least("the frame limit", self.max_frames, 1)
        _check_at_least("the seed", self.seed, 0)
        _check_at_least("the number of chunks between two starts from the reference", self.reanchor_every, 1)
        if self.cross_fade and self.compatibility.reference_trim:
            raise InvalidInput("the original programs' cuts know no cross-fade")
        if not self.shift > 0:
            raise InvalidInput(f"the schedule shift is {self.shift}, but must be above 0")
        if not 0 <= self.color_strength <= 1:
            raise InvalidInput(f"the colour strength is {self.color_strength}, but must lie between 0 and 1")
        self._check_lengths()

    @property
    def is_streaming(self) -> bool:
        """Whether the limit allows more than one chunk."""
        return self.max_frames is None or self.max_frames > self.chunk_frames

    @property
    def chunk_stride(self) -> int:
        """Frames that every chunk but the first adds."""
        return self.chunk_frames - self.motion_frames

    def _check_lengths(self) -> None:
        _check_is_4n_plus_1("a chunk", self.chunk_frames)
        if self.compatibility.any_motion_length:
            _check_at_least("the number of motion frames", self.motion_frames, 1)
        else:
            _check_is_4n_plus_1("the motion part of a chunk", self.motion_frames)
        if self.is_streaming and self.chunk_stride <= 0:
            raise InvalidInput(
                f"{self.motion_frames} motion frames leave nothing new in a chunk of {self.chunk_frames} frames",
                hint="use fewer motion frames or a longer chunk",
            )


def num_latent_frames(num_frames: int) -> int:
    """Latent frames that `num_frames` frames encode to; surplus frames beyond 4n + 1 do not count."""
    return (num_frames - 1) // LATENT_STRIDE + 1


def _check_at_least(what: str, value: int | None, least: int) -> None:
    if value is not None and value < least:
        raise InvalidInput(f"{what} is {value}, but must be at least {least}")


def _check_is_4n_plus_1(what: str, num_frames: int) -> None:
    if num_frames < 1 or num_frames % LATENT_STRIDE != 1:
        below = max(num_frames - 1, 0) // LATENT_STRIDE * LATENT_STRIDE + 1
        raise InvalidInput(
            f"{what} has {num_frames} frames, but must have 4n + 1",
            hint=f"the nearest lengths are {below} and {below + LATENT_STRIDE}",
        )
