"""The options of `talk generate` about source videos, sound and speech from text, and what they come to."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from infinitalk_cli.errors import InputError
from infinitalk_cli.job import Job
from infinitalk_cli.voices import DEFAULT_VOICES, VoiceFiles, locate_voices, refuse_without_synthesis
from infinitalk_cli.wishes import ChunkWishes, PictureWishes, SoundWishes, SourceWishes, VoiceWishes

voice_option = partial(typer.Option, rich_help_panel="Speech from text")
dubbing_option = partial(typer.Option, rich_help_panel="Dubbing a video")
sound_option = partial(typer.Option, rich_help_panel="Sound")
chunk_option = partial(typer.Option, rich_help_panel="Long videos")
picture_option = partial(typer.Option, rich_help_panel="Picture")


class ShortSource(str, Enum):
    """What is seen when the video is over before the speech."""

    hold = "hold"
    loop = "loop"
    ping_pong = "ping-pong"


class Scenes(str, Enum):
    """Whether scene cuts are looked for."""

    auto = "auto"
    on = "on"
    off = "off"


@dataclass(frozen=True)
class DubbingOptions:
    """Of a source video."""

    short_source: Annotated[
        ShortSource,
        dubbing_option(
            help="If the video is shorter than the speech: hold its last picture, loop it, or play it to and fro."
        ),
    ] = ShortSource.hold
    scenes: Annotated[
        Scenes,
        dubbing_option(help="Look for scene cuts; nothing is carried over one. auto: if PySceneDetect is installed."),
    ] = Scenes.auto

    @property
    def source_wishes(self) -> SourceWishes:
        """These options as the request has them."""
        return SourceWishes(self.short_source.value, self.scenes.value)


class Fit(str, Enum):
    """What happens to a picture of another shape than the video."""

    crop = "crop"
    pad = "pad"


@dataclass(frozen=True)
class PictureOptions:
    """Of the video's picture."""

    resolution: Annotated[
        str | None,
        picture_option(
            metavar="WxH",
            help="Exactly this size, in multiples of 16. The models know sizes near those of the sets best.",
            show_default="the nearest shape of the --size set",
        ),
    ] = None
    fit: Annotated[
        Fit,
        picture_option(
            help="A picture of another shape: crop cuts off what hangs over; pad keeps all of it and fills the rest "
            "with its border colours, blurred."
        ),
    ] = Fit.crop

    @property
    def picture_wishes(self) -> PictureWishes:
        """These options as the request has them. Raises: InputError: for a size that is none."""
        if self.resolution is None:
            return PictureWishes(self.fit.value)
        sides = re.fullmatch(r"(\d{1,5})[xX×](\d{1,5})", self.resolution.strip())
        if sides is None:
            raise InputError(f"--resolution {self.resolution!r} is not WIDTHxHEIGHT", hint="--resolution 448x896")
        return PictureWishes(self.fit.value, width=int(sides[1]), height=int(sides[2]))


@dataclass(frozen=True)
class ChunkOptions:
    """Of videos of many chunks."""

    cross_fade: Annotated[
        bool,
        chunk_option(
            "--cross-fade",
            help="Blend each chunk into the next over the --motion-frames that both show: hides seams, may blur fast "
            "movement there; costs no time.",
        ),
    ] = False
    reanchor: Annotated[
        int | None,
        chunk_option(
            metavar="N",
            help="Start every N-th chunk from the picture again, not from the frames before: ends drift, but the pose "
            "jumps there, less so with --cross-fade.",
            show_default="never",
        ),
    ] = None

    @property
    def chunk_wishes(self) -> ChunkWishes:
        """These options as the request has them."""
        return ChunkWishes(self.cross_fade, self.reanchor)


