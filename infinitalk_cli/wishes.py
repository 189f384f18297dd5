"""What the user may wish about the source video, the sound and speech from text, as frozen data with its checks.

The defaults give what the reference programs give, but for two things that they do by mistake: a source video is read
by time and its scenes are kept apart, and the mp4 gets the original sound instead of the levelled 16 kHz copy.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ShortSource = Literal["hold", "loop", "ping-pong"]
Scenes = Literal["auto", "on", "off"]
OutputSound = Literal["speech", "source", "none"]
Loudness = float | Literal["auto", "off"]

SPEECH_LUFS = -23.0
"""Loudness at which the audio encoder hears speech, in the reference programs and here."""

SIDE_STEP = 16
"""A token of the transformer stands for so many pixels each way."""

SIDES = (64, 2048)
"""The shortest and the longest side of a video."""

QUIETEST_LUFS, LOUDEST_LUFS = -60.0, -5.0


@dataclass(frozen=True)
class SourceWishes:
    """`short_source`: what a source video shows once it is over. `scenes`: whether its cuts are looked for; with
    "auto" they are if the optional packages are there."""

    short_source: ShortSource = "hold"
    scenes: Scenes = "auto"

    def problems(self, *, by_index: bool) -> Iterator[str]:
        """What can't work, each with its option. `by_index`: frames are taken by number, not by time."""
        if by_index and self.short_source != "hold":
            yield f"--reference-by-index goes by frame numbers: it can't go with --short-source {self.short_source}"
        if by_index and self.scenes == "on":
            yield "--reference-by-index goes by frame numbers: it can't go with --scenes on"


@dataclass(frozen=True)
class PictureWishes:
    """How the source becomes the video's picture. `fit`: "crop" covers it and cuts the overhang off, "pad" keeps all
    of the source. `width`, `height`: of the video in pixels; None for the nearest size of the profile's set."""

    fit: Literal["crop", "pad"] = "crop"
    width: int | None = None
    height: int | None = None

    def problems(self) -> Iterator[str]:
        """What can't work, each with its option."""
        if self.width is None or self.height is None:
            return
        least, most = SIDES
        if not all(least <= side <= most and side % SIDE_STEP == 0 for side in (self.width, self.height)):
            near = "x".join(
                str(min(max(round(side / SIDE_STEP) * SIDE_STEP, least), most)) for side in (self.width, self.height)
            )
            yield (
                f"--resolution takes sides from {least} to {most} that are multiples of {SIDE_STEP}, such as {near}, "
                f"not {self.width}x{self.height}"
            )


@dataclass(frozen=True)
class ChunkWishes:
    """How chunks meet. `cross_fade`: the frames that two of them have in common are blended. `reanchor_every`: every so
    many chunks, start from the reference picture instead of the frames before; None for never."""

    cross_fade: bool = False
    reanchor_every: int | None = None

    def problems(self) -> Iterator[str]:
        """What can't work, each with its option."""
        if self.reanchor_every is not None and self.reanchor_every < 1:
            yield f"--reanchor must be at least 1 chunk, not {self.reanchor_every}"


@dataclass(frozen=True)
class SoundWishes:
    """How the recordings become what the network hears and what the mp4 plays.

    `output_sound`: the recordings themselves, the source video's own sound, or none; `output_audio` is a file that
    plays instead; with `drive_audio`, a file for each recording, the network hears these and the mp4 plays the
    recordings. `drive_loudness`: in LUFS, at which the network hears them; "auto" is -23, and as it is for speech made
    from text. `output_loudness`: the same for the mp4. `start_s`, `end_s`: the stretch of the timeline that is used.
    `trim_silence`: leave out silence before the first word and after the last. `close_mouth`: drive pauses by the
    features of silence.
    """

    output_sound: OutputSound = "speech"
    output_audio: Path | None = None
    drive_audio: tuple[Path, ...] = ()
    drive_loudness: Loudness = "auto"
    output_loudness: float | None = None
    start_s: float = 0.0
    end_s: float | None = None
    trim_silence: bool = False
    close_mouth: bool = False

    def drive_lufs(self, *, is_made_of_text: bool) -> float | None:
        """Loudness at which the network hears the speech; None for as it is."""
        if self.drive_loudness == "auto":
            return None if is_made_of_text else SPEECH_LUFS
        return None if self.drive_loudness == "off" else self.drive_loudness

    @property
    def files(self) -> tuple[Path, ...]:
        """Those that the job does not name."""
        return (*self.drive_audio, *(() if self.output_audio is None else (self.output_audio,)))

    def problems(self, *, num_recordings: int, is_video: bool) -> Iterator[str]:
        """What can't work, each with its option. `is_video`: the source is one."""
        if self.output_sound == "source" and not is_video:
            yield "--output-audio source needs a video as the source, but that is a picture"
        if self.drive_audio and len(self.drive_audio) != num_recordings:
            yield f"--drive-audio is given {len(self.drive_audio)} times, but the job has {num_recordings} recordings"
        for option, lufs in (("--drive-loudness", self.drive_loudness), ("--output-loudness", self.output_loudness)):
            if isinstance(lufs, float) and not QUIETEST_LUFS <= lufs <= LOUDEST_LUFS:
                yield f"{option} must be from {QUIETEST_LUFS:g} to {LOUDEST_LUFS:g} LUFS, or off, not {lufs:g}"
        if not 0 <= self.start_s < math.inf:
            yield f"--audio-start must be from 0 s up, not {self.start_s:g}"
        if self.end_s is not None and not self.start_s < self.end_s < math.inf:
            yield f"--audio-end must lie behind --audio-start ({self.start_s:g} s), not at {self.end_s:g} s"


@dataclass(frozen=True)
class VoiceWishes:
    """Speech from text. `voices`: per speaker, names or files; those of the job come first. `speed`: 1 is as trained.
    `pause_s`: silence between two turns of a dialogue."""

    voices: tuple[str, ...] = ()
    speed: float = 1.0
    pause_s: float = 0.0

    def problems(self) -> Iterator[str]:
        """What can't work, each with its option."""
        if not 0.5 <= self.speed <= 2:
            yield f"--speed must be from 0.5 to 2, not {self.speed:g}"
        if not 0 <= self.pause_s <= 60:
            yield f"--pause must be from 0 to 60 s, not {self.pause_s:g}"
        if len(self.voices) > 2:
            yield f"--voice is given {len(self.voices)} times, but there are two speakers at most"
