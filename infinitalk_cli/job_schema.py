"""The form of a job file, for pydantic: which fields there are and what may stand in them.

There are two ways to say who speaks. `speakers` is ours: a list with a sound, a place and more for each. `cond_audio`,
`bbox` and `audio_type` are the reference programs', field for field. docs/job.schema.json is made from these classes.
Importing pydantic costs a tenth of a second, so this module is imported only when a job is read. What goes together is
in `job_relations.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, GetJsonSchemaHandler, StrictBool, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from infinitalk_cli.dialogue import MAX_SPEAKERS, parse_dialogue
from infinitalk_cli.job import DEFAULT_PROMPT
from infinitalk_cli.job_sound import SoundSaid
from infinitalk_cli.job_values import (
    DriveLoudness,
    ExistingFile,
    Files,
    Loudness,
    OneVoice,
    OutputSound,
    Seconds,
    Side,
    Sound,
    Spoken,
    Text,
    Voice,
    kind_of,
    mistake,
)

BOX_SIDES = ("top", "left", "bottom", "right")
"""The order of a box of four numbers in `bbox`. The reference programs call them x and y, but use rows and columns."""

SIDES_AS_SEEN = ("left", "top", "right", "bottom")
"""The order of a box of four numbers in `speakers`, and of --box."""


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BoxForm(_Form):
    """Four numbers in the order of `sides`, or an object with the sides by name; pixels of the source picture."""

    sides: ClassVar[tuple[str, ...]] = BOX_SIDES

    left: Side
    top: Side
    right: Side
    bottom: Side

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Both notations."""
        four = {"type": "array", "items": {"type": "number", "minimum": 0}, "minItems": 4, "maxItems": 4}
        four["description"] = f"[{', '.join(cls.sides)}] in pixels of the picture"
        return {"anyOf": [handler(core_schema), four]}

    @model_validator(mode="before")
    @classmethod
    def _name_the_sides(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            return value
        if isinstance(value, list) and len(value) == len(cls.sides):
            return dict(zip(cls.sides, value, strict=True))
        raise mistake(f"must be four numbers, [{', '.join(cls.sides)}], or an object with these names")

    @model_validator(mode="after")
    def _holds_pixels(self) -> BoxForm:
        if round(self.left) >= round(self.right) or round(self.top) >= round(self.bottom):
            raise mistake("holds no pixel: " + ", ".join(f"{side} {getattr(self, side):g}" for side in self.sides))
        return self


class SpeakerBox(BoxForm):
    """The same for `speakers`, where four numbers come in the order of `SIDES_AS_SEEN`."""

    sides: ClassVar[tuple[str, ...]] = SIDES_AS_SEEN


class SpeakerForm(_Form):
    """One of `speakers`: what they say, where they are and when they begin."""

    name: Text = ""
    audio: Sound = None
    text: OneVoice | None = None
    voice: Voice | None = None
    box: SpeakerBox | None = None
    mask: ExistingFile | None = None
    start: Seconds = 0.0


def _one_or_two(value: object) -> object:
    """pydantic's own check of a length counts the good items alone."""
    if not isinstance(value, list):
        raise mistake(f"must be a list, not {kind_of(value)}")
    if not value:
        raise mistake("is empty: name at least one speaker")
    if len(value) > MAX_SPEAKERS:
        raise mistake(f"more than {MAX_SPEAKERS} speakers are not possible")
    return value


Speakers = Annotated[
    tuple[SpeakerForm, ...],
    BeforeValidator(_one_or_two),
    Field(json_schema_extra={"minItems": 1, "maxItems": MAX_SPEAKERS}),
]


class PerPersonSound(_Form):
    """`cond_audio`: a file of speech, or of a video with speech, for each; "None" for one who keeps silent."""

    person1: Sound
    person2: Sound = None


class TextToSpeech(_Form):
    """`tts_audio`: a text, with (s1) and (s2) before what each of two people says, and their voices."""

    text: Spoken
    human1_voice: Voice | None = None
    human2_voice: Voice | None = None

    @property
    def num_speakers(self) -> int:
        """Two if the text or the voices say so."""
        numbers = [line.speaker for line in parse_dialogue(self.text)]
        return max([1 if self.human2_voice is None else 2, *(number + 1 for number in numbers)])

    @model_validator(mode="after")
    def _says_who_speaks(self) -> TextToSpeech:
        if self.human2_voice is not None and not parse_dialogue(self.text):
            raise mistake("has two voices, but no (s1) and (s2) in its text that say who speaks")
        return self


class PerPersonBox(_Form):
    """`bbox`: where each speaker is."""

    person1: BoxForm | None = None
    person2: BoxForm | None = None


class SoundForm(_Form):
    """What the options of the same names say otherwise."""

    drive_audio: Files | None = None
    output_audio: OutputSound | None = None
    drive_loudness: DriveLoudness | None = None
    output_loudness: Loudness | None = None
    audio_start: Seconds | None = None
    audio_end: Seconds | None = None
    trim_silence: StrictBool | None = None
    close_mouth_in_pauses: StrictBool | None = None

    @property
    def sound(self) -> SoundSaid:
        """These fields alone."""
        return SoundSaid(**{name: getattr(self, name) for name in SoundForm.model_fields})


class SpokenForm(_Form):
    """Who is seen and who says what: fields in the order in which people write them, the reference programs' last."""

    schema_: Any = Field(None, alias="$schema")  # for editors
    image: ExistingFile | None = None
    video: ExistingFile | None = None
    prompt: Text = DEFAULT_PROMPT
    negative_prompt: Text | None = None
    speakers: Speakers | None = None
    audio: ExistingFile | None = None
    turns: ExistingFile | None = None
    text: Spoken | None = None
    audio_type: Literal["para", "add"] = "para"
    cond_image: ExistingFile | None = None
    cond_video: ExistingFile | None = None
    cond_audio: PerPersonSound | None = None
    bbox: PerPersonBox | None = None
    tts_audio: TextToSpeech | None = None
    video_audio: Any = None  # written back by the reference programs, never read


class JobForm(SoundForm, SpokenForm):  # of these the last one's fields come first
    """The whole file. The four names of the picture mean the same: a picture or a video, told apart by content."""

    @property
    def spoken(self) -> str | None:
        """The text of the whole job, if there is one."""
        return self.tts_audio.text if self.tts_audio else self.text


FORM_OF: Mapping[str, type[_Form]] = {
    "speakers": SpeakerForm,
    "speakers.box": SpeakerBox,
    "cond_audio": PerPersonSound,
    "tts_audio": TextToSpeech,
    "bbox": PerPersonBox,
    "bbox.person1": BoxForm,
    "bbox.person2": BoxForm,
}
"""The form of each field that holds an object, or a list of such."""


def known_fields(parent: str) -> tuple[str, ...]:
    """The fields of the object at the dotted path `parent`, "" for the whole file."""
    form = FORM_OF.get(re.sub(r"\[\d+\]", "", parent), JobForm)
    return tuple(name for name, field in form.model_fields.items() if field.alias is None)


def meant_field(name: str, parent: str = "") -> str | None:
    """The field of the object at `parent` that an unknown one is nearest to, if it is near."""
    near = get_close_matches(name, known_fields(parent), n=1, cutoff=0.5)
    return near[0] if near else None
