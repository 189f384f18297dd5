"""A dialogue in one text: `(s1) How was the trip? (s2) Long, but worth it.`

The form is the reference programs'. They drop what stands before the first tag and what a third speaker says; here
both are told, since a sentence that nobody speaks is never meant.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

TAG = re.compile(r"\(\s*[sS](\d+)\s*\)")

MAX_SPEAKERS = 2


class BadDialogue(ValueError):
    """A text that can't be spoken as it stands; the message says why."""


@dataclass(frozen=True)
class Line:
    """What one speaker says before the next one does. `speaker`: from 0."""

    speaker: int
    text: str


def parse_dialogue(text: str) -> tuple[Line, ...]:
    """The lines of a text in their order; nothing for a text without tags, which one speaker says.

    Raises: BadDialogue: for a text without words, or with words that nobody says, or for a third speaker.
    """
    before, *tagged = TAG.split(text)
    if not re.search(r"\w", " ".join([before, *tagged[1::2]])):
        raise BadDialogue("has no words to speak")
    if not tagged:
        return ()
    if before.strip():
        raise BadDialogue(f"nobody says what stands before (s{tagged[0]})")
    numbers = [int(number) for number in tagged[::2]]
    if bad := [number for number in numbers if not 1 <= number <= MAX_SPEAKERS]:
        raise BadDialogue(f"has a speaker (s{bad[0]}), but there are (s1) and (s2) alone")
    lines = zip(numbers, tagged[1::2], strict=True)
    return tuple(Line(number - 1, words.strip()) for number, words in lines if re.search(r"\w", words))
