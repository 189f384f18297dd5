"""What is wrong between the fields of a job file, where each may be good by itself.

Two fields exclude each other, one needs another, none says who speaks. The raw file is looked at, not the checked form:
a file with a bad field is told of everything that is wrong with it at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from infinitalk_cli.dialogue import TAG
from infinitalk_cli.job_messages import NO_SPEECH
from infinitalk_cli.job_schema import known_fields, meant_field
from infinitalk_cli.job_values import SILENT

OWN_SPEECH, REFERENCE_SPEECH = ("speakers", "audio", "turns", "text"), ("cond_audio", "tts_audio")
"""What says who speaks, in a job of our form and in one of the reference programs'."""

PICTURE_FIELDS = ("image", "video", "cond_image", "cond_video")


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
        yield "text", "a speaker has a sound or a text of their own: give that or the text of all, not both"
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


def _misspelt(raw: Mapping[str, Any], parent: str = "") -> set[str | None]:
    """The fields that unknown ones mean: these are wrong, not missing."""
    return {meant_field(str(name), parent) for name in raw if name not in (*known_fields(parent), "$schema")}
