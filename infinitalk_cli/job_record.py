"""The record of a video: a JSON file beside the mp4 that says all that made it, and serves as a job to make it again.

Written by the engine (`run_record`), read here, without torch. It holds the job as it was understood, whatever form it
came in, with absolute paths; the options as they were settled, so that a machine or a setting that has changed since
changes nothing; the digests of the inputs; and what decided the frames, to tell where a repetition differs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from infinitalk_cli.errors import InputError
from infinitalk_cli.job import Job, Speaker
from infinitalk_cli.job_sound import SoundSaid

RECORD_KEY = "talk_record"
VERSION = 1

HEAD_BYTES = 200
"""The key stands first in the file, so that these tell whether it is a record."""

HASHED_AT_ONCE = 2**20


@dataclass(frozen=True)
class JobRecord:
    """A record that was read. `path`: of its file; `video`: of the mp4, that was made from `job`.

    `options`: fields of the command's options. `inputs`: the SHA-256 of each file. `identity`: what decided the frames.
    """

    path: Path
    video: Path
    job: Job
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    inputs: Mapping[str, str] = field(default_factory=dict[str, str])
    identity: Mapping[str, str] = field(default_factory=dict[str, str])

    def changed_inputs(self) -> Iterator[str]:
        """The input files whose content is another one by now."""
        for name, digest in self.inputs.items():
            if content_digest(Path(name)) != digest:
                yield name


def record_path(output: Path) -> Path | None:
    """Where the record of a video goes: talk.json beside talk.mp4; talk.mp4.json where that is something else's name.

    None if both are. A record that is there is that of an earlier video of this name, and may be replaced.
    """
    return next((place for place in record_places(output) if not place.exists() or is_record(place)), None)


def record_places(output: Path) -> tuple[Path, Path]:
    """The names that the record of a video may have, the usual one first."""
    return output.with_suffix(".json"), output.with_name(f"{output.name}.json")


def is_record(path: Path) -> bool:
    """Whether a file is a record, by its beginning."""
    try:
        with path.open("rb") as file:
            return file.read(HEAD_BYTES).lstrip().removeprefix(b"{").lstrip().startswith(f'"{RECORD_KEY}"'.encode())
    except (OSError, ValueError):
        return False


def read_record(path: Path) -> JobRecord:
    """Read a record. Raises: InputError: if it is damaged, of a newer version, or an input is gone."""
    from pydantic import TypeAdapter, ValidationError

    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored[RECORD_KEY] != VERSION:
            raise InputError(
                f"{path} is a record of version {stored[RECORD_KEY]}, and this talk reads version {VERSION}",
                hint="the talk that wrote it, or a newer one, can repeat it",
            )
        record = JobRecord(
            path=path,
            video=path.with_name(str(stored["video"])),
            job=TypeAdapter(Job).validate_python(stored["job"]),
            options=TypeAdapter(dict[str, Any]).validate_python(stored["options"]),
            inputs=TypeAdapter(dict[str, str]).validate_python(stored["inputs"]),
            identity=TypeAdapter(dict[str, str]).validate_python(stored["decides"]),
        )
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        what = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        raise InputError(f"the record {path} is damaged: {what}", hint="a job file of your own does as well") from error
    if gone := [name for name in record.inputs if not Path(name).is_file()]:
        raise InputError(
            f"{path} was made from files that are gone: {', '.join(gone)}",
            hint="put them back, or name the new ones in a job file",
        )
    return record


def job_fields(job: Job) -> dict[str, Any]:
    """A job as a record holds it. Its paths become absolute; what it says of its sound is among the options there."""
    from pydantic import TypeAdapter

    def placed(speaker: Speaker) -> Speaker:
        audio, mask = (None if path is None else path.absolute() for path in (speaker.audio, speaker.mask))
        return replace(speaker, audio=audio, mask=mask)

    turns_file = None if job.turns_file is None else job.turns_file.absolute()
    speakers = tuple(map(placed, job.speakers))
    whole = replace(
        job,
        reference=job.reference.absolute(),
        speakers=speakers,
        turns_file=turns_file,
        sound_said=SoundSaid(),
    )
    return TypeAdapter(Job).dump_python(whole, mode="json")


def content_digest(path: Path) -> str:
    """The SHA-256 of a file."""
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(HASHED_AT_ONCE):
            hasher.update(data)
    return hasher.hexdigest()
