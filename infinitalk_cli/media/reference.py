"""The pictures that a video must resemble, fitted to its size: one picture, or the frames of a video.

The first picture decides the size. A video's later pictures are taken by time: the chunk that starts at frame 72 of a
25-frames-a-second video wants what the source shows at 2.88 s, whatever its own rate. The original program takes source
frame 72 instead, and drifts; `by_index` repeats that. What is seen past the end of the source, `source_time` says.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from PIL import Image

from infinitalk_cli.errors import InputError
from infinitalk_cli.media.image import Bucket, CropPlan, choose_bucket, plan_crop, plan_pad, read_image, to_frames
from infinitalk_cli.media.source_time import ShortSource, SourceTime
from infinitalk_cli.media.video import VideoReader

if TYPE_CHECKING:
    from torch import Tensor

VIDEO_FPS = 25

Fit = Literal["crop", "pad"]

LARGEST_ASPECT = 20
"""Long side over short side. A strip is scaled to the full height of the video before most of it is cut off."""


class Reference(Protocol):
    """What a source of references tells. `source_height`, `source_width`: of the uncropped picture, in pixels."""

    @property
    def crop(self) -> CropPlan: ...
    @property
    def source_height(self) -> int: ...
    @property
    def source_width(self) -> int: ...
    def frame(self, chunk_start: int) -> Tensor:
        """The reference of the chunk that starts at this frame: `(1, 3, 1, H, W)` in [-1, 1]."""
        ...


@dataclass(frozen=True)
class PictureReference:
    """One picture for every chunk."""

    picture: Tensor
    crop: CropPlan
    source_height: int
    source_width: int

    def frame(self, chunk_start: int) -> Tensor:
        del chunk_start
        return self.picture


@dataclass(frozen=True)
class VideoReference:
    """The frames of a video."""

    reader: VideoReader
    crop: CropPlan
    source_height: int
    source_width: int
    by_index: bool
    time: SourceTime

    def frame(self, chunk_start: int) -> Tensor:
        if self.by_index:
            shown = self.reader.frame_at_index(chunk_start)
        else:
            shown = self.reader.frame_at_time(self.time.at(Fraction(chunk_start, VIDEO_FPS)))
        return to_frames(shown, self.crop)


def open_reference(
    path: Path,
    table: tuple[Bucket, ...],
    *,
    is_video: bool,
    by_index: bool = False,
    short_source: ShortSource = "hold",
    fit: Fit = "crop",
) -> Reference:
    """Open the picture or video at `path` and fit it to the nearest size of `table`.

    Args: short_source: what is seen once the video is over. fit: whether the overhang is cut off, or all of it stays.
    Raises: InputError: if it is missing, damaged, something else, or a thin strip.
    """
    reader = VideoReader(path) if is_video else None
    first, crop = look_at(path, table, reader, fit)
    if reader:
        time = time_of(reader, short_source)
        return VideoReference(reader, crop, first.height, first.width, by_index, time)
    return PictureReference(to_frames(first, crop), crop, first.height, first.width)


def time_of(reader: VideoReader, short_source: ShortSource) -> SourceTime:
    """Where in the video that `reader` has open a moment of the new video takes its picture."""
    return SourceTime() if short_source == "hold" else SourceTime(short_source, reader.measure_length())


def look_at(
    path: Path, table: tuple[Bucket, ...], reader: VideoReader | None, fit: Fit = "crop"
) -> tuple[Image.Image, CropPlan]:
    """The picture, or the first one of a video that `reader` has open, and how it is fitted.

    Raises: InputError: as `open_reference`.
    """
    first = reader.frame_at_index(0) if reader else read_image(path)
    if max(first.size) > LARGEST_ASPECT * min(first.size):
        raise InputError(
            f"{path} is too thin for a video: {first.width} x {first.height} pixels",
            hint=f"cut out the face; the long side may be {LARGEST_ASPECT} times the short one at most",
        )
    bucket = choose_bucket(first.height, first.width, table)
    plan = plan_crop if fit == "crop" else plan_pad
    return first, plan(first.height, first.width, bucket.height, bucket.width)
