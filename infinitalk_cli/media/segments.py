"""Pieces of a video, each complete in itself: encoded one by one, joined in the end without encoding them again.

Every piece comes from an encoder of its own and starts with a key frame. So a run that goes on behind piece 5 writes
the same bytes as one that never stopped, and a crash costs no finished piece: a file has its name only once all of it
is on the disk.

Joining copies the picture's packets, moved to their time, and encodes the sound beside them. AAC starts with 1024
samples of encoder delay, which the index says to skip, so that sound and picture start together.

FFmpeg forgets a failed write that happens while it closes a file. Files are therefore looked at afterwards: an mp4 is a
row of boxes, each with its length, that must end exactly where the file ends.

Colours: BT.709 limited range, converted with that matrix and tagged so.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.audio.frame import AudioFrame
from av.container import OutputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace

from infinitalk_cli.media.sound_track import SampleFeed, SoundTrack

Pixels = npt.NDArray[np.uint8]
"""`(n, H, W, 3)`, or one frame of them, RGB."""

MOST_THREADS = 8
"""Of the encoder; more of them gain little and take the CPU from what computes beside."""

KEY_FRAME_DISTANCE = 50
"""Frames between key frames at most: how precisely a player can jump."""

AAC_BITS_PER_SECOND = 96_000
"""For each channel, at rates of 32 kHz and more; 3 bits a sample below."""

BT709 = 1
"""The code of BT.709 among primaries, transfer functions and matrices alike."""

LONG_FORM = 1
"""In place of a box's length: the length follows in eight bytes."""


@dataclass(frozen=True)
class Picture:
    """How the picture is encoded. Sizes in pixels, even. `crf`: x264's quality, lower is better and larger."""

    height: int
    width: int
    fps: int = 25
    crf: int = 17


def write_segment(path: Path, frames: Iterable[Pixels], picture: Picture) -> int:
    """Encode single frames `(H, W, 3)` as the piece `path`; how many they were.

    Raises: OSError, FFmpegError: if the disk takes no more; nothing is left then.
    """
    num_frames = 0
    with _whole_or_not_at_all(path) as draft, av.open(str(draft), "w", format="mp4") as container:
        stream = _add_picture(container, picture)
        for pixels in frames:
            if pixels.shape != (picture.height, picture.width, 3):
                raise ValueError(f"a frame of {pixels.shape} in a video of {picture.height} x {picture.width}")
            container.mux(stream.encode(_yuv_frame(pixels, num_frames, picture.fps)))
            num_frames += 1
        container.mux(stream.encode(None))
    return num_frames


