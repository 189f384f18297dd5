"""From recordings to what the audio encoder hears: one 16 kHz mono track per speaker, all equally long.

Each recording goes through in one stream: mono (the mean of its channels), 16 kHz, measured loudness. A second pass
brings it to -23 LUFS and puts it in its place: from the start or a time that is said (`para`), or after the speaker
before (`add`), with zeros before and behind. Of a conversation in one recording each speaker hears only the stretches
of their own turns. The tracks are files in a work folder, read back as memory maps (`ReadOnce`), so an hour of speech
costs disk (230 MB a speaker) but no memory. The levelled track is for the network only; the video gets the original
sound.

Source: the audio preparation of InfiniteTalk and MultiTalk, save that unequal lengths are padded instead of refused.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from infinitalk_cli.errors import InputError, MediaError
from infinitalk_cli.media.audio import Resampler, SoundReader
from infinitalk_cli.media.loudness import LoudnessMeter
from infinitalk_cli.media.sound_track import SoundPiece, SoundTrack, exact_s, kept_rate, without_clipping

SPEECH_RATE = 16_000
"""Samples a second that the audio encoder takes."""

TARGET_LUFS = -23.0

MAX_METERED_LU = 100.0
"""Beyond this the meter's reading is none (silence reads -inf), and the sound is left as it is."""

RAMP_S = 0.01
"""A turn fades in and out that fast, within its times: a hard cut would be a click."""

COPY_SAMPLES = 1 << 18
"""Samples held at a time while a track is levelled."""

AudioType = Literal["para", "add"]
"""How two recordings lie in time: together, or one after the other."""


@dataclass(frozen=True)
class SpeechTracks:
    """What the speakers say, prepared.

    Attributes:
        waveforms: per speaker `(n,)` float32 at 16 kHz, mapped from files of the work folder (copy on write).
        num_samples: their lengths, all the same.
        duration_s: exact length of the original sound in seconds; the video has `round(duration_s * 25)` frames.
        silent_speakers: whose track holds nothing louder than -70 LUFS, be it a silent file or no file.
        sound_track: the original sound for the video.
    """

    waveforms: tuple[npt.NDArray[np.float32], ...]
    num_samples: tuple[int, ...]
    duration_s: Fraction
    silent_speakers: tuple[bool, ...]
    sound_track: SoundTrack

    @property
    def silent(self) -> bool:
        """Whether nobody is heard at all."""
        return all(self.silent_speakers)


@dataclass(frozen=True)
class Recording:
    """A sound file after the first pass.

    Attributes: raw_path: its 16 kHz mono samples, not yet levelled. num_samples: how many. rate, num_channels: of the
        original. lufs: integrated loudness at 16 kHz.
    """

    path: Path
    raw_path: Path
    num_samples: int
    duration_s: Fraction
    rate: int
    num_channels: int
    lufs: float

    def gain(self, lufs: float | None) -> np.float32:
        """Factor that brings the recording to this loudness; 1 for None."""
        if lufs is None or abs(self.lufs) > MAX_METERED_LU:
            return np.float32(1.0)
        return np.float32(10.0 ** ((lufs - self.lufs) / 20.0))


Stretch = tuple[float, float]
"""Start and end in seconds."""


def prepare_speech(
    paths: Sequence[Path | None],
    work_dir: Path,
    audio_type: AudioType = "para",
    *,
    starts_s: Sequence[float] = (),
    turns: Sequence[Sequence[Stretch]] = (),
    lufs: float | None = TARGET_LUFS,
) -> SpeechTracks:
    """Prepare the sound of one or two speakers; None stands for one who says nothing.

    A silent speaker's track has the other one's length, and with `add` takes that time too, as in the original.

    Args: work_dir: an existing folder for the tracks; they must stay there as long as the result is in use. starts_s:
        when each one's recording begins, with `para`. turns: what each hears of their recording, nothing for all of it.
        lufs: loudness of each track, None for that of the recording.
    Raises: InputError: if a file is unusable, or no speaker has one. MediaError: if the work folder takes no more.
    """
    if not 1 <= len(paths) <= 2:
        raise InputError(f"{len(paths)} speakers are named", hint="name the sound of one or two speakers")
    turns = turns or [()] * len(paths)
    try:
        found = [path and _record(path, work_dir / f"recording{i}.f32") for i, path in enumerate(paths, start=1)]
        places = _places(found, audio_type, [exact_s(start_s) for start_s in starts_s])
        num_samples = max(place.end for place in places)
        waveforms = [
            _write_track(recording, place.start, num_samples, work_dir / f"speaker{i}.f32", own, lufs)
            for i, (recording, place, own) in enumerate(zip(found, places, turns, strict=True), start=1)
        ]
    except OSError as error:
        raise MediaError(
            f"the prepared sound cannot be written to {work_dir}: {error.strerror}",
            hint="free some disk space there: an hour of speech takes about 500 MB a speaker",
        ) from error
    duration_s = max(place.end_s for place in places)
    return SpeechTracks(
        waveforms=tuple(waveforms),
        num_samples=(num_samples,) * len(paths),
        duration_s=duration_s,
        silent_speakers=tuple(recording is None or recording.lufs == -np.inf for recording in found),
        sound_track=_original_sound(found, [place.start_s for place in places], duration_s),
    )