@dataclass(frozen=True)
class SoundOptions:
    """Of the recordings, for the network and for the mp4."""

    drive_audio: Annotated[
        list[Path] | None,
        sound_option(
            metavar="FILE",
            help="Move the lips by this file, such as the voice without the music, and play --audio. Once per --audio.",
            show_default="--audio does both",
        ),
    ] = None
    output_audio: Annotated[
        str | None,
        sound_option(
            metavar="FILE|source|none",
            help="What the mp4 plays instead of the speech: a file, the source video's own sound, or nothing.",
            show_default="the speech",
        ),
    ] = None
    drive_loudness: Annotated[
        str,
        sound_option(
            metavar="LUFS|off",
            help="Loudness at which the network hears the speech; auto: -23, and text as it is spoken.",
        ),
    ] = "auto"
    output_loudness: Annotated[
        str, sound_option(metavar="LUFS|off", help="Loudness of the mp4's sound, such as -16.")
    ] = "off"
    audio_start: Annotated[float, sound_option(metavar="S", help="Use the speech from this second on.")] = 0.0
    audio_end: Annotated[float | None, sound_option(metavar="S", help="Use it up to here.", show_default="its end")] = (
        None
    )
    trim_silence: Annotated[
        bool, sound_option("--trim-silence", help="Leave out silence before the first word and after the last.")
    ] = False
    close_mouth_in_pauses: Annotated[
        bool,
        sound_option(
            "--close-mouth-in-pauses",
            help="Drive pauses of more than 0.4 s by silence, so that breath and noise move no lips.",
        ),
    ] = False

    @property
    def sound_wishes(self) -> SoundWishes:
        """These options as the request has them."""
        output = self.output_audio
        is_file = output is not None and output not in ("source", "none")
        wishes = SoundWishes(
            output_sound="source" if output == "source" else "none" if output == "none" else "speech",
            output_audio=Path(output) if output is not None and is_file else None,
            drive_audio=tuple(self.drive_audio or ()),
            drive_loudness="auto" if self.drive_loudness == "auto" else _lufs(self.drive_loudness, "--drive-loudness"),
            output_loudness=_number_or_none(_lufs(self.output_loudness, "--output-loudness")),
            start_s=self.audio_start,
            end_s=self.audio_end,
            trim_silence=self.trim_silence,
            close_mouth=self.close_mouth_in_pauses,
        )
        if missing := [path for path in wishes.files if not path.is_file()]:
            option = "--output-audio" if missing[0] == wishes.output_audio else "--drive-audio"
            raise InputError(f"{option}: no such file: {missing[0]}", hint="check the spelling of the path")
        return wishes


def _lufs(text: str, option: str) -> float | Literal["off"]:
    """A loudness. Raises: InputError: if it is neither a number nor off."""
    if text == "off":
        return "off"
    try:
        return float(text)
    except ValueError as error:
        raise InputError(f"{option} must be a number of LUFS such as -23, or off, not {text!r}") from error


def _number_or_none(loudness: float | Literal["off"]) -> float | None:
    return None if loudness == "off" else loudness


@dataclass(frozen=True)
class VoiceOptions:
    """Of speech from text."""

    text: Annotated[
        str | None,
        voice_option(
            help="Speech to be made from text, in place of --audio. '(s1) Hello. (s2) Good morning.' for two speakers."
        ),
    ] = None
    voice: Annotated[
        list[str] | None,
        voice_option(
            metavar="NAME",
            help="Who speaks, such as af_heart, bm_george or ff_siwis: the first letter is the language. Or a voice "
            "file. Twice for two speakers.",
            show_default="af_heart, am_adam",
        ),
    ] = None
    speed: Annotated[float, voice_option(help="Of the speech; 1.2 is faster.")] = 1.0
    pause: Annotated[float, voice_option(help="Seconds of silence between two speakers' turns.")] = 0.0

    @property
    def voice_wishes(self) -> VoiceWishes:
        """These options as the request has them."""
        return VoiceWishes(tuple(self.voice or ()), self.speed, self.pause)


def voice_files(job: Job, wished: Sequence[str], weights_dir: Path) -> VoiceFiles | None:
    """What the texts of a job are spoken with; None if it has none.

    Raises: EnvironmentUnfitError, WeightsError: if something is missing. InputError: for an unknown voice.
    """
    if not job.read_aloud:
        if wished:
            raise InputError(
                "--voice is for speech from text, but the job has recorded speech",
                hint="give --text in place of --audio, or leave --voice out",
            )
        return None
    refuse_without_synthesis()
    said = [speaker.voice for speaker in job.speakers]
    named = {number: said[number] or dict(enumerate(wished)).get(number) for number in job.read_aloud}
    return locate_voices(weights_dir, {number: name or DEFAULT_VOICES[number] for number, name in named.items()})
