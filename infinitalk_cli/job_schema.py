"""The form of a job file, for pydantic: which fields there are and what may stand in them.

This is the JSON of the reference programs, field for field, plus `negative_prompt` and boxes with named sides. Paths
are looked up while the fields are read, so that one pass finds every mistake of a file. Importing pydantic costs a
tenth of a second, so only `job.py` imports this module, and only when it reads a job.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict, cast

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

SILENT = "None"
"""What the reference programs write in place of a path for a speaker who keeps silent."""

BOX_SIDES = ("top", "left", "bottom", "right")
"""The order of a box of four numbers. The reference programs call them x and y, but use them as rows and columns."""

LONGEST_SHOWN = 120
"""Characters of a user's text that a message repeats."""


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


def _silence_as_none(value: object) -> object:
    return None if value == SILENT else value


ExistingFile = Annotated[Path, BeforeValidator(_existing_file)]
Sound = Annotated[ExistingFile | None, BeforeValidator(_silence_as_none)]
Text = Annotated[str, AfterValidator(_encodable)]
Side = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=0)]


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BoxForm(_Form):
    """Four numbers in the order of `BOX_SIDES`, or an object with the sides by name; pixels of the source picture."""

    left: Side
    top: Side
    right: Side
    bottom: Side

    @model_validator(mode="before")
    @classmethod
    def _name_the_sides(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            return value
        if isinstance(value, list) and len(value) == len(BOX_SIDES):
            return dict(zip(BOX_SIDES, value, strict=True))
        raise mistake(f"must be four numbers, [{', '.join(BOX_SIDES)}], or an object with these names")

    @model_validator(mode="after")
    def _holds_pixels(self) -> BoxForm:
        if round(self.left) >= round(self.right) or round(self.top) >= round(self.bottom):
            raise mistake("holds no pixel: " + ", ".join(f"{side} {getattr(self, side):g}" for side in BOX_SIDES))
        return self


class PerPersonSound(_Form):
    """`cond_audio`: a file of speech, or of a video with speech, for each; "None" for one who keeps silent."""

    person1: Sound
    person2: Sound = None


class PerPersonBox(_Form):
    """`bbox`: where each speaker is."""

    person1: BoxForm | None = None
    person2: BoxForm | None = None


class JobForm(_Form):
    """The whole file. `cond_image` and `cond_video` mean the same: a picture or a video, told apart by content."""

    prompt: Text
    negative_prompt: Text | None = None
    cond_image: ExistingFile | None = None
    cond_video: ExistingFile | None = None
    cond_audio: PerPersonSound | None = None
    audio_type: Literal["para", "add"] = "para"
    bbox: PerPersonBox | None = None
    tts_audio: Any = None
    video_audio: Any = None  # written back by the reference programs, never read


FORM_OF: Mapping[str, type[_Form]] = {
    "cond_audio": PerPersonSound,
    "bbox": PerPersonBox,
    "bbox.person1": BoxForm,
    "bbox.person2": BoxForm,
}
"""The form of each field that holds an object."""


def known_fields(parent: str) -> tuple[str, ...]:
    """The fields of the object at the dotted path `parent`, "" for the whole file."""
    return tuple(FORM_OF.get(parent, JobForm).model_fields)


def relation_problems(raw: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What is wrong between fields, as (dotted path, message): each field may be good by itself."""
    if raw.get("tts_audio") is not None:
        yield "tts_audio", "speech from text is not possible yet: give recorded speech"
    elif raw.get("cond_audio") is None:
        yield "cond_audio", "is missing: the recorded speech"
    if raw.get("cond_image") is None and raw.get("cond_video") is None:
        yield "cond_image", "is missing: the picture (or a video) of the speaker"
    elif raw.get("cond_image") is not None and raw.get("cond_video") is not None:
        yield "cond_video", "give a picture or a video, not both"
    yield from _speaker_problems(raw.get("cond_audio"), raw.get("bbox"))


def _speaker_problems(sounds: object, boxes: object) -> Iterator[tuple[str, str]]:
    if not isinstance(sounds, Mapping):
        return
    given = [name for name in ("person1", "person2") if name in sounds]
    if given and all(sounds[name] in (SILENT, None) for name in given):
        yield "cond_audio", "nobody speaks: every speaker is silent"
    if not isinstance(boxes, Mapping):
        return
    if len(given) == 2 and len(boxes) == 1:
        yield "bbox", "give a box for both speakers, or for none"
    if given == ["person1"] and "person2" in boxes:
        yield "bbox.person2", "there is no second speaker"


def kind_of(value: object) -> str:
    """What a JSON value is, in the words of a sentence."""
    kinds: dict[type, str] = {type(None): "null", bool: "true or false", str: "text", list: "a list", dict: "an object"}
    return kinds.get(type(value), "a number")


def shown(text: str) -> str:
    """A user's text in quotes, on one line and not longer than that."""
    return repr(text if len(text) <= LONGEST_SHOWN else text[:LONGEST_SHOWN] + "...")
