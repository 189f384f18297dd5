"""Many jobs from few words: files, patterns, lines of JSON, stdin; and the names of their videos.

A file of jobs holds one in a line (.jsonl) or a list of them (.json). What can't be read is kept with its mistake, so
that one broken line does not stop the others.
"""

from __future__ import annotations

import string
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any, cast

from infinitalk_cli.errors import InputError
from infinitalk_cli.job import Job, job_of_fields
from infinitalk_cli.job_file import EXAMPLE_JOB, parse_job, parse_json, read_text
from infinitalk_cli.job_record import is_record

STDIN = "-"
LINES = (".jsonl", ".ndjson")
NAME_FIELDS = ("stem", "index", "seed", "profile")
DEFAULT_NAME = "{stem}.mp4"


@dataclass(frozen=True)
class ListedJob:
    """A job of a list. `name`: in messages; `stem`: in the name of its video; `fields`: or the mistake in them."""

    name: str
    stem: str
    folder: Path
    fields: Mapping[str, Any] | InputError

    def read(self, overrides: Mapping[str, str]) -> Job:
        """The job. Raises: InputError: for every mistake in it."""
        if isinstance(self.fields, InputError):
            raise self.fields
        return job_of_fields(self.fields, self.name, self.folder, overrides)


def is_list(words: Sequence[str]) -> bool:
    """Whether the arguments mean a list of jobs, be it of one, and not just a job file."""
    if len(words) != 1:
        return len(words) > 1
    path = Path(words[0])
    if words[0] == STDIN or path.suffix.lower() in LINES or is_pattern(words[0]):
        return True
    try:
        return is_json(words[0]) and read_text(path).lstrip().startswith("[")
    except InputError:
        return False  # to be told as for any job file


def list_jobs(words: Sequence[str]) -> list[ListedJob]:
    """The jobs that files, patterns and "-" name, in order; records of videos are passed over.

    Raises: InputError: if there are none at a place.
    """
    found, records = list[ListedJob](), list[str]()
    for word in words:
        paths = sorted(glob(word, recursive=True)) if is_pattern(word) else [word]  # noqa: PTH207  also absolute
        if not paths:
            raise InputError(f"no file has a name like {word!r}", hint="the pattern starts at the working directory")
        for path in paths:
            if is_record(Path(path)):  # of a video that lies beside its job
                records.append(path)
                continue
            jobs = list(_jobs_of(path))
            if not jobs:
                whole = f"a list of jobs: [{EXAMPLE_JOB}]" if is_json(path) else "one JSON object in a line"
                raise InputError(f"{'stdin' if path == STDIN else path} holds no job", hint=whole)
            found += jobs
    if records and not found:
        raise InputError(
            f"{', '.join(records)}: records of videos, no jobs", hint=f"one at a time: talk generate {records[0]}"
        )
    return found


def is_json(word: str) -> bool:
    """Whether a file is named as one JSON document, not one in each line."""
    return Path(word).suffix.lower() == ".json"


def is_pattern(word: str) -> bool:
    """Whether a word has * or ? in it and is not the name of a file."""
    return any(sign in word for sign in "*?[") and not Path(word).exists()


def name_videos(jobs: Sequence[ListedJob], template: str, seeds: Sequence[int], profile: str) -> list[Path]:
    """The video of each job.

    Args: template: with the fields `NAME_FIELDS` in braces. Raises: InputError: for another field, or one name twice.
    """
    names = [
        fill_name(template, {"stem": job.stem, "index": index, "seed": seed, "profile": profile})
        for index, (job, seed) in enumerate(zip(jobs, seeds, strict=True), start=1)
    ]
    twins = [name for name, count in Counter(names).items() if count > 1]
    if twins:
        who = ", ".join(job.name for job, name in zip(jobs, names, strict=True) if name == twins[0])
        raise InputError(
            f"{who} would all become {twins[0]}", hint=f"-o 'out/{{stem}}-{{index}}.mp4'; fields: {_fields()}"
        )
    return [Path(name) for name in names]


def fill_name(template: str, values: Mapping[str, object]) -> str:
    """The template with its fields filled in. Raises: InputError: if it can't be."""
    try:
        used = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
        if strange := [name for name in used if name not in NAME_FIELDS]:
            raise InputError(f"-o {template!r}: no such field: {{{strange[0]}}}", hint=f"fields: {_fields()}")
        return template.format(**values)
    except (ValueError, IndexError) as error:
        raise InputError(f"-o {template!r} can't be filled in: {error}", hint=f"fields: {_fields()}") from error


def _fields() -> str:
    return ", ".join(f"{{{name}}}" for name in NAME_FIELDS)


def _jobs_of(word: str) -> Iterator[ListedJob]:
    path = Path(word)
    if word == STDIN:
        yield from _jobs_of_lines(sys.stdin.read(), "stdin", "job", Path())
        return
    try:
        text = read_text(path)
    except InputError as error:
        yield ListedJob(word, path.stem, path.parent, error)
        return
    if path.suffix.lower() in LINES:
        yield from _jobs_of_lines(text, word, path.stem, path.parent)
    elif text.lstrip().startswith("["):
        yield from _jobs_of_list(text, path)
    else:
        yield _listed(text, word, path.stem, path.parent)


def _jobs_of_lines(text: str, name: str, stem: str, folder: Path) -> Iterator[ListedJob]:
    lines = [(number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    for index, (number, line) in enumerate(lines, start=1):
        yield _listed(line, f"{name} line {number}", f"{stem}-{index}", folder)


def _jobs_of_list(text: str, path: Path) -> Iterator[ListedJob]:
    try:
        raw = cast("list[object]", parse_json(text, path))
    except InputError as error:
        yield ListedJob(str(path), path.stem, path.parent, error)
        return
    for index, each in enumerate(raw, start=1):
        name = f"{path} number {index}"
        fields = cast("Mapping[str, Any]", each) if isinstance(each, dict) else InputError(f"{name} is no JSON object")
        yield ListedJob(name, f"{path.stem}-{index}", path.parent, fields)


def _listed(text: str, name: str, stem: str, folder: Path) -> ListedJob:
    try:
        fields: Mapping[str, Any] | InputError = parse_job(text, name)
    except InputError as error:
        fields = error
    return ListedJob(name, stem, folder, fields)
