"""What is to be made: one picture or video, one prompt, one or two voices.

A job comes from a file in the form of the reference programs (`read_job`) or from options (`job_from_flags`); both go
through the same checks and give the same frozen `Job`. A mistake is told with its file and field, all mistakes at
once. The contents of pictures and sounds are the media package's business; here a file need only be there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from infinitalk_cli.errors import InputError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

    from infinitalk_cli.job_schema import BoxForm, JobForm

AudioType = Literal["para", "add"]

MAX_SPEAKERS = 2
MAX_JOB_BYTES = 1_000_000
"""A job is a few hundred bytes; a larger file is something else, given by mistake."""

EXAMPLE_JOB = '{"prompt": "...", "cond_image": "face.png", "cond_audio": {"person1": "speech.wav"}}'


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels of the source picture, upright as one sees it; `right` and `bottom` lie outside."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True)
class Speaker:
    """`audio`: a sound file or a video with sound, None for one who keeps silent. `box`: None for the default half."""

    audio: Path | None
    box: Box | None = None


@dataclass(frozen=True)
class Job:
    """One video to make.

    `reference`: the picture or video. `speakers`: the left one first. `audio_type`: "para" for voices at the same
    time, "add" for one after the other. `negative_prompt`: None for the built-in one, "" for none.
    """

    reference: Path
    prompt: str
    speakers: tuple[Speaker, ...]
    audio_type: AudioType = "para"
    negative_prompt: str | None = None
    is_video: bool = False

    @property
    def num_speakers(self) -> int:
        """How many there are, silent ones too."""
        return len(self.speakers)


@dataclass(frozen=True)
class _Source:
    """Where a job was written: its name in messages, where its paths are looked up, what its fields are called."""

    name: str
    folders: tuple[Path, ...]
    label: Callable[[str], str]
    hint: str


def read_job(path: Path, overrides: Mapping[str, str] | None = None) -> Job:
    """Read a job file. Relative paths in it start at its folder, then at the working directory.

    Args: overrides: fields of the file that the user says anew.
    Raises: InputError: with every mistake, its field, and for broken JSON its line and column.
    """
    raw = {**_parse(_read_text(path), path), **(overrides or {})}
    folders = (path.parent, Path())
    return _checked(raw, _Source(str(path), folders, label=str, hint=f"a job: {EXAMPLE_JOB}"))


def job_from_flags(
    *,
    image: Path | None = None,
    video: Path | None = None,
    audio: Sequence[str] = (),
    prompt: str,
    negative_prompt: str | None = None,
    boxes: Sequence[str] = (),
    audio_type: AudioType = "para",
) -> Job:
    """Make a job of options. Paths start at the working directory.

    Args: audio: a path per speaker, "none" for a silent one. boxes: "left,top,right,bottom" per speaker, or nothing.
    Raises: InputError: with every mistake and its option.
    """
    if max(len(audio), len(boxes)) > MAX_SPEAKERS:
        raise InputError(f"more than {MAX_SPEAKERS} speakers: give --audio (and --box) once or twice")
    raw = {
        "prompt": prompt,
        "negative_prompt": negative_prompt,
        "cond_image": None if image is None else str(image),
        "cond_video": None if video is None else str(video),
        "cond_audio": _per_person(["None" if path.lower() == "none" else path for path in audio]) or None,
        "audio_type": audio_type,
        "bbox": _per_person([_box_of_text(text) for text in boxes]),
    }
    hint = "talk generate --image face.png --audio speech.wav"
    return _checked(raw, _Source("the options", (Path(),), label=_option_label, hint=hint))


def is_video_file(path: Path) -> bool:
    """Whether the first bytes are those of a video; where they tell nothing, the name decides."""
    with path.open("rb") as stream:
        head = stream.read(16)
    if head[4:8] == b"ftyp":
        return head[8:12] not in (b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1")
    if head.startswith((b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*")) or head[8:12] == b"WEBP":
        return False
    if head.startswith((b"\x1aE\xdf\xa3", b"FLV", b"\0\0\1\xba", b"\0\0\1\xb3", b"0&\xb2u")) or head[8:12] == b"AVI ":
        return True
    return path.suffix.lower() in (
        ".mp4",
        ".avi",
        ".mov",
        ".mkv",
        ".flv",
        ".wmv",
        ".webm",
        ".mpeg",
        ".mpg",
        ".ts",
        ".m4v",
    )


class _UnusableJson(ValueError):
    """Valid for Python's parser, but not for us."""


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_JOB_BYTES + 1)
    except FileNotFoundError as error:
        raise InputError(
            f"no such job file: {path}", hint="talk generate --help shows how to do without one"
        ) from error
    except (OSError, ValueError) as error:
        raise InputError(f"can't read the job file {path}: {getattr(error, 'strerror', None) or error}") from error
    if len(data) > MAX_JOB_BYTES:
        raise InputError(f"{path} is not a job file: larger than {MAX_JOB_BYTES // 1000} kB")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        hint = "a picture or a sound goes to --image, --video or --audio"
        raise InputError(f"{path} is not a job file: no UTF-8 text (byte {error.start})", hint=hint) from error


