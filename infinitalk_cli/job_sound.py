"""What a job file says of its sound: the options of that panel, under their own names, for jobs that need them always.

An option that is given beside the file goes first. What neither says is the option's default.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class SoundSaid:
    """The options that a job says, as the command would have them; None for what it leaves to them."""

    drive_audio: tuple[Path, ...] | None = None
    output_audio: str | None = None
    drive_loudness: str | None = None
    output_loudness: str | None = None
    audio_start: float | None = None
    audio_end: float | None = None
    trim_silence: bool | None = None
    close_mouth_in_pauses: bool | None = None

    def options(self) -> dict[str, Any]:
        """Those that are said, by the names of the command's fields."""
        said = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in said.items() if value is not None}
