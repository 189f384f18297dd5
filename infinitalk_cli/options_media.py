"""The options of `talk generate` about source videos, sound and speech from text, and what they come to."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from infinitalk_cli.errors import InputError
from infinitalk_cli.job import Job
from infinitalk_cli.voices import DEFAULT_VOICES, VoiceFiles, locate_voices, refuse_without_synthesis
from infinitalk_cli.wishes import SoundWishes, SourceWishes, VoiceWishes

VOICE, DUBBING, SOUND = "Speech from text", "Dubbing a video", "Sound"


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
        typer.Option(
            help="If the video is shorter than the speech: hold its last picture, loop it, or play it to and fro.",
            rich_help_panel=DUBBING,
        ),
    ] = ShortSource.hold
    scenes: Annotated[
        Scenes,
        typer.Option(
            help="Look for scene cuts; nothing is carried over one. auto: if PySceneDetect is installed.",
            rich_help_panel=DUBBING,
        ),
    ] = Scenes.auto

    @property
    def source_wishes(self) -> SourceWishes:
        """These options as the request has them."""
        return SourceWishes(self.short_source.value, self.scenes.value)


@dataclass(frozen=True)
class SoundOptions:
    """Of the recordings, for the network and for the mp4."""

    close_mouth_in_pauses: Annotated[
        bool,
        typer.Option(
            "--close-mouth-in-pauses",
            help="Drive pauses of more than 0.4 s by silence, so that breath and noise move no lips.",
            rich_help_panel=SOUND,
        ),
    ] = False

    @property
    def sound_wishes(self) -> SoundWishes:
        """These options as the request has them."""
        return SoundWishes(close_mouth=self.close_mouth_in_pauses)


@dataclass(frozen=True)
class VoiceOptions:
    """Of speech from text."""

    text: Annotated[
        str | None,
        typer.Option(
            help="Speech to be made from text, in place of --audio. '(s1) Hello. (s2) Good morning.' for two speakers.",
            rich_help_panel=VOICE,
        ),
    ] = None
    voice: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Who speaks, such as af_heart, bm_george or ff_siwis: the first letter is the language. Or a voice "
            "file. Twice for two speakers.",
            show_default="af_heart, am_adam",
            rich_help_panel=VOICE,
        ),
    ] = None
    speed: Annotated[float, typer.Option(help="Of the speech; 1.2 is faster.", rich_help_panel=VOICE)] = 1.0
    pause: Annotated[
        float, typer.Option(help="Seconds of silence between two speakers' turns.", rich_help_panel=VOICE)
    ] = 0.0

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
            raise InputError("--voice is for speech from text, but the job has recorded speech", hint="add --text")
        return None
    refuse_without_synthesis()
    said = [speaker.voice for speaker in job.speakers]
    named = {number: said[number] or dict(enumerate(wished)).get(number) for number in job.read_aloud}
    return locate_voices(weights_dir, {number: name or DEFAULT_VOICES[number] for number, name in named.items()})
