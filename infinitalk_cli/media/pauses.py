"""Where a speaker pauses, so that the mouth can be closed there.

The speech features of a pause still depend on the words around it, on breath and on noise, and lips move a little.
With weights from here they are led to the features of digital silence and back, a few frames at either edge of the
pause, and not at all where there is speech. A frame is silent if its energy lies far below the loudness of the
speaker's own track, which is measured with gates and so does not depend on how much of it is silence.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from infinitalk_cli.media.loudness import LoudnessMeter

SILENCE_BELOW_SPEECH_DB = 25.0
"""A frame whose RMS lies this far below the track's loudness (dBFS against LUFS) is silent. Vowels lie around it, weak
consonants 10 to 20 dB below, a quiet room 30 and more."""

SHORTEST_PAUSE_FRAMES = 11
"""Only pauses longer than 0.4 s count: the mouth stays open within a sentence."""

RAMP_FRAMES = 4
"""Frames at either edge of a pause on which the features change over."""

FRAMES_PER_READ = 1500


class Samples(Protocol):
    """`(n,)` float32, an array or anything that hands out its slices."""

    def __len__(self) -> int: ...

    def __getitem__(self, piece: slice, /) -> npt.NDArray[Any]: ...


def pause_weights(track: Samples, num_frames: int, *, rate: int = 16_000, fps: int = 25) -> npt.NDArray[np.float32]:
    """How far each video frame of a speaker's track is led to silence: 0 in speech, 1 within pauses, `(num_frames,)`.

    A track without any sound is one pause.
    """
    return ramps(find_pauses(silent_frames(track, num_frames, rate=rate, fps=fps)))


def silent_frames(track: Samples, num_frames: int, *, rate: int = 16_000, fps: int = 25) -> npt.NDArray[np.bool_]:
    """Whether each frame's stretch of the track is silent, `(num_frames,)`; what lies behind its end is."""
    meter, samples_per_frame = LoudnessMeter(rate), rate // fps
    powers = np.zeros(num_frames)
    for first in range(0, num_frames, FRAMES_PER_READ):
        last = min(first + FRAMES_PER_READ, num_frames)
        samples = np.array(track[first * samples_per_frame : last * samples_per_frame], dtype=np.float32)
        meter.add(samples)
        whole = np.zeros((last - first) * samples_per_frame)
        whole[: len(samples)] = samples
        powers[first:last] = np.square(whole).reshape(last - first, samples_per_frame).mean(axis=1)
    loudness = meter.integrated()
    if loudness == -np.inf:  # nothing is heard at all
        return np.ones(num_frames, np.bool_)
    return powers <= 10 ** ((loudness - SILENCE_BELOW_SPEECH_DB) / 10)


def find_pauses(is_silent: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The silent frames that belong to a stretch of `SHORTEST_PAUSE_FRAMES` or more, `(n,)`."""
    edges = np.diff(np.concatenate(([0], is_silent.astype(np.int8), [0])))
    pauses = np.zeros(len(is_silent), np.bool_)
    for start, stop in zip(np.flatnonzero(edges == 1), np.flatnonzero(edges == -1), strict=True):
        pauses[start:stop] = stop - start >= SHORTEST_PAUSE_FRAMES
    return pauses


def ramps(pauses: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """1 within pauses, 0 without, and in between on the pause's own frames next to speech, `(n,)`."""
    numbers = np.arange(len(pauses))
    speech = np.flatnonzero(~pauses)
    if not len(speech):
        return np.ones(len(pauses), np.float32)
    following = np.searchsorted(speech, numbers)
    before = numbers - speech[np.maximum(following - 1, 0)]
    after = speech[np.minimum(following, len(speech) - 1)] - numbers
    distance = np.minimum(np.where(before >= 0, before, len(pauses)), np.where(after >= 0, after, len(pauses)))
    return np.minimum(distance / (RAMP_FRAMES + 1), 1).astype(np.float32)
