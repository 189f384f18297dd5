"""Writing the mp4: frames go to one H.264 encoder as they come, the sound to AAC beside them.

An mp4 whose writing is cut off cannot be played, since its index comes last. So the file is first written in fragments,
each playable once complete, as `name.part.mp4` beside the target. `finish` copies the packets (no second encoding) into
a plain mp4 with the index in front, and renames that to the target: whoever looks sees no file or a whole one. When the
disk is full, the fragments so far stay, cut at the last complete one.

Colours: BT.709 limited range, converted with that matrix and tagged so.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import av
import numpy as np
import numpy.typing as npt
import torch
from av.audio.frame import AudioFrame
from av.error import FFmpegError
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace

from infinitalk_cli.errors import InputError, MediaError
from infinitalk_cli.media.fragments import FRAGMENTED, copy_to_plain_mp4, cut_to_fragments
from infinitalk_cli.media.part_lock import open_alone, remove
from infinitalk_cli.media.part_name import part_path_of, real_path_of, whole_path_of
from infinitalk_cli.media.sound_track import SampleFeed, SoundTrack

Pixels = npt.NDArray[np.uint8]
"""`(n, H, W, 3)`, RGB."""

DEFAULT_CRF = 17
"""x264's quality: lower is better and larger. 17 is hard to tell from the source."""

FRAGMENT_FRAMES = 50
"""Frames between key frames, and so per fragment: what a crash can cost at most, besides the encoder's look-ahead."""

FRAMES_AT_ONCE = 8
"""Frames converted to 8 bits together."""

AAC_BITS_PER_SECOND = 96_000
"""For each channel, at rates of 32 kHz and more; 3 bits a sample below."""

BT709 = 1
"""The code of BT.709 among primaries, transfer functions and matrices alike."""


