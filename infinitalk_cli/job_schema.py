"""The form of a job file, for pydantic: which fields there are and what may stand in them.

There are two ways to say who speaks. `speakers` is ours: a list with a sound, a place and more for each. `cond_audio`,
`bbox` and `audio_type` are the reference programs', field for field. docs/job.schema.json is made from these classes.
Importing pydantic costs a tenth of a second, so only `job.py` imports this module, and only when it reads a job.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, GetJsonSchemaHandler, StrictBool, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from infinitalk_cli.dialogue import MAX_SPEAKERS, TAG, parse_dialogue
from infinitalk_cli.job import DEFAULT_PROMPT
from infinitalk_cli.job_messages import NO_SPEECH
from infinitalk_cli.job_sound import SoundSaid
from infinitalk_cli.job_values import (
    SILENT,
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

OWN_SPEECH, REFERENCE_SPEECH = ("speakers", "audio", "turns", "text"), ("cond_audio", "tts_audio")
"""What says who speaks, in a job of our form and in one of the reference programs'."""

PICTURE_FIELDS = ("image", "video", "cond_image", "cond_video")


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
    box: SpeakerBox | None = None
    mask: ExistingFile | None = None
    start: Seconds = 0.0
    text: OneVoice | None = None
    voice: Voice | None = None


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


class JobForm(SoundForm):
    """The whole file. The four names of the picture mean the same: a picture or a video, told apart by content."""

    schema_: Any = Field(None, alias="$schema")  # for editors
    prompt: Text = DEFAULT_PROMPT
    negative_prompt: Text | None = None
    image: ExistingFile | None = None
    video: ExistingFile | None = None
    speakers: Speakers | None = None
    audio: ExistingFile | None = None
    turns: ExistingFile | None = None
    cond_image: ExistingFile | None = None
    cond_video: ExistingFile | None = None
    cond_audio: PerPersonSound | None = None
    audio_type: Literal["para", "add"] = "para"
    bbox: PerPersonBox | None = None
    text: Spoken | None = None
    tts_audio: TextToSpeech | None = None
    video_audio: Any = None  # written back by the reference programs, never read

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
    """The fields of the object at the dotted path `parent`, "" for the whole file; those of the sound last."""
    form = FORM_OF.get(re.sub(r"\[\d+\]", "", parent), JobForm)
    names = [name for name, field in form.model_fields.items() if field.alias is None]
    return tuple(sorted(names, key=SoundForm.model_fields.__contains__))


def meant_field(name: str, parent: str = "") -> str | None:
    """The field of the object at `parent` that an unknown one is nearest to, if it is near."""
    near = get_close_matches(name, known_fields(parent), n=1, cutoff=0.5)
    return near[0] if near else None


def _misspelt(raw: Mapping[str, Any], parent: str = "") -> set[str | None]:
    """The fields that unknown ones mean: these are wrong, not missing."""
    return {meant_field(str(name), parent) for name in raw if name not in (*known_fields(parent), "$schema")}


