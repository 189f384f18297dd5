"""The options of a run as its record tells them, and the way back: from a record to the options that repeat it.

What is recorded are the command's own options, with what was left open settled: the profile that the machine chose,
its steps and scales, the seed. So a repetition goes the way of any run, and an option given beside the record has its
usual meaning.
"""

from __future__ import annotations

from dataclasses import fields, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infinitalk_cli.errors import InputError
from infinitalk_cli.job_record import JobRecord, is_record, read_record, record_places
from infinitalk_cli.profiles import AUTO, Profile
from infinitalk_cli.request import GenerateRequest, LoraFile, Told, usual_color_strength
from infinitalk_cli.run_choice import FIELD_OF_KEY, RunChoice
from infinitalk_cli.settings_files import KEYS

if TYPE_CHECKING:
    from infinitalk_cli.options import GenerateOptions

OF_THE_JOB = frozenset(
    {"input_json", "image", "video", "audio", "prompt", "negative_prompt", "box", "mask", "turns", "audio_type", "text"}
)
"""Options that say what the job says."""

OF_THE_COMMAND = frozenset(
    {
        *("output", "overwrite", "resume", "skip_existing", "dry_run", "quiet", "as_json", "debug", "progress"),
        *("gpu", "vae_tiling", "text_encoder", "num_persistent_param_in_dit", "no_convert"),
        *("more", "given", "record"),
    }
)
"""Options that say how the command behaves or where things lie in memory, and nothing of the video."""

OPTION_OF_KEY = {"steps": "num_steps"}
"""Fields of `GenerateOptions` whose name is not the setting's."""

FIELD_OF_OPTION = {OPTION_OF_KEY.get(key, key): field for key, field in FIELD_OF_KEY.items()}
"""Options that are wishes, with the profile's field."""


def told_options(options: GenerateOptions, run: RunChoice, request: GenerateRequest) -> Told:
    """What a record tells of a run's options. `request`: with the LoRAs of the options alone."""
    names = [field.name for field in fields(options) if field.name not in OF_THE_JOB | OF_THE_COMMAND]
    values = {name: _plain(name, getattr(options, name)) for name in names}
    wishes = {name: field for name, field in FIELD_OF_OPTION.items() if name in values}
    values |= {name: _settled(request.profile, field) for name, field in wishes.items()}
    values |= {"profile": run.base.name, "preset": run.preset.name if run.preset else None}
    values |= {"seed": request.seed, "engine": request.engine, "lora": [_lora_words(lora) for lora in request.loras]}
    values |= {"color_strength": request.color_strength}
    values |= {"weights_dir": None if request.weights_dir is None else str(request.weights_dir.absolute())}
    told = {name: _origin(options, name) for name in names}
    told |= {name: "the job" for name in request.job.sound_said.options() if name not in options.given}
    if options.color_strength is None:
        told["color_strength"] = usual_color_strength(request.job)[1]
    if options.record is None:
        settled = run.origins()
        told |= {name: settled[field] for name, field in wishes.items()}
        said = run.said.settings
        told |= {name: said[name].origin for name in ("profile", "preset") if name in said}
        if run.said.value("profile", AUTO) == AUTO:
            told["profile"] = "this machine"
    return Told(values, told, dict(options.record.identity) if options.record else {})


def _origin(options: GenerateOptions, name: str) -> str:
    """Where an option's value comes from, in words."""
    if name in options.given:
        return "--" + name.replace("_", "-")
    return f"record {options.record.path.name}" if options.record else "default"


def _settled(profile: Profile, field: str) -> Any:
    """A field of the settled profile, None for the demo's own size, which no option names."""
    value = getattr(profile, field)
    return None if field == "size" and value not in KEYS["size"].choices else value


def _lora_words(lora: LoraFile) -> str:
    return f"{lora.path.absolute()}:{lora.scale:.6f}"


def _plain(name: str, value: Any) -> Any:
    """A value as JSON has it; files by their absolute path."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return str(value.absolute())
    if isinstance(value, (list, tuple)):
        return [_plain(name, part) for part in value]  # pyright: ignore[reportUnknownVariableType]
    if name in ("output_audio", "voice") and isinstance(value, str) and Path(value).is_file():
        return str(Path(value).absolute())
    return value


def record_of(options: GenerateOptions) -> JobRecord | None:
    """The record that the options name in place of a job, be it by its video; None for a job.

    Raises: InputError: as `read_record`.
    """
    path = options.input_json
    if path is None:
        return None
    if path.suffix.lower() == ".mp4":
        found = [read_record(place) for place in record_places(path) if is_record(place)]
        return next((record for record in found if record.video.name == path.name), None)
    return read_record(path) if is_record(path) else None


def repeating(options: GenerateOptions, record: JobRecord) -> GenerateOptions:
    """The options of a record, under those that were given now, for a video of another name.

    Raises: InputError: if the record's options can't be understood.
    """
    from pydantic import TypeAdapter, ValidationError

    known = {field.name for field in fields(options)} - OF_THE_JOB - OF_THE_COMMAND
    stored = {name: value for name, value in record.options.items() if name in known}
    try:
        told = TypeAdapter(type(options)).validate_python(stored)
    except ValidationError as error:
        found = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in found["loc"])
        raise InputError(f"the record {record.path} is damaged: options.{where}: {found['msg']}") from error
    kept = [name for name in known if name not in options.given]
    repeated = replace(options, record=record, **{name: getattr(told, name) for name in kept})
    return repeated if "output" in options.given else replace(repeated, output=other_name(record, options))


def other_name(record: JobRecord, options: GenerateOptions) -> Path:
    """The video itself if it may be replaced, else the first free name like it: talk-again.mp4, talk-again-2.mp4."""
    if options.overwrite:
        return record.video
    again = record.video.with_stem(f"{record.video.stem}-again")
    number = 1
    while again.exists():
        number += 1
        again = record.video.with_stem(f"{record.video.stem}-again-{number}")
    return again
