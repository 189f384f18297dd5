"""Small media files that the tests make for themselves."""

from __future__ import annotations

import wave
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.audio.resampler import AudioResampler
from scipy.signal import correlate

Samples = npt.NDArray[np.float32]


def noise(num_samples: int, num_channels: int = 1, *, seed: int = 0, level: float = 0.1) -> Samples:
    """Low-passed noise `(n, channels)`: unlike a tone it has one place where it lines up with itself."""
    white = np.random.default_rng(seed).standard_normal((num_samples + 7, num_channels))
    smooth = np.stack([np.convolve(white[:, c], np.ones(8) / 8**0.5, "valid") for c in range(num_channels)], axis=1)
    return (smooth * level).clip(-1, 1).astype(np.float32)


def write_wav(path: Path, samples: Samples, rate: int) -> Path:
    """16-bit PCM; `samples` is `(n, channels)`."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples * 32767).round().astype("<i2").tobytes())
    return path


def sound_frame(samples: Samples, rate: int, first: int) -> av.AudioFrame:
    layout = {1: "mono", 2: "stereo", 6: "5.1"}[samples.shape[1]]
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.T), format="fltp", layout=layout)
    frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), first
    return frame


def write_sound(path: Path, samples: Samples, rate: int, codec: str, *, start: int = 0, picture: bool = False) -> Path:
    """Encode `samples` `(n, channels)`, from sample `start` on; with `picture`, beside a video that starts at 0."""
    with av.open(str(path), "w") as file:
        video = None
        if picture:
            video = file.add_stream("libx264", rate=25)
            video.height = video.width = 32
            video.pix_fmt = "yuv420p"
        frame = sound_frame(samples, rate, start)
        audio = file.add_stream(codec, rate=rate, layout=frame.layout.name)
        if video is not None:
            for index in range(10):
                still = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
                still.pts, still.time_base = index, Fraction(1, 25)
                file.mux(video.encode(still))
            file.mux(video.encode(None))
        assert audio.format is not None
        convert = AudioResampler(format=audio.format.name, layout=frame.layout.name, rate=rate)
        for part in convert.resample(frame):
            file.mux(audio.encode(part))
        file.mux(audio.encode(None))
    return path


def read_sound(path: Path) -> Samples:
    """What a player hears: `(n, channels)`."""
    with av.open(str(path)) as file:
        blocks = [frame.to_ndarray() for frame in file.decode(audio=0)]
    return np.concatenate(blocks, axis=1).T


def lag(heard: npt.NDArray[Any], played: npt.NDArray[Any], *, at: int, length: int, reach: int = 4000) -> int:
    """Samples by which `heard` is late against `played`, both `(n,)`, found by correlating a stretch of `played`."""
    pattern = played[at : at + length].astype(np.float64)
    field = np.pad(heard.astype(np.float64), reach)[at : at + length + 2 * reach]
    return int(np.argmax(correlate(field, pattern, "valid", method="fft"))) - reach


def numbered_frame(index: int, height: int = 48, width: int = 64) -> npt.NDArray[np.uint8]:
    """A picture that tells its number (up to 255) by eight upright bars, the highest bit left; see `number_of`."""
    bits = [(index >> bit) & 1 for bit in range(7, -1, -1)]
    row = np.repeat(np.array(bits, np.uint8) * 215 + 20, width // 8)
    return np.repeat(np.tile(row, (height, 1))[..., None], 3, axis=2)


def number_of(picture: Any) -> int:
    """The number that a picture of `numbered_frame` shows, after lossy coding."""
    grey = np.asarray(picture).mean(axis=(0, 2))
    bars = grey.reshape(8, -1)[:, 2:-2].mean(axis=1)
    return int("".join("1" if bar > 128 else "0" for bar in bars), 2)


def write_video(
    path: Path,
    times_s: Iterable[Fraction | float],
    *,
    codec: str = "libx264",
    rate: Fraction | int = 30,
    time_base: Fraction = Fraction(1, 90_000),
    pixel_format: str = "yuv420p",
    pictures: Sequence[npt.NDArray[np.uint8]] | None = None,
    options: Mapping[str, str] | None = None,
) -> Path:
    """A video whose frame i, shown from `times_s[i]` on, is `pictures[i]` or `numbered_frame(i)`."""
    with av.open(str(path), "w") as file:
        video = file.add_stream(codec, rate=rate, options=dict(options or {}))
        for index, time_s in enumerate(times_s):
            picture = numbered_frame(index) if pictures is None else pictures[index]
            if index == 0:
                video.height, video.width = picture.shape[:2]
                video.pix_fmt = pixel_format
                video.codec_context.time_base = time_base
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = round(Fraction(time_s) / time_base), time_base
            file.mux(video.encode(frame))
        file.mux(video.encode(None))
    return path


def turn_by_metadata(path: Path, quarter_turns_clockwise: int) -> Path:
    """Set the display matrix of an mp4's first track, as phones do, leaving the pictures as they are."""
    cos, sin = [(1, 0), (0, 1), (-1, 0), (0, -1)][quarter_turns_clockwise]
    matrix = [cos << 16, sin << 16, 0, -sin << 16, cos << 16, 0, 0, 0, 1 << 30]
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # the matrix of a version 0 track header
    data[at : at + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in matrix)
    path.write_bytes(data)
    return path
