"""How the mistakes in a job read: which field or option, what is wrong, and what would be right."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from infinitalk_cli.dialogue import MAX_SPEAKERS
from infinitalk_cli.errors import InputError
from infinitalk_cli.job_file import EXAMPLE_JOB

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

Problem = tuple[str, str]
"""The dotted path of a field, "" for none, and what is wrong with it."""

NO_SPEECH = "audio or text"
"""In place of a field, where neither is there."""

STRUCTURAL = ("is missing", "unknown field", "nobody speaks", "must be an object", "give a picture")
"""How messages begin that a whole job answers best."""

BOX_HINT = "left, top, right, bottom in pixels of the picture; `talk preview` draws them"
TURNS_HINT = "a turn: its times, 00:00:01,000 --> 00:00:02,500, and below them a line such as 'Anna: Hello.'"


@dataclass(frozen=True)
class Source:
    """Where a job was written. `name`: in messages, "" for the options. `label`: what a field is called there.
    `whole`: a job as it should be; `box`: a place as it should be."""

    name: str
    label: Callable[[str], str] = str
    whole: str = f"a job: {EXAMPLE_JOB}"
    box: str = f'"box": [120, 80, 360, 420], {BOX_HINT}'

    def refusal(self, problems: Sequence[Problem]) -> InputError:
        """The error that tells all of them."""
        lines = [self.told(*problem) for problem in problems]
        if len(lines) == 1:
            told = f"{self.name}: {lines[0]}" if self.name else lines[0]
        else:
            told = "\n  ".join([f"{self.name or 'the options'}: {len(lines)} mistakes", *lines])
        return InputError(told, hint=self.hint(problems))

    def told(self, field: str, message: str) -> str:
        """One mistake with its field, where it has one."""
        between = " " if message.startswith("is missing") else ": "
        return f"{self.label(field)}{between}{message}" if field else message

    def hint(self, problems: Sequence[Problem]) -> str:
        """What helps against the mistakes: a whole job, one part of it, or nothing that they don't say themselves."""
        if any(not field or message.startswith(STRUCTURAL) for field, message in problems):
            return self.whole
        parts = {kind for field, _ in problems for kind in ("turns", "box") if kind in field.split(".")}
        if len(parts) != 1 or not all(set(field.split(".")) & parts for field, _ in problems):
            return ""
        return TURNS_HINT if parts == {"turns"} else self.box


def problem_of(detail: ErrorDetails) -> Problem:
    """One finding of pydantic as (dotted path, message) in our words."""
    from infinitalk_cli.job_schema import known_fields, meant_field
    from infinitalk_cli.job_values import kind_of, shown

    *parents, name = dotted(detail["loc"])
    field = ".".join([*parents, name])
    kind = kind_of(detail["input"])
    match detail["type"]:
        case "extra_forbidden" if parents == ["cond_audio"] or (parents == ["bbox"] and name.startswith("person")):
            return field, f"more than {MAX_SPEAKERS} speakers are not possible: person1 and person2"
        case "extra_forbidden":
            place = ".".join(parents)
            near, known = meant_field(name, place), ", ".join(known_fields(place))
            return field, "unknown field; " + (f"did you mean {near!r}?" if near else f"known: {known}")
        case "missing":
            return field, "is missing"
        case "string_type":
            return field, f"must be text, not {kind}"
        case "float_type" | "finite_number":
            return field, f"must be a number, not {kind}" if kind != "a number" else "must be a finite number"
        case "literal_error":
            return field, f"must be {detail.get('ctx', {}).get('expected')}, not {shown(str(detail['input']))}"
        case "bool_type":
            return field, f"must be true or false, not {kind}"
        case "greater_than_equal" | "less_than_equal" if name in ("start", "audio_start", "audio_end"):
            return field, f"must be seconds from 0 to a day, not {detail['input']}"
        case "greater_than_equal":
            return field, f"lies outside the picture: {detail['input']}"
        case "model_type" | "model_attributes_type":
            return field, f"must be an object, not {kind}"
        case _:
            return field, detail["msg"]


def dotted(loc: Sequence[int | str]) -> list[str]:
    """The place of a finding in words: speakers[0], box, left."""
    parts = [""]
    for part in loc:
        if isinstance(part, int):
            parts[-1] += f"[{part}]"
        else:
            parts.append(part)
    return parts[1:] or [""]


def option_label(field: str) -> str:
    """The option that set a field of the form."""
    own = re.fullmatch(r"speakers\[(\d+)\]\.(\w+)\.?(.*)", field)
    if own:
        return f"--{own[2]} (speaker {int(own[1]) + 1}{' ' if own[3] else ''}{own[3]})"
    return {NO_SPEECH: "--audio or --text", "speakers": "--audio"}.get(field, "--" + field.replace("_", "-"))


OPTIONS = Source(
    name="",
    label=option_label,
    whole="talk generate --image face.png --audio speech.wav",
    box=f"--box 120,80,360,420, which are {BOX_HINT}",
)
"""A job of options."""
