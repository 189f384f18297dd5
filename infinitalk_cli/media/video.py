"""Reading single frames of a video by time, with one reader kept open.

Only one frame per chunk is used, so frames between are decoded but not converted. Times are presentation timestamps
counted from the video's first frame: a variable rate needs no special case, and a 30 fps source stays in step with the
25 fps output. The wanted frame is the one on screen half a tick after the asked time, a tick being the grid that the
stream's timestamps lie on: for a constant rate that is frame `round(time * fps)`.

Frames come out upright (rotation metadata applied) and with square pixels.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

from av.container import InputContainer
from av.error import FFmpegError
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream
from PIL import Image, UnidentifiedImageError

from infinitalk_cli.errors import InputError
from infinitalk_cli.media.container import check_file, decode_frames, find_video, open_container

SEEK_AHEAD_S = 10
"""Going forward by less than this is done by decoding on, since key frames are rarely closer."""

MOVING_PICTURE_FORMATS = frozenset({"GIF", "PNG"})
"""Picture formats that are a video if they hold several frames. (Others hold several for other reasons: a phone's JPEG
a second view, a TIFF pages; FFmpeg does not decode animated WebP.)"""

TURNS = {
    1: Image.Transpose.ROTATE_90,
    2: Image.Transpose.ROTATE_180,
    3: Image.Transpose.ROTATE_270,
}
"""How to put a frame upright, by quarter turns against the clock."""


TAGGED_MATRICES = frozenset({1, 4, 7, 9})  # BT.709, FCC, SMPTE 240M, BT.2020
"""Matrices whose tag in the file is their number in the converter. Everything else is converted as BT.601."""


class VideoReader:
    """A video opened for reading frames in any order; going forward is cheap."""

    def __init__(self, path: Path) -> None:
        """Open `path` and decode its first frame.

        Raises: InputError: if it cannot be read or has no picture.
        """
        self.path = path
        self._index: int | None = 0
        self._open()
        if self._current is None:
            self.close()
            raise InputError(f"{path} holds no readable picture", hint="check that it plays; save it anew as MP4")
        self._start = _time(self._current, Fraction(0))
        self._first_size = self._to_image(self._current).size

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    @property
    def first_size(self) -> tuple[int, int]:
        """Height and width of the first frame, upright."""
        width, height = self._first_size
        return height, width

    @property
    def duration_s(self) -> float | None:
        """Length in seconds as the file states it; None if it does not."""
        if self._stream.duration is not None and self._stream.time_base is not None:
            return float(self._stream.duration * self._stream.time_base)
        return self._container.duration / 1e6 if self._container.duration is not None else None

    def measure_length(self) -> Fraction:
        """Seconds from the first frame to the end of the last one, by the timestamps; reads the file to its end."""
        container, stream = _open_video(self.path)
        end = self._start
        with container:
            for packet in container.demux(stream):
                if packet.pts is not None:
                    shown = (packet.duration or 0) * packet.time_base
                    end = max(end, packet.pts * packet.time_base + (shown or self._tick))
        return max(end - self._start, self._tick, Fraction(1, 1000))

    def frame_at_time(self, time_s: float | Fraction) -> Image.Image:
        """The RGB frame shown `time_s` seconds after the first one; the last frame beyond the end.

        Raises: ValueError: if `time_s` is negative.
        """
        if time_s < 0:
            raise ValueError(f"the time must not be negative: {time_s}")
        target = self._start + Fraction(time_s) + self._tick / 2
        behind = target - self._position
        at_end = self._next is None
        if behind < 0 or (behind > SEEK_AHEAD_S and not at_end):
            self._seek(target)
        while self._next is not None and self._next_position <= target:
            self._advance()
        return self._image()

    def frame_at_index(self, index: int) -> Image.Image:
        """The RGB frame of that number in the source's own counting; the last frame beyond the end.

        Raises: ValueError: if `index` is negative.
        """
        if index < 0:
            raise ValueError(f"the index must not be negative: {index}")
        if self._index is None or index < self._index:
            self._reopen()
        while self._next is not None and self._index is not None and self._index < index:
            self._advance()
        return self._image()

    def _open(self) -> None:
        self._container, self._stream = _open_video(self.path)
        self._stream.thread_type = "AUTO"
        rate = self._stream.base_rate or self._stream.average_rate
        self._tick = 1 / Fraction(rate) if rate else Fraction(0)
        self._restart(index=0)

    def _reopen(self) -> None:
        self._container.close()
        self._open()

    def _restart(self, index: int | None) -> None:
        """Decode the next two frames from where the file stands. `index`: the number of the first, if known."""
        self._frames = self._decode()
        self._current = self._next = next(self._frames, None)
        self._position = self._next_position = _time(self._current, Fraction(0))
        self._advance()
        self._index = index

    def _advance(self) -> None:
        """Make the next frame the current one."""
        if self._next is None:
            return
        self._current, self._position = self._next, self._next_position
        self._index = None if self._index is None else self._index + 1
        self._next = next(self._frames, None)
        self._next_position = _time(self._next, self._position + self._tick)

    def _seek(self, target: Fraction) -> None:
        """Go to the last key frame before `target`, or to the start where the file has no index to go by."""
        try:
            time_base = self._stream.time_base or Fraction(1, 1_000_000)
            self._container.seek(int(target / time_base), stream=self._stream)
            self._restart(index=None)
        except FFmpegError:
            self._current = None
        if self._current is None or self._position > target:
            self._reopen()

    def _decode(self) -> Iterator[VideoFrame]:
        for frame in decode_frames(self._container, self._stream):
            if isinstance(frame, VideoFrame):
                yield frame

    def _image(self) -> Image.Image:
        assert self._current is not None
        return self._to_image(self._current)

    def _to_image(self, frame: VideoFrame) -> Image.Image:
        image = Image.fromarray(_to_rgb(frame).to_ndarray())
        aspect = self._stream.sample_aspect_ratio
        if aspect and aspect != 1:
            image = image.resize((max(1, round(image.width * aspect)), image.height), Image.Resampling.BICUBIC)
        turn = TURNS.get(round(frame.rotation / 90) % 4)
        return image if turn is None else image.transpose(turn)


def is_video(path: Path) -> bool:
    """Whether `path` holds moving pictures (True) or a still one (False), judged by its content, not its name.

    A GIF or PNG with several frames is a video; every other picture is still.

    Raises: InputError: if it is neither.
    """
    check_file(path, "a picture or a video")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return image.format in MOVING_PICTURE_FORMATS and bool(getattr(image, "is_animated", False))
    except UnidentifiedImageError:
        container, _ = _open_video(path)
        container.close()
        return True
    except PermissionError as error:
        raise InputError(f"{path} may not be read: permission denied", hint="change the file's permissions") from error


def _open_video(path: Path) -> tuple[InputContainer, VideoStream]:
    container = open_container(path, "a picture or a video")
    stream = find_video(container)
    if stream is None:
        container.close()
        raise InputError(f"{path} has no picture in it", hint="name a portrait or a video; sound goes in as audio")
    return container, stream


def _to_rgb(frame: VideoFrame) -> VideoFrame:
    """Convert after the frame's own matrix and range, said aloud because PyAV 15 does not look at them."""
    if frame.format.is_rgb:
        return frame.reformat(format="rgb24")
    return frame.reformat(
        format="rgb24",
        src_colorspace=frame.colorspace if frame.colorspace in TAGGED_MATRICES else Colorspace.ITU601,
        src_color_range=frame.color_range or None,
        dst_color_range=ColorRange.JPEG,
    )


def _time(frame: VideoFrame | None, otherwise: Fraction) -> Fraction:
    """The presentation time in seconds; `otherwise` for a frame without one."""
    if frame is None or frame.pts is None or frame.time_base is None:
        return otherwise
    return frame.pts * frame.time_base
