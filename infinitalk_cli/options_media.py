"""The options of `talk generate` about source videos, sound and speech from text, and what they come to."""

from dataclasses import dataclass
from enum import Enum
from typing import Annotated

import typer

from infinitalk_cli.wishes import SourceWishes

DUBBING = "Dubbing a video"


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