class ReadOnce:
    """A mapped waveform of which nothing stays in memory: what is asked for is copied and its pages are given back.

    Otherwise all that was ever read of the file counts as the process's: 230 MB for an hour. Windows can't give back.
    """

    def __init__(self, samples: npt.NDArray[np.float32]) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, piece: slice, /) -> npt.NDArray[np.float32]:
        found = np.array(self._samples[piece])
        mapped = getattr(self._samples, "_mmap", None)  # views have that of the whole
        if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
            mapped.madvise(mmap.MADV_DONTNEED)
        return found


@dataclass(frozen=True)
class _Place:
    """Where a recording lies in time: in samples at 16 kHz, and exactly."""

    start: int
    end: int
    start_s: Fraction
    end_s: Fraction


def _places(
    found: Sequence[Recording | None], audio_type: AudioType, starts_s: Sequence[Fraction]
) -> tuple[_Place, ...]:
    """Everyone's place in time; who has no file takes the other one's length."""
    known = next((recording for recording in found if recording), None)
    if known is None:
        raise InputError("no speaker has a sound file", hint="name a sound file for at least one speaker")
    places = list[_Place]()
    for number, recording in enumerate(found):
        start_s = starts_s[number] if starts_s else Fraction(0)
        start = round(start_s * SPEECH_RATE)
        if audio_type == "add" and places:
            start, start_s = places[-1].end, places[-1].end_s
        length, length_s = (recording or known).num_samples, (recording or known).duration_s
        places.append(_Place(start, start + length, start_s, start_s + length_s))
    return tuple(places)


def _record(path: Path, raw_path: Path) -> Recording:
    """First pass over a file: decode, mix to mono, resample, measure, store."""
    meter = LoudnessMeter(SPEECH_RATE)
    num_samples = 0
    with SoundReader(path) as reader, raw_path.open("wb") as raw:
        mono = (block.mean(axis=1, keepdims=True, dtype=np.float32) for block in reader.blocks())
        for block in Resampler(reader.rate, SPEECH_RATE, 1).resample(mono):
            meter.add(block[:, 0])
            raw.write(block.tobytes())
            num_samples += len(block)
    if num_samples == 0:
        raise InputError(f"{path} holds no sound samples", hint="record or export it again; it may be cut short")
    duration_s = Fraction(reader.num_read, reader.rate)
    return Recording(path, raw_path, num_samples, duration_s, reader.rate, reader.num_channels, lufs=meter.integrated())


def _write_track(
    recording: Recording | None,
    start: int,
    num_samples: int,
    track_path: Path,
    turns: Sequence[Stretch],
    lufs: float | None,
) -> npt.NDArray[np.float32]:
    """Second pass: the levelled recording from sample `start` on, zeros elsewhere, mapped. `turns`: kept of it."""
    itemsize = np.dtype(np.float32).itemsize
    with track_path.open("wb") as track:
        if recording is not None:
            gain = recording.gain(lufs)
            track.seek(start * itemsize)
            done = 0
            with recording.raw_path.open("rb") as raw:
                while data := raw.read(COPY_SAMPLES * itemsize):
                    samples = np.frombuffer(data, np.float32) * gain
                    track.write((samples * gate(turns, done, len(samples)) if turns else samples).tobytes())
                    done += len(samples)
            recording.raw_path.unlink()
        track.truncate(num_samples * itemsize)
    return np.memmap(track_path, np.float32, mode="c", shape=(num_samples,))


def gate(turns: Sequence[Stretch], first: int, num_samples: int) -> npt.NDArray[np.float32]:
    """1 within the turns, 0 outside, for samples at 16 kHz from `first` on; turns that touch are one."""
    merged = list[Stretch]()
    for start_s, end_s in sorted(turns):
        if merged and start_s <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end_s, merged[-1][1]))
        else:
            merged.append((start_s, end_s))
    corners = [
        (at, height)
        for start_s, end_s in merged
        for ramp in [min(RAMP_S, (end_s - start_s) / 2)]
        for at, height in ((start_s, 0.0), (start_s + ramp, 1.0), (end_s - ramp, 1.0), (end_s, 0.0))
    ]
    times = (first + np.arange(num_samples)) / SPEECH_RATE
    return np.interp(times, *zip(*corners, strict=True), left=0.0, right=0.0).astype(np.float32)


def _original_sound(
    recordings: Sequence[Recording | None], starts_s: Sequence[Fraction], duration_s: Fraction
) -> SoundTrack:
    """The recordings at full quality, each from its start on."""
    placed = [(recording, start) for recording, start in zip(recordings, starts_s, strict=True) if recording]
    pieces = dict.fromkeys(SoundPiece(recording.path, start) for recording, start in placed)  # one sound of two: once
    track = SoundTrack(
        pieces=tuple(pieces),
        rate=max(kept_rate(recording.rate) for recording, _ in placed),
        num_channels=max(min(2, recording.num_channels) for recording, _ in placed),
        duration_s=duration_s,
    )
    adds_up = len(pieces) > 1 or any(recording.num_channels > 2 for recording, _ in placed)
    return without_clipping(track) if adds_up else track
