"""Where in a source video a moment of the new video takes its picture, also beyond the source's end.

The new video is as long as the speech, the source may be shorter. `hold` keeps showing its last picture (what the
original program does), `loop` starts it again, `ping-pong` plays it backwards and forwards in turn. A picture that
jumps is a cut: the cuts of the source, where they come by, and each new start of a loop.

Times are seconds from the first frame, cuts of the new video frame numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import count
from math import ceil
from typing import Literal

ShortSource = Literal["hold", "loop", "ping-pong"]

SHORTEST_SCENE_FRAMES = 12
"""A cut that follows another within half a second is none: every scene costs a chunk of its own."""

ROUNDING_FRAMES = Fraction(1, 100)
"""Cuts come as rounded seconds; one that lies this little behind a frame of the new video belongs to it."""


@dataclass(frozen=True)
class SourceTime:
    """`length_s`: of the source, None if it does not matter, as for `hold`."""

    short_source: ShortSource = "hold"
    length_s: Fraction | None = None

    def at(self, time_s: Fraction) -> Fraction:
        """The moment of the source that is seen at a moment of the new video."""
        if self.length_s is None or self.short_source == "hold":
            return time_s
        if self.short_source == "loop":
            return time_s % self.length_s
        swing_s = time_s % (2 * self.length_s)
        return min(swing_s, 2 * self.length_s - swing_s)

    def cut_frames(self, cuts_s: Sequence[Fraction], num_frames: int, fps: int) -> tuple[int, ...]:
        """The frames of the new video, of `num_frames`, that are the first of a scene. `cuts_s`: of the source."""
        frames = list[int]()
        for time_s in self._cuts(cuts_s):
            frame = ceil(time_s * fps - ROUNDING_FRAMES)
            if frame >= num_frames:
                break
            if frame - (frames[-1] if frames else 0) >= SHORTEST_SCENE_FRAMES:
                frames.append(frame)
        return tuple(frames)

    def _cuts(self, cuts_s: Sequence[Fraction]) -> Iterator[Fraction]:
        """Moments of the new video at which a new scene is there, ascending; without end where the source goes on."""
        if self.length_s is None or self.short_source == "hold":
            yield from cuts_s
            return
        length_s = self.length_s
        inside = [cut_s for cut_s in cuts_s if 0 < cut_s < length_s]
        if self.short_source == "ping-pong" and not inside:
            return
        for turn in count():
            if self.short_source == "loop" and turn:
                yield turn * length_s
            is_backwards = self.short_source == "ping-pong" and turn % 2 == 1
            yield from (turn * length_s + cut_s for cut_s in (_mirrored(inside, length_s) if is_backwards else inside))


def _mirrored(cuts_s: Sequence[Fraction], length_s: Fraction) -> Iterator[Fraction]:
    """The cuts of a stretch that is played backwards. At the cut itself the later scene is still seen."""
    hundredth_s = Fraction(1, 100)
    return (length_s - cut_s + hundredth_s for cut_s in reversed(cuts_s))