def relation_problems(raw: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What is wrong between fields, as (dotted path, message): each field may be good by itself."""
    meant = _misspelt(raw)
    pictures = [name for name in PICTURE_FIELDS if raw.get(name) is not None]
    if not pictures and not meant.intersection(PICTURE_FIELDS):
        yield "cond_image" if _is_of_reference(raw) else "image", "is missing: the picture (or a video) of the speaker"
    elif len(pictures) > 1:
        yield pictures[1], "give a picture or a video, not both"
    theirs = next((name for name in REFERENCE_SPEECH if raw.get(name) is not None), None)
    if theirs is not None:
        for name in ("speakers", "audio", "turns", "text", "tts_audio"):
            if raw.get(name) is not None and name != theirs:
                yield name, f"the file says by {theirs} already who speaks: give one of them"
        yield from _person_problems(raw.get("cond_audio"), raw.get("bbox"))
        return
    if raw.get("bbox") is not None:
        yield "bbox", "goes with cond_audio; here a box stands in speakers"
    if all(raw.get(name) is None for name in OWN_SPEECH) and not meant.intersection((*OWN_SPEECH, *REFERENCE_SPEECH)):
        yield (
            "cond_audio" if _is_of_reference(raw) else NO_SPEECH,
            "is missing: the recorded speech (or a text to speak)",
        )
    yield from _speaker_problems(raw)
    yield from _text_problems(raw)


def _is_of_reference(raw: Mapping[str, Any]) -> bool:
    """Whether a job is written as the reference programs write theirs."""
    return any(str(name).startswith(("cond_", "tts_")) or name == "bbox" for name in raw)


def _person_problems(sounds: object, boxes: object) -> Iterator[tuple[str, str]]:
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


def _speaker_problems(raw: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What is wrong among `speakers`, `audio` and `turns`."""
    given = raw.get("speakers")
    listed: Sequence[object] = given if isinstance(given, list) else [{}]
    if not all(isinstance(each, Mapping) for each in listed):
        return
    speakers = cast("Sequence[Mapping[str, Any]]", listed)
    whole, has_turns = raw.get("audio") is not None, raw.get("turns") is not None
    for number, speaker in enumerate(speakers):
        yield from ((f"speakers[{number}].{name}", told) for name, told in _problems_of_one(speaker, whole, has_turns))
    sounds = [
        speaker.get("audio") not in (SILENT, None)
        or speaker.get("text")
        or _misspelt(speaker, "speakers").intersection(("audio", "text"))
        for speaker in speakers
    ]
    if given is not None and not (any(sounds) or whole or has_turns or raw.get("text") is not None):
        yield "speakers", "nobody speaks: every speaker is silent"
    if whole and len(speakers) > 1 and not has_turns:
        yield "audio", "is one sound for two speakers: turns says who speaks when, or give each one's own audio"
    placeless = [number for number, speaker in enumerate(speakers) if not _has_place(speaker)]
    if len(speakers) > 1 and len(placeless) == 1:
        yield f"speakers[{placeless[0]}].box", "give a box or mask for both speakers, or for none"
    if has_turns and len({bool(speaker.get("name")) for speaker in speakers}) > 1:
        yield "speakers", "give a name to both speakers, or to none"
    if raw.get("audio_type") == "add" and any(speaker.get("start") for speaker in speakers):
        yield "audio_type", "one after the other (add) leaves no room for start: give one of them"


def _text_problems(raw: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What is wrong between the text of a whole job and the rest."""
    text, speakers = raw.get("text"), raw.get("speakers")
    if not isinstance(text, str):
        return
    for name in ("audio", "turns"):
        if raw.get(name) is not None:
            yield "text", f"there is {name} already: give one of them"
    listed = [each for each in speakers if isinstance(each, Mapping)] if isinstance(speakers, list) else []
    if any(each.get("audio") is not None or each.get("text") is not None for each in listed):
        yield "text", "there is a speaker with audio or text of their own already: give one of them"
    numbers = set(map(int, TAG.findall(text)))
    if listed and len(listed) < max(numbers, default=1):
        yield "text", "has two people speak, but speakers names one"
    if len(listed) > max(numbers, default=1):
        yield "text", "has nobody but the first speaker speak: (s1) and (s2) before a sentence say who does"


def _problems_of_one(speaker: Mapping[str, Any], whole: bool, has_turns: bool) -> Iterator[tuple[str, str]]:
    has_sound = speaker.get("audio") not in (SILENT, None)
    if speaker.get("box") is not None and speaker.get("mask") is not None:
        yield "mask", "give a box or a mask, not both"
    if has_sound and speaker.get("text") is not None:
        yield "text", "give a sound or a text to speak, not both"
    if has_sound and (whole or has_turns):
        yield "audio", f"there is {'one sound for all (audio)' if whole else 'turns'} already: give one of them"
    if has_turns and speaker.get("start"):
        yield "start", "turns says already when everyone speaks"


def _has_place(speaker: Mapping[str, Any]) -> bool:
    return speaker.get("box") is not None or speaker.get("mask") is not None