def join_segments(
    segments: Sequence[Path],
    target: Path,
    *,
    num_frames: int,
    fps: int,
    sound: SoundTrack | None,
    metadata: Mapping[str, str],
) -> None:
    """Put pieces one behind the other, with the sound cut to their length, as an mp4 with its index in front.

    Args: num_frames: of all pieces. Raises: OSError, FFmpegError: if the disk takes no more; nothing is left then.
    """
    # A timescale in which the sound's length is exact; the default of 1000 cuts up to a millisecond.
    timescale = sound.rate if sound else 12_800
    options = {"movflags": "faststart", "movie_timescale": str(timescale)}
    with _whole_or_not_at_all(target) as draft, av.open(str(draft), "w", format="mp4", options=options) as container:
        container.metadata.update(metadata)
        packets = _packets_in_order(segments, container, fps)
        voice = _Voice(container, sound, num_samples=num_frames * sound.rate // fps) if sound else None
        for number, packet in enumerate(packets):
            container.mux(packet)
            if voice:
                voice.speak_until(number * voice.rate // fps)
        if voice:
            voice.finish()


def sync_to_disk(path: Path) -> None:
    """Have a file or a folder survive a loss of power. A folder can't be synced everywhere."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_complete_mp4(path: Path) -> bool:
    """Whether an mp4 has an index and data and ends where its last box ends."""
    kinds = dict(complete_boxes(path))
    return {b"moov", b"mdat"} <= kinds.keys() and max(kinds.values()) == path.stat().st_size


def complete_boxes(path: Path) -> Iterator[tuple[bytes, int]]:
    """Yield the kind of each box at the top level of an mp4 and the byte after it, up to the first incomplete one."""
    size, position = path.stat().st_size, 0
    with path.open("rb") as file:
        while position + 8 <= size:
            file.seek(position)
            length, kind = int.from_bytes(file.read(4), "big"), file.read(4)
            if length == LONG_FORM:
                length = int.from_bytes(file.read(8), "big")
            position += length
            if length < 8 or position > size:
                return
            yield kind, position


@contextmanager
def _whole_or_not_at_all(path: Path) -> Generator[Path]:
    """Give a name to write under; the mp4 gets its own once it is complete and on the disk."""
    draft = path.with_name(f"{path.name}.draft")
    try:
        yield draft
        if not is_complete_mp4(draft):
            raise OSError(errno.ENOSPC, "the file came out incomplete, as on a full disk")
        sync_to_disk(draft)
        draft.replace(path)
        sync_to_disk(path.parent)
    finally:
        draft.unlink(missing_ok=True)


def _add_picture(container: OutputContainer, picture: Picture) -> Any:
    threads = str(min(MOST_THREADS, os.cpu_count() or 1))
    stream = container.add_stream("libx264", rate=picture.fps, options={"crf": str(picture.crf), "threads": threads})
    stream.height, stream.width = picture.height, picture.width
    stream.pix_fmt = "yuv420p"
    codec = stream.codec_context
    codec.gop_size = KEY_FRAME_DISTANCE
    codec.color_primaries = codec.color_trc = codec.colorspace = BT709
    codec.color_range = ColorRange.MPEG
    return stream


def _yuv_frame(pixels: Pixels, number: int, fps: int) -> VideoFrame:
    rgb = VideoFrame.from_ndarray(pixels, format="rgb24")
    frame = rgb.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG)
    frame.pts, frame.time_base = number, Fraction(1, fps)
    return frame


def _packets_in_order(segments: Sequence[Path], container: OutputContainer, fps: int) -> Iterator[Packet]:
    """The packets of the pieces' pictures as those of one new stream of `container`, which is made first."""
    with av.open(str(segments[0])) as first:
        stream = container.add_stream_from_template(first.streams.video[0])
    return _moved_packets(segments, stream, fps)


def _moved_packets(segments: Sequence[Path], stream: Any, fps: int) -> Iterator[Packet]:
    num_before = 0
    for path in segments:
        with av.open(str(path)) as piece:
            in_piece = 0
            for packet in piece.demux(video=0):
                if packet.pts is None or packet.dts is None:
                    continue  # the demuxer's mark of the end
                ticks = round(Fraction(num_before, fps) / Fraction(packet.time_base))
                packet.pts, packet.dts = packet.pts + ticks, packet.dts + ticks
                packet.stream = stream
                in_piece += 1
                yield packet
            num_before += in_piece


class _Voice:
    """The sound of a file in the making: encoded as far as it is asked for, a second at a time."""

    def __init__(self, container: OutputContainer, sound: SoundTrack, num_samples: int) -> None:
        self.rate = sound.rate
        self._container, self._num_samples, self._done = container, num_samples, 0
        self._layout = "mono" if sound.num_channels == 1 else "stereo"
        self._stream: Any = container.add_stream("aac", rate=sound.rate, layout=self._layout)
        self._stream.bit_rate = sound.num_channels * min(AAC_BITS_PER_SECOND, 3 * sound.rate)
        self._feed = SampleFeed(sound.blocks())

    def speak_until(self, end: int) -> None:
        """Encode up to sample `end`, if there is so much sound."""
        end = min(end, self._num_samples)
        while self._done < end:
            samples = self._feed.take(min(end - self._done, self.rate))
            if not len(samples):
                return
            frame = AudioFrame.from_ndarray(np.ascontiguousarray(samples.T), format="fltp", layout=self._layout)
            frame.sample_rate, frame.time_base, frame.pts = self.rate, Fraction(1, self.rate), self._done
            self._container.mux(self._stream.encode(frame))
            self._done += len(samples)

    def finish(self) -> None:
        """Encode the rest. The last packet is filled up with silence, which must not count."""
        self.speak_until(self._num_samples)
        for packet in self._stream.encode(None):
            if packet.duration and packet.pts is not None:
                packet.duration = max(1, min(packet.duration, self._done - packet.pts))
            self._container.mux(packet)
