"""Any sound file, or the sound of a video, as float32 blocks in time order.

Decoding is PyAV's, so whatever FFmpeg reads is read, without the ffmpeg program. Two facts of compressed files are
mended here, because lips follow the samples:

- The sound of a video may start later than its picture. The gap becomes silence. (A lone sound file that starts at,
  say, 25 ms, as every MP3 does, has no gap: that is the encoder's delay, already removed.)
- The last AAC frame is padded to 1024 samples. An mp4 file states the real length, and the rest is cut off. Other
  containers state none or an estimate, which is not used.

Samples keep the file's rate and channels; what is done with them is the business of `speech` and `sound_track`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soxr
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import FFmpegError

from infinitalk_cli.errors import InputError
from infinitalk_cli.media.container import decode_frames, find_video, open_container

Samples = npt.NDArray[np.float32]
"""`(n, channels)` unless said otherwise, nominally within [-1, 1]."""

MAX_PADDING = 4096
"""Samples a codec may add at the end (two HE-AAC frames). A longer excess means that the stated length is wrong."""

SILENCE_BLOCK = 1 << 16
"""Samples of silence handed out at a time."""


class SoundReader:
    """A sound file opened to be read once, from front to back.

    Attributes:
        rate: samples a second.
        num_channels: of the first frame; later frames are brought to it.
        num_read: samples per channel that `blocks` has yielded so far, the silence at the start included.
    """

    def __init__(self, path: Path, *, at_most_stereo: bool = False) -> None:
        """Open `path` and decode its first frame.

        Args: at_most_stereo: mix more than two channels down to two, weighted by their places as FFmpeg does.
        Raises: InputError: if it cannot be read, has no sound, or holds no samples.
        """
        self.path = path
        self._container = open_container(path, "a sound file")
        try:
            if not self._container.streams.audio:
                raise InputError(f"{path} has no sound", hint="name a sound file, or a video with a sound track")
            self._stream = self._container.streams.audio[0]
            self._frames = self._decode()
            first = next(self._frames, None)
        except BaseException:
            self._container.close()
            raise
        if first is None:
            self._container.close()
            raise InputError(f"{path} holds no sound samples", hint="record or export it again; it may be cut short")
        self.rate = first.sample_rate
        channels_in_file = len(first.layout.channels)
        self._layout = "stereo" if at_most_stereo and channels_in_file > 2 else None
        self.num_channels = 2 if self._layout else channels_in_file
        self.num_read = 0
        self._gap = _start_gap(self._container, self._stream, first)
        self._frames = chain([first], self._frames)

    def __enter__(self) -> SoundReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def blocks(self) -> Iterator[Samples]:
        """Yield the sound as `(n, num_channels)` float32 blocks of any length.

        Raises: InputError: if a sample is not a number, or the rate changes on the way.
        """
        gap = silence(round(self._gap * self.rate), self.num_channels)
        for block in chain(gap, cut_padding(self._samples(), self._stated_length())):
            if not np.isfinite(block).all():
                raise InputError(
                    f"{self.path} holds samples that are not numbers (NaN or infinite), "
                    f"the first about {self.num_read / self.rate:.2f} s from its start",
                    hint="export the sound again, as 16-bit WAV for instance",
                )
            self.num_read += len(block)
            yield block

    def _decode(self) -> Iterator[AudioFrame]:
        try:
            for frame in decode_frames(self._container, self._stream):
                if isinstance(frame, AudioFrame) and frame.samples:
                    yield frame
        except FFmpegError as error:
            raise InputError(
                f"the sound of {self.path} cannot be decoded: {error.strerror}",
                hint="check that it plays; save it anew as WAV, MP3 or M4A",
            ) from error

    def _samples(self) -> Iterator[Samples]:
        to_float, kind = AudioResampler(), ("", "")
        for frame in self._frames:
            if frame.sample_rate != self.rate:
                raise InputError(
                    f"{self.path} changes its sampling rate from {self.rate} to {frame.sample_rate} Hz on the way",
                    hint="save it anew at one rate, as WAV for instance",
                )
            if kind != (kind := (frame.format.name, frame.layout.name)):
                to_float = AudioResampler(format="flt", layout=self._layout)  # packed: PyAV misreads 8 planes
            for made in to_float.resample(frame):
                samples = made.to_ndarray().reshape(made.samples, -1)
                yield _with_channels(samples.astype(np.float32, copy=False), self.num_channels)

    def _stated_length(self) -> int | None:
        duration, time_base = self._stream.duration, self._stream.time_base
        if duration is None or time_base is None or "mp4" not in self._container.format.name.split(","):
            return None
        return round(duration * time_base * self.rate)


class Resampler:
    """Streaming soxr HQ, the same samples as `librosa.resample(..., res_type="soxr_hq")` gives for the whole.

    Yields exactly `ceil(n * rate_out / rate_in)` samples for n.
    """

    def __init__(self, rate_in: int, rate_out: int, num_channels: int) -> None:
        self._rates = (rate_in, rate_out)
        self._num_channels = num_channels
        self._stream = soxr.ResampleStream(rate_in, rate_out, num_channels, dtype="float32", quality="HQ")

    def resample(self, blocks: Iterable[Samples]) -> Iterator[Samples]:
        """Yield `blocks`, each `(n, channels)`, at the other rate."""
        rate_in, rate_out = self._rates
        if rate_in == rate_out:
            yield from blocks
            return
        num_in = num_out = 0
        for block in blocks:
            num_in += len(block)
            made = self._stream.resample_chunk(np.ascontiguousarray(block))
            num_out += len(made)
            yield made
        tail = self._stream.resample_chunk(np.zeros((0, self._num_channels), np.float32), last=True)
        missing = -(-num_in * rate_out // rate_in) - num_out
        yield tail[:missing]
        yield from silence(missing - len(tail), self._num_channels)


def silence(num_samples: int, num_channels: int) -> Iterator[Samples]:
    """Yield `num_samples` zeros in blocks of bounded size; nothing for a count below one."""
    for start in range(0, num_samples, SILENCE_BLOCK):
        yield np.zeros((min(SILENCE_BLOCK, num_samples - start), num_channels), np.float32)


def cut_padding(blocks: Iterable[Samples], stated_length: int | None) -> Iterator[Samples]:
    """Drop what lies beyond `stated_length`, unless it is more than padding: then the statement was wrong."""
    num_read, held = 0, list[Samples]()
    for block in blocks:
        keep = len(block) if stated_length is None else max(0, stated_length - num_read)
        num_read += len(block)
        if stated_length is None or keep >= len(block):
            yield block
            continue
        held.append(block[keep:])
        if keep:
            yield block[:keep]
        if num_read - stated_length > MAX_PADDING:
            stated_length = None
            yield from held


def _with_channels(samples: Samples, num_channels: int) -> Samples:
    """`samples` as they are, or their mean in every channel if they have another number of channels."""
    if samples.shape[1] == num_channels:
        return samples
    return np.repeat(samples.mean(axis=1, keepdims=True, dtype=np.float32), num_channels, axis=1)


def _start_gap(container: InputContainer, stream: AudioStream, first: AudioFrame) -> Fraction:
    """Seconds by which the sound starts after the picture; 0 where there is no picture or it starts later."""
    video = find_video(container)
    if video is None or video.start_time is None or video.time_base is None:
        return Fraction(0)
    if first.pts is None or first.time_base is None:
        return Fraction(0)
    return max(Fraction(0), first.pts * first.time_base - video.start_time * video.time_base)