def _parse(text: str, path: Path) -> Mapping[str, Any]:
    try:
        raw: object = json.loads(text, object_pairs_hook=_without_twins, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise InputError(f"{path}: not valid JSON at {where}: {error.msg}") from error
    except RecursionError as error:
        raise InputError(f"{path}: not usable JSON: nested too deeply") from error
    except _UnusableJson as error:
        raise InputError(f"{path}: not usable JSON: {error}") from error
    except ValueError as error:  # Python refuses numbers of thousands of digits
        raise InputError(f"{path}: not usable JSON: a number is too long") from error
    if isinstance(raw, list):
        raise InputError(f"{path} holds a list: several jobs in one file are not possible yet", hint="one job a file")
    if not isinstance(raw, dict):
        raise InputError(f"{path} holds no JSON object", hint=f"a job: {EXAMPLE_JOB}")
    return raw


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    named = dict(pairs)
    if len(named) < len(pairs):
        names = [name for name, _ in pairs]
        twins = ", ".join(sorted({repr(name) for name in names if names.count(name) > 1}))
        raise _UnusableJson(f"a field is given twice: {twins}")
    return named


def _refuse_constant(name: str) -> NoReturn:
    raise _UnusableJson(f"{name} is not a number")


def _checked(raw: Mapping[str, Any], source: _Source) -> Job:
    from pydantic import ValidationError

    from infinitalk_cli.job_schema import JobForm, Lookup, relation_problems

    problems = list(relation_problems(raw))
    try:
        form = JobForm.model_validate(raw, context=Lookup(folders=source.folders))
    except ValidationError as error:
        problems += [_problem(detail) for detail in error.errors(include_url=False)]
    else:
        if not problems:
            return _job_of(form)
    raise InputError(_listed(problems, source), hint=source.hint)


def _listed(problems: Sequence[tuple[str, str]], source: _Source) -> str:
    lines = [f"{source.label(field)}: {message}" if field else message for field, message in problems]
    if len(lines) == 1:
        return f"{source.name}: {lines[0]}"
    return "\n  ".join([f"{source.name}: {len(lines)} mistakes", *lines])


def _problem(detail: ErrorDetails) -> tuple[str, str]:
    """One finding of pydantic as (dotted path, message) in our words."""
    from infinitalk_cli.job_schema import kind_of, known_fields, shown

    *parents, name = [str(part) for part in detail["loc"]] or [""]
    field = ".".join([*parents, name])
    kind = kind_of(detail["input"])
    match detail["type"]:
        case "extra_forbidden" if parents == ["cond_audio"] or (parents == ["bbox"] and name.startswith("person")):
            return field, f"more than {MAX_SPEAKERS} speakers are not possible: person1 and person2"
        case "extra_forbidden":
            known = known_fields(".".join(parents))
            near = get_close_matches(name, known, n=1, cutoff=0.5)
            return field, "unknown field; " + (f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}")
        case "missing":
            return field, "is missing"
        case "string_type":
            return field, f"must be text, not {kind}"
        case "float_type" | "finite_number":
            return field, f"must be a number, not {kind}" if kind != "a number" else "must be a finite number"
        case "literal_error":
            return field, f"must be {detail.get('ctx', {}).get('expected')}, not {shown(str(detail['input']))}"
        case "greater_than_equal":
            return field, f"lies outside the picture: {detail['input']}"
        case "model_type" | "model_attributes_type":
            return field, f"must be an object, not {kind}"
        case _:
            return field, detail["msg"]


def _job_of(form: JobForm) -> Job:
    reference = form.cond_image or form.cond_video
    sounds, boxes = form.cond_audio, form.bbox
    assert reference is not None  # relation_problems has seen to both
    assert sounds is not None
    names = ["person1", "person2"] if "person2" in sounds.model_fields_set else ["person1"]
    return Job(
        reference=reference,
        prompt=form.prompt,
        speakers=tuple(Speaker(audio=getattr(sounds, name), box=_box_of(getattr(boxes, name, None))) for name in names),
        audio_type=form.audio_type,
        negative_prompt=form.negative_prompt,
        is_video=is_video_file(reference),
    )


def _box_of(form: BoxForm | None) -> Box | None:
    if form is None:
        return None
    return Box(left=round(form.left), top=round(form.top), right=round(form.right), bottom=round(form.bottom))


def _per_person(values: Sequence[Any]) -> dict[str, Any]:
    return {f"person{number}": value for number, value in enumerate(values, start=1)}


def _box_of_text(text: str) -> object:
    """A box as an option gives it; what is no number stays text, for the checks to find."""
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 4:
        raise InputError(f"--box {text!r} is not left,top,right,bottom", hint="--box 120,80,360,420")
    return dict(zip(("left", "top", "right", "bottom"), (_number(part) for part in parts), strict=True))


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _option_label(field: str) -> str:
    """The option that set a field of the form."""
    field, _, rest = field.partition(".")
    options = {"cond_image": "--image", "cond_video": "--video", "cond_audio": "--audio", "bbox": "--box"}
    option = options.get(field, "--" + field.replace("_", "-"))
    return f"{option} ({rest.replace('.', ' ')})" if rest else option
