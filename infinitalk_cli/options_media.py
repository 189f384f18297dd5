"""The options of `talk generate` about source videos, sound and speech from text, and what they come to."""

from dataclasses import dataclass
from enum import Enum
from typing import Annotated

import typer

from infinitalk_cli.wishes import SoundWishes, SourceWishes

DUBBING, SOUND = "Dubbing a video", "Sound"


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