class VideoWriter:
    """An mp4 in the making. `num_frames`: frames written so far.

    Leaving a `with` block without `finish`, by an error say, completes the part file and keeps it if it holds frames.
    """

    def __init__(
        self,
        path: Path,
        *,
        height: int,
        width: int,
        sound: SoundTrack | None = None,
        fps: int = 25,
        crf: int = DEFAULT_CRF,
        metadata: Mapping[str, str] | None = None,
        overwrite: bool = True,
    ) -> None:
        """Start writing beside `path`, whose folder is made if it is missing.

        Args: height, width: in pixels, even. metadata: tags such as `title` and `comment`.
            overwrite: whether a file that is at `path` in the end may be replaced.
        Raises: InputError: if nothing can be written there, or another run is doing so.
        """
        if height % 2 or width % 2:
            raise ValueError(f"the size must be even for yuv420p, not {height}x{width}")
        self.path = path
        self.part_path = part_path_of(path)
        self.num_frames = 0
        self._overwrite = overwrite
        self._size, self._fps, self._metadata = (height, width), fps, dict(metadata or {})
        self._file = _claim(path, self.part_path)
        options = {"movflags": FRAGMENTED, "flush_packets": "1"}
        self._container = av.open(self._file, "w", format="mp4", options=options)
        self._container.metadata.update(self._metadata)
        self._closed = False

        self._video = self._container.add_stream("libx264", rate=fps, options={"crf": str(crf)})
        self._video.height, self._video.width = height, width
        self._video.pix_fmt = "yuv420p"
        codec = self._video.codec_context
        codec.gop_size = FRAGMENT_FRAMES
        codec.color_primaries = codec.color_trc = codec.colorspace = BT709
        codec.color_range = ColorRange.MPEG

        self._sound, self._audio = sound, None
        if sound is not None:
            self._audio = self._container.add_stream("aac", rate=sound.rate, layout=_layout(sound))
            self._audio.bit_rate = sound.num_channels * min(AAC_BITS_PER_SECOND, 3 * sound.rate)
            self._feed = SampleFeed(sound.blocks())
        self._num_samples = 0

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._closed:
            return
        if self.num_frames == 0:
            self.abort()
            return
        with suppress(MediaError):  # one error is under way already
            self._complete_part()
        self._file.close()

    def write(self, frames: torch.Tensor | Pixels) -> None:
        """Append frames, and the sound up to their end.

        Args: frames: `(1, 3, n, H, W)` in [-1, 1], rounded to 8 bits here, or `(n, H, W, 3)` RGB of 8 bits.
        Raises: MediaError: if the disk takes no more; the finished part stays and can be played.
        """
        with self._keeping_the_part():
            for pixels in _as_pixels(frames):
                self._write_frame(pixels)
            self._write_sound(self._end_sample())
            self._file.flush()

    def finish(self) -> Path:
        """Complete the file with the frames written so far, its sound cut to their length, and put it at `path`.

        Raises: MediaError: if there is no frame, the disk takes no more, or a file that must stay is there by now; the
            part file then stays.
        """
        if self.num_frames == 0:
            self.abort()
            raise MediaError(f"no frame was finished, so {self.path} is not written", hint="start it again")
        try:
            self._complete_part()
            self._put_in_place()
        finally:
            self._file.close()
        return self.path

    def abort(self) -> None:
        """Stop and remove what was written."""
        with suppress(FFmpegError, OSError):
            self._container.close()
        remove(self._file, self.part_path)
        self._closed = True

    def _complete_part(self) -> None:
        """Write what the encoders still hold. The part file stays open, and thereby ours."""
        with self._keeping_the_part():
            self._write_sound(self._end_sample())
            self._container.mux(self._video.encode(None))
            if self._audio is not None:
                self._container.mux(self._audio.encode(None))
            self._container.close()
            self._file.flush()  # raises what FFmpeg passed over: bytes that could not be written stay in its buffer
            self._closed = True

    def _write_frame(self, pixels: Pixels) -> None:
        if pixels.shape != (*self._size, 3):
            raise ValueError(f"a frame of {pixels.shape} in a video of {self._size}")
        rgb = VideoFrame.from_ndarray(pixels, format="rgb24")
        frame = rgb.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG)
        frame.pts, frame.time_base = self.num_frames, Fraction(1, self._fps)
        self._container.mux(self._video.encode(frame))
        self.num_frames += 1

    def _write_sound(self, end: int) -> None:
        """Encode the sound up to sample `end`, a second at a time."""
        if self._sound is None or self._audio is None:
            return
        while self._num_samples < end:
            samples = self._feed.take(min(end - self._num_samples, self._sound.rate))
            if not len(samples):
                return
            frame = AudioFrame.from_ndarray(np.ascontiguousarray(samples.T), format="fltp", layout=_layout(self._sound))
            frame.sample_rate, frame.time_base = self._sound.rate, Fraction(1, self._sound.rate)
            frame.pts = self._num_samples
            self._container.mux(self._audio.encode(frame))
            self._num_samples += len(samples)

    def _end_sample(self) -> int:
        """The sample at which the last frame's time ends."""
        return 0 if self._sound is None else self.num_frames * self._sound.rate // self._fps

    @contextmanager
    def _keeping_the_part(self) -> Generator[None, None, None]:
        """Turn a failure to write into a `MediaError` and leave the part file in a playable state."""
        try:
            yield
        except (FFmpegError, OSError) as error:
            self._close_quietly()
            kept = cut_to_fragments(self.part_path)
            raise self._failure(error, kept) from error

    def _failure(self, error: FFmpegError | OSError, kept: bool) -> MediaError:
        part = f"the part that was finished is kept in {self.part_path}" if kept else "nothing could be kept"
        return MediaError(
            f"writing {self.path} failed after {self.num_frames} frames: {error.strerror}; {part}",
            hint="free some disk space, or choose another folder for the output",
        )

    def _close_quietly(self) -> None:
        with suppress(FFmpegError, OSError):
            self._container.close()
        with suppress(OSError):
            self._file.close()
        self._closed = True

    def _put_in_place(self) -> None:
        """Copy the part's packets into a plain mp4 with the index in front and rename that."""
        whole_path = whole_path_of(self.path)
        try:
            copy_to_plain_mp4(self.part_path, whole_path, num_samples=self._num_samples, metadata=self._metadata)
            self._check_place()
            whole_path.replace(real_path_of(self.path))
        except MediaError:
            whole_path.unlink()
            raise
        except (FFmpegError, OSError) as error:
            whole_path.unlink(missing_ok=True)
            raise self._failure(error, kept=True) from error
        remove(self._file, self.part_path)

    def _check_place(self) -> None:
        if not self._overwrite and self.path.exists():
            raise MediaError(
                f"{self.path} came to be there meanwhile and is not replaced; the video is in {self.part_path}",
                hint="rename that file, which can be played as it is",
            )


def to_pixels(frames: torch.Tensor) -> Pixels:
    """`(1, 3, n, H, W)` in [-1, 1] to `(n, H, W, 3)` RGB of 8 bits, rounded."""
    levels = frames[0].float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    return levels.permute(1, 2, 3, 0).contiguous().cpu().numpy()


def _claim(path: Path, part_path: Path) -> BinaryIO:
    """Make the folder and open the part file, to find out before the work whether that is possible."""
    try:
        if path.is_dir():
            raise InputError(f"{path} is a folder", hint="name a file in it, such as talk.mp4")
        part_path.parent.mkdir(parents=True, exist_ok=True)
        return open_alone(part_path)
    except BlockingIOError as error:
        raise InputError(
            f"another run is writing {path}: its part file {part_path} is in use",
            hint="wait for it, or name another file with -o",
        ) from error
    except OSError as error:
        raise InputError(
            f"nothing can be written to {path.parent}: {error.strerror}",
            hint="choose another folder with -o, or change its permissions",
        ) from error


def _as_pixels(frames: torch.Tensor | Pixels) -> Iterator[Pixels]:
    """Yield single frames `(H, W, 3)`."""
    if not isinstance(frames, torch.Tensor):
        yield from frames
        return
    for start in range(0, frames.shape[2], FRAMES_AT_ONCE):
        yield from to_pixels(frames[:, :, start : start + FRAMES_AT_ONCE])


def _layout(sound: SoundTrack) -> str:
    return "mono" if sound.num_channels == 1 else "stereo"
