"""All inputs of a video that are not noise, and how a chunk reads its share of the speech.

Speech and reference are asked for chunk by chunk through two small protocols, so that hours of audio or video are never
held at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class AudioEmbeds(Protocol):
    """Speech features at video rate, `num_frames` rows of `(layers, width)`."""

    @property
    def num_frames(self) -> int: ...

    def gather(self, indices: Tensor) -> Tensor:
        """Rows `(n, layers, width)` by their numbers `(n,)`, int64 on the CPU, each below `num_frames`."""
        ...


class ReferenceSource(Protocol):
    """The pictures that a video must resemble."""

    def frame(self, chunk_start: int) -> Tensor:
        """The reference of the chunk that starts at this frame: `(1, 3, 1, H, W)` in [-1, 1].

        The same tensor object returned again counts as the same picture and is not encoded again.
        """
        ...


@dataclass(frozen=True)
class TensorEmbeds:
    """Speech features that lie in memory. `rows`: `(T, layers, width)`."""

    rows: Tensor

    @property
    def num_frames(self) -> int:
        return self.rows.shape[0]

    def gather(self, indices: Tensor) -> Tensor:
        return self.rows[indices.to(self.rows.device)]


@dataclass(frozen=True)
class ReversedTail:
    """Speech features followed by their last `tail` rows in reverse order; nothing is copied.

    A video ends within its last chunk; the rest of that chunk needs speech-like input too. `tail` is at most the number
    of rows.
    """

    embeds: AudioEmbeds
    tail: int

    @property
    def num_frames(self) -> int:
        return self.embeds.num_frames + self.tail

    def gather(self, indices: Tensor) -> Tensor:
        mirrored = 2 * self.embeds.num_frames - 1 - indices
        return self.embeds.gather(torch.minimum(indices, mirrored))


@dataclass(frozen=True)
class PausedEmbeds:
    """Speech features led to those of silence where the speaker pauses.

    `neutral`: the features of silence, `(layers, width)`. `weights`: a number from 0 (as they are) to 1 for each row.
    """

    embeds: AudioEmbeds
    neutral: Tensor
    weights: Tensor

    @property
    def num_frames(self) -> int:
        return self.embeds.num_frames

    def gather(self, indices: Tensor) -> Tensor:
        rows = self.embeds.gather(indices)
        return rows.lerp(self.neutral.to(rows), self.weights[indices].to(rows)[:, None, None])


@dataclass(frozen=True)
class Conditioning:
    """Everything a video is made from, apart from noise.

    Args:
        text: the prompt's features `(L, D)`. null_text: the negative prompt's, needed with text guidance only.
        audio: one or two speakers.
        reference: its pictures measure `height` x `width` pixels.
        speaker_masks: `(3, height / 8, width / 8)`, see `speaker_masks`; needed for two speakers.
        cuts: frames of the video at which the reference cuts to another scene, ascending.
    """

    text: Tensor
    audio: tuple[AudioEmbeds, ...]
    reference: ReferenceSource
    height: int
    width: int
    null_text: Tensor | None = None
    speaker_masks: Tensor | None = None
    cuts: tuple[int, ...] = ()


def audio_window(embeds: AudioEmbeds, start: int, length: int, radius: int = 2) -> Tensor:
    """Gather each video frame's neighbours in the audio embeddings, clamped at both ends.

    Args: start, length: in frames; frames past the last one see the last one.
    Returns: `(length, 2 * radius + 1, layers, width)`.
    Raises: ValueError: if there are no embeddings at all.
    """
    if embeds.num_frames < 1:
        raise ValueError("a window of audio embeddings that have no frames")
    centers = torch.arange(start, start + length)
    indices = centers[:, None] + torch.arange(-radius, radius + 1)
    indices = indices.clamp(0, embeds.num_frames - 1)
    first, last = int(indices[0, 0]), int(indices[-1, -1])
    rows = embeds.gather(torch.arange(first, last + 1))
    return rows[(indices - first).to(rows.device)]
