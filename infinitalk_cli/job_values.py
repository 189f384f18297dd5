"""The kinds of values that a job file holds, for pydantic, each with its mistakes in words of ours.

Paths are looked up while they are read, so that one pass finds every mistake of a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, TypedDict, cast

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, WithJsonSchema
from pydantic_core import PydanticCustomError

from infinitalk_cli.dialogue import MAX_SPEAKERS, BadDialogue, parse_dialogue
from infinitalk_cli.wishes import LOUDEST_LUFS, QUIETEST_LUFS

SILENT = "None"
"""What the reference programs write in place of a path for a speaker who keeps silent."""

LONGEST_START_S = 24 * 3600

LONGEST_SHOWN = 120
"""Characters of a user's text that a message repeats."""

PATH = {"type": "string", "format": "path"}
LUFS = {"type": "number", "minimum": QUIETEST_LUFS, "maximum": LOUDEST_LUFS}
"""In the published schema."""


class Lookup(TypedDict):
    """Context of a validation: the folders in which relative paths are looked up, first one first."""

    folders: tuple[Path, ...]


def mistake(message: str) -> PydanticCustomError:
    """An error for pydantic to collect, in our own words."""
    return PydanticCustomError("talk", "{message}", {"message": message})


def _existing_file(value: object, info: ValidationInfo) -> Path:
    if not isinstance(value, str):
        raise mistake(f"must be a path, not {kind_of(value)}")
    if not value.strip():
        raise mistake("must be a path, not empty text")
    lookup = cast(Lookup, info.context)
    path = _first_existing(value, lookup["folders"])
    if not path.is_file():  # a pipe would block, a folder can't be opened
        raise mistake(f"{shown(value)} is not a file")
    try:
        with path.open("rb") as stream:
            empty = not stream.read(1)
    except OSError as error:
        raise mistake(f"can't read {shown(value)}: {error.strerror}") from error
    if empty:
        raise mistake(f"{shown(value)} is an empty file")
    return path


def _first_existing(value: str, folders: tuple[Path, ...]) -> Path:
    candidates = list(dict.fromkeys(folder / value for folder in folders))
    try:
        found = next((path for path in candidates if path.exists()), None)
    except (OSError, ValueError) as error:  # too long, or with characters that no path has
        why = error.strerror if isinstance(error, OSError) else error
        raise mistake(f"{shown(value)} is not a usable path: {why}") from error
    if found is not None:
        return found
    tried = " and ".join(shown(str(path)) for path in candidates)
    raise mistake(f"no such file: tried {tried}" if len(candidates) > 1 else f"no such file: {tried}")


def _encodable(text: str) -> str:
    """Half a surrogate pair can be written in JSON but is no text."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise mistake(f"holds a broken character at position {error.start}") from error
    return text


def _dialogue(text: str) -> str:
    try:
        parse_dialogue(text)
    except BadDialogue as error:
        raise mistake(str(error)) from error
    return text


def _without_tags(text: str) -> str:
    if parse_dialogue(text):
        raise mistake("is one speaker's own; a dialogue of (s1) and (s2) is the text of the whole job")
    return text


def _found_voice(value: str, info: ValidationInfo) -> str:
    """A voice may be a file; one that is not there is looked for by its name later."""
    folders = cast(Lookup, info.context)["folders"]
    with suppress(OSError, ValueError):
        return next((str(folder / value) for folder in folders if (folder / value).is_file()), value)
    return value


def _files(value: object, info: ValidationInfo) -> tuple[Path, ...]:
    """One path, or a list of them."""
    listed: Sequence[object] = value if isinstance(value, list) else [value]
    if not 1 <= len(listed) <= MAX_SPEAKERS:
        raise mistake(f"must be a path, or a list of up to {MAX_SPEAKERS}")
    return tuple(_existing_file(each, info) for each in listed)


def _output_sound(value: object, info: ValidationInfo) -> str:
    return value if value in ("source", "none") else str(_existing_file(value, info))  # pyright: ignore[reportReturnType]


def _loudness(value: object, info: ValidationInfo) -> str:
    """A loudness in the words of the command."""
    words = ("off", "auto") if info.field_name == "drive_loudness" else ("off",)
    if value in words:
        return str(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise mistake(f"must be a number of LUFS such as -23, {' or '.join(words)}, not {kind_of(value)}")
    if not QUIETEST_LUFS <= value <= LOUDEST_LUFS:
        raise mistake(f"must be from {QUIETEST_LUFS:g} to {LOUDEST_LUFS:g} LUFS, not {value:g}")
    return str(value)


def _silence_as_none(value: object) -> object:
    return None if value == SILENT else value


ExistingFile = Annotated[Path, BeforeValidator(_existing_file)]
Sound = Annotated[ExistingFile | None, BeforeValidator(_silence_as_none)]
Text = Annotated[str, AfterValidator(_encodable)]
Spoken = Annotated[Text, AfterValidator(_dialogue)]
OneVoice = Annotated[Spoken, AfterValidator(_without_tags)]
Voice = Annotated[Text, AfterValidator(_found_voice)]
Files = Annotated[
    tuple[Path, ...],
    BeforeValidator(_files),
    WithJsonSchema({"anyOf": [PATH, {"type": "array", "items": PATH, "minItems": 1, "maxItems": MAX_SPEAKERS}]}),
]
OutputSound = Annotated[
    str, BeforeValidator(_output_sound), WithJsonSchema({"anyOf": [{"enum": ["source", "none"]}, PATH]})
]
Loudness = Annotated[str, BeforeValidator(_loudness), WithJsonSchema({"anyOf": [LUFS, {"enum": ["off"]}]})]
DriveLoudness = Annotated[str, BeforeValidator(_loudness), WithJsonSchema({"anyOf": [LUFS, {"enum": ["off", "auto"]}]})]
Side = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=0)]
Seconds = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=0, le=LONGEST_START_S)]


def kind_of(value: object) -> str:
    """What a JSON value is, in the words of a sentence."""
    kinds: dict[type, str] = {type(None): "null", bool: "true or false", str: "text", list: "a list", dict: "an object"}
    return kinds.get(type(value), "a number")


def shown(text: str) -> str:
    """A user's text in quotes, on one line and not longer than that."""
    return repr(text if len(text) <= LONGEST_SHOWN else text[:LONGEST_SHOWN] + "...")
