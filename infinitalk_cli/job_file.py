"""From a file to the raw fields of a job: text and JSON, with what is wrong told by line and column.

Python's JSON parser takes what no other does (NaN, a field twice); here that is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from infinitalk_cli.errors import InputError
from infinitalk_cli.job_media import media_hint

MAX_JOB_BYTES = 1_000_000
"""A job is a few hundred bytes; a larger file is something else, given by mistake."""

EXAMPLE_JOB = '{"prompt": "...", "image": "face.png", "audio": "speech.wav"}'


class _UnusableJson(ValueError):
    """Valid for Python's parser, but not for us."""


def read_text(path: Path, what: str = "job file") -> str:
    """The text of a small file, `what` in messages. Raises: InputError: if it is not there, or no text."""
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_JOB_BYTES + 1)
    except FileNotFoundError as error:
        raise InputError(f"no such {what}: {path}", hint="talk generate --help shows how to do without one") from error
    except (OSError, ValueError) as error:
        raise InputError(f"can't read the {what} {path}: {getattr(error, 'strerror', None) or error}") from error
    if len(data) > MAX_JOB_BYTES:
        raise InputError(f"{path} is no {what}: larger than {MAX_JOB_BYTES // 1000} kB", hint=media_hint([str(path)]))
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        hint = media_hint([str(path)]) or "a picture or a sound goes to --image, --video or --audio"
        raise InputError(f"{path} is no {what}: no UTF-8 text (byte {error.start})", hint=hint) from error


def parse_job(text: str, path: Path | str) -> Mapping[str, Any]:
    """The fields of a job in JSON. Raises: InputError: if it is none, with line and column."""
    raw = parse_json(text, path)
    if isinstance(raw, list):
        raise InputError(f"{path} holds a list of jobs, where one is wanted", hint="talk generate takes such a file")
    if not isinstance(raw, dict):
        raise InputError(f"{path} holds no JSON object", hint=f"a job: {EXAMPLE_JOB}")
    return raw


def parse_json(text: str, path: Path | str) -> object:
    """JSON as every parser takes it. Raises: InputError: with line and column. `path`: where it stood."""
    try:
        return json.loads(text, object_pairs_hook=_without_twins, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise InputError(f"{path}: not valid JSON at {where}: {error.msg}") from error
    except RecursionError as error:
        raise InputError(f"{path}: not usable JSON: nested too deeply") from error
    except _UnusableJson as error:
        raise InputError(f"{path}: not usable JSON: {error}") from error
    except ValueError as error:  # Python refuses numbers of thousands of digits
        raise InputError(f"{path}: not usable JSON: a number is too long") from error


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    named = dict(pairs)
    if len(named) < len(pairs):
        names = [name for name, _ in pairs]
        twins = ", ".join(sorted({repr(name) for name in names if names.count(name) > 1}))
        raise _UnusableJson(f"a field is given twice: {twins}")
    return named


def _refuse_constant(name: str) -> NoReturn:
    raise _UnusableJson(f"{name} is not a number")
