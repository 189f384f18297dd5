"""What the tests of the video writer write with, and look at."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

from infinitalk_cli.media.part_folder import PartFolder
from infinitalk_cli.media.segments import Picture
from infinitalk_cli.media.sound_track import SoundPiece, SoundTrack
from infinitalk_cli.media.writer import VideoWriter
from tests.media.made import noise, number_of, numbered_frame, write_wav

HEIGHT, WIDTH = 48, 64


def frames(num_frames: int, first: int = 0) -> npt.NDArray[np.uint8]:
    return np.stack([numbered_frame(i % 256, HEIGHT, WIDTH) for i in range(first, first + num_frames)])


def static(num_frames: int) -> npt.NDArray[np.uint8]:
    """Noise, which hardly compresses."""
    return np.random.default_rng(0).integers(0, 256, (num_frames, HEIGHT, WIDTH, 3), dtype=np.uint8)


def sound_track(folder: Path, seconds: float, *, rate: int = 44_100, channels: int = 1) -> SoundTrack:
    samples = noise(round(seconds * rate), channels)
    path = write_wav(folder / "sound.wav", samples, rate)
    return SoundTrack((SoundPiece(path),), rate, channels, Fraction(len(samples), rate))


def numbers_in(path: Path) -> list[int]:
    with av.open(str(path)) as file:
        return [number_of(frame.to_ndarray(format="rgb24")) for frame in file.decode(video=0)]


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@contextmanager
def writing(
    target: Path,
    *,
    height: int = HEIGHT,
    width: int = WIDTH,
    crf: int = 17,
    sound: SoundTrack | None = None,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = True,
) -> Generator[VideoWriter]:
    """A writer in a folder of its own, begun anew."""
    with PartFolder(target) as folder:
        folder.begin({})
        picture = Picture(height, width, crf=crf)
        with VideoWriter(folder, picture, sound=sound, metadata=metadata, overwrite=overwrite) as writer:
            yield writer


def left_without_finishing(target: Path, num_frames: int) -> VideoWriter:
    with writing(target) as writer:
        if num_frames:
            writer.write(frames(num_frames))
    return writer
