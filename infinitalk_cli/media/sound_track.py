"""The sound of the finished video: the original recordings, not the 16 kHz copies that the network hears.

A `SoundTrack` only says which files sound from when on; `blocks` decodes, resamples and adds them as the writer asks
for more, so that its memory does not depend on the length. One file keeps its rate and its one or two channels. Two
files meet at the higher rate, in stereo if either is, and if their sum would clip, the whole mix is turned down by one
constant, found by a first pass: no limiter that pumps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from infinitalk_cli.media.audio import Resampler, Samples, SoundReader

AAC_RATES = frozenset({8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000})
"""Sampling rates, in Hz, that are kept; everything else becomes `OTHER_RATE`."""

OTHER_RATE = 48000

DROPPED_AT_ONCE = 48_000

PEAK_LIMIT = 0.99
"""Loudest sample of a mix that had to be turned down."""


@dataclass(frozen=True)
class SoundPiece:
    """A file of the sound track. `start_s`: seconds from the start of the video at which it begins."""

    path: Path
    start_s: Fraction = Fraction(0)


@dataclass(frozen=True)
class SoundTrack:
    """What the video sounds like: the sum of `pieces` times `gain`, `duration_s` seconds long, silent where none is.

    `skip_s`: so much of the pieces' timeline lies before the start of the video.
    """

    pieces: tuple[SoundPiece, ...]
    rate: int
    num_channels: int
    duration_s: Fraction
    gain: float = 1.0
    skip_s: Fraction = Fraction(0)

    @property
    def num_samples(self) -> int:
        """Length in samples of each channel."""
        return round(self.duration_s * self.rate)

    def blocks(self) -> Iterator[Samples]:
        """Yield the sound as `(n, num_channels)` float32, a second at a time."""
        feeds = [SampleFeed(_piece_blocks(piece, self.rate, self.num_channels)) for piece in self.pieces]
        starts = [round((piece.start_s - self.skip_s) * self.rate) for piece in self.pieces]
        for feed, start in zip(feeds, starts, strict=True):
            feed.drop(-start)
        for begin in range(0, self.num_samples, self.rate):
            end = min(begin + self.rate, self.num_samples)
            mixed = np.zeros((end - begin, self.num_channels), np.float32)
            for feed, start in zip(feeds, starts, strict=True):
                if start < end:
                    offset = max(0, start - begin)  # a piece that began before the video goes on from there
                    samples = feed.take(end - begin - offset)
                    mixed[offset : offset + len(samples)] += samples
            yield mixed * np.float32(self.gain)


class SampleFeed:
    """Hands out a stream of blocks in any portions."""

    def __init__(self, blocks: Iterator[Samples]) -> None:
        self._blocks = blocks
        self._rest: Samples | None = None

    def take(self, num_samples: int) -> Samples:
        """The next `(n, channels)` samples; n is smaller than asked for only at the end."""
        taken = list[Samples]()
        missing = num_samples
        while missing > 0:
            block = self._rest if self._rest is not None else next(self._blocks, None)
            if block is None:
                break
            taken.append(block[:missing])
            self._rest = block[missing:] if len(block) > missing else None
            missing -= len(taken[-1])
        return np.concatenate(taken) if taken else np.zeros((0, 1), np.float32)

    def drop(self, num_samples: int) -> None:
        """Pass over so many samples, none for a number below 1; at most a second is held at a time."""
        while num_samples > 0 and len(passed := self.take(min(num_samples, DROPPED_AT_ONCE))):
            num_samples -= len(passed)


def exact_s(seconds: float) -> Fraction:
    """A time that somebody wrote, to the millisecond."""
    return Fraction(round(seconds * 1000), 1000)


def kept_rate(rate: int) -> int:
    """The rate, in Hz, at which sound of `rate` is written."""
    return rate if rate in AAC_RATES else OTHER_RATE


def without_clipping(track: SoundTrack) -> SoundTrack:
    """The track turned down, if it clips, until its loudest sample is `PEAK_LIMIT`. Decodes it once."""
    peak = max((float(np.abs(block).max(initial=0)) for block in track.blocks()), default=0.0)
    return replace(track, gain=track.gain * PEAK_LIMIT / peak) if peak > 1.0 else track


def _piece_blocks(piece: SoundPiece, rate: int, num_channels: int) -> Iterator[Samples]:
    with SoundReader(piece.path, at_most_stereo=True) as reader:
        for block in Resampler(reader.rate, rate, reader.num_channels).resample(reader.blocks()):
            yield block if reader.num_channels == num_channels else np.repeat(block, num_channels, axis=1)
