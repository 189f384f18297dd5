"""One video from Python: `generate`, with the options of the command by their names; the command goes the same way.

    video = generate(image="face.png", audio="speech.wav", output="talk.mp4", preset="fast")

What the command takes as text may be a path, a number or a list here. Nothing is printed; errors are `TalkError`s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from infinitalk_cli.before_run import (
    announcements,
    bind_gpus,
    nothing_left_note,
    repetition_note,
    was_made_before,
)
from infinitalk_cli.errors import InputError
from infinitalk_cli.job import job_of_fields
from infinitalk_cli.job_list import is_list
from infinitalk_cli.options import GenerateOptions
from infinitalk_cli.options_job import job_words, refuse_doubled, said_anew
from infinitalk_cli.options_record import record_of, repeating
from infinitalk_cli.prepare import leaving_finished, prepare_run, with_name_filled
from infinitalk_cli.progress import OnProgress, ignore_progress
from infinitalk_cli.request import GenerateResult, check_request

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from infinitalk_cli.run_batch import WarmNetworks

PathLike = str | Path
"""A path; relative ones start at the working directory."""

Box = Sequence[float] | str
"""Left, top, right and bottom, in pixels of the picture."""


class Options(TypedDict, total=False):
    """The options of `talk generate` by their names; `talk generate --help` says what each is.

    Where the command takes an option several times, one value or a list will do. None is as if it were left out.
    """

    # What is seen and said
    image: PathLike | None
    video: PathLike | None
    audio: PathLike | Sequence[PathLike] | None
    prompt: str | None
    negative_prompt: str | None
    box: str | Sequence[float] | Sequence[Box] | None
    mask: PathLike | Sequence[PathLike] | None
    turns: PathLike | None
    audio_type: Literal["para", "add"] | None
    # The mp4
    output: PathLike
    overwrite: bool
    resume: bool
    max_seconds: float | None
    crf: int
    # Quality and speed
    profile: str | None
    preset: Literal["quality", "balanced", "fast"] | None
    size: Literal["480", "720", 480, 720] | None
    steps: int | None
    seed: int
    lora: PathLike | Sequence[PathLike] | None
    lora_mode: Literal["merge", "beside"] | None
    teacache: bool
    teacache_threshold: float | None
    # Weights and machine
    weights_dir: PathLike | None
    no_convert: bool
    quant: Literal["none", "fp8", "int8"] | None
    engine: Literal["infinitetalk", "multitalk"] | None
    gpu: str | int | None
    gpus: int
    device: str
    num_persistent_param_in_dit: int | None
    attention: Literal["auto", "sdpa", "flash", "cudnn", "8bit", "int8", "fp8", "sage"] | None
    vae_tiling: Literal["auto", "on", "off"] | None
    vae_dtype: Literal["auto", "float32", "bfloat16", "float16"] | None
    text_encoder: Literal["auto", "gpu", "stream", "cpu"] | None
    # Fine tuning
    shift: float | None
    text_guidance: float | None
    audio_guidance: float | None
    apg: bool
    frames: int | None
    motion_frames: int | None
    color_strength: float | None
    reference_by_index: bool
    # Speech from text
    text: str | None
    voice: PathLike | Sequence[PathLike] | None
    speed: float
    pause: float
    # Dubbing a video
    short_source: Literal["hold", "loop", "ping-pong"]
    scenes: Literal["auto", "on", "off"]
    # Sound
    drive_audio: PathLike | Sequence[PathLike] | None
    output_audio: PathLike | None
    drive_loudness: float | Literal["auto", "off"]
    output_loudness: float | Literal["off"]
    audio_start: float
    audio_end: float | None
    trim_silence: bool
    close_mouth_in_pauses: bool
    # Long videos
    cross_fade: bool
    reanchor: int | None
    # Picture
    resolution: str | tuple[int, int] | None
    fit: Literal["crop", "pad"]


FIELD_OF_NAME = {"steps": "num_steps"}
"""Fields of `GenerateOptions` that have another name than the option."""

REPEATED = frozenset({"audio", "box", "mask", "lora", "voice", "drive_audio"})
"""Options that the command takes several times."""

AS_TEXT = frozenset({"audio", "lora", "voice", "size", "gpu", "output_audio", "drive_loudness", "output_loudness"})
"""Options whose paths and numbers the command reads as text."""


def generate(
    job: PathLike | Mapping[str, Any] | None = None,
    *,
    on_progress: OnProgress = ignore_progress,
    on_note: Callable[[str], None] = lambda _: None,
    warm: WarmNetworks | None = None,
    **options: Unpack[Options],
) -> GenerateResult:
    """Make one video, as `talk generate` does.

    Args: job: a job file, the fields of one, or the record of a video to make again; None where `options` say it all.
        on_progress: is told how far it is. on_note: is told what the command prints as notes. warm: keeps the networks
        from one call to the next; hand the same one to each.
    Returns: what was made; with `resume`, of a video that the same job has finished before, what was made then.
    Raises: TalkError: of the kind that gives the command its exit code, before anything is written or with what is done
        kept; InterruptedRunError on Ctrl-C. TypeError: for a name that is no option.
    """
    said = options_of(options)
    if isinstance(job, Mapping):
        refuse_doubled(said)
        meant = job_of_fields(job, "the job", Path(), said_anew(said))
    else:
        said, meant = pointed(said, job, on_note), None
    said = leaving_finished(with_name_filled(said))
    prepared = prepare_run(said, meant)
    if said.skip_existing:
        if was_made_before(prepared.request):
            from infinitalk_cli.run_finished import finished_result

            on_note(nothing_left_note(prepared.request))
            return finished_result(prepared.request)
        check_request(prepared.request)
    bind_gpus(prepared)
    for note in announcements(prepared):
        on_note(note)
    from infinitalk_cli import runner  # torch loads here, after the input is known to be good

    try:
        return runner.generate(prepared.request, on_progress, on_note, warm)
    except BaseException:
        if warm:
            warm.forget()  # who knows in which state a failure has left them
        raise


def options_of(said: Mapping[str, Any]) -> GenerateOptions:
    """The command's options from keywords. Raises: TypeError: for an unknown name. InputError: for a wrong value."""
    from pydantic import TypeAdapter, ValidationError

    for name in said:
        if name not in Options.__annotations__:
            near = get_close_matches(name, Options.__annotations__, n=1)
            raise TypeError(f"generate() has no option {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    values = {FIELD_OF_NAME.get(name, name): as_the_command_has(name, value) for name, value in said.items()}
    given = {name: value for name, value in values.items() if value is not None}
    try:
        return replace(TypeAdapter(GenerateOptions).validate_python(given), given=frozenset(given))
    except ValidationError as error:
        found = error.errors(include_url=False)[0]
        field = str(found["loc"][0])
        name = next((name for name, other in FIELD_OF_NAME.items() if other == field), field)
        raise InputError(f"{name}={said[name]!r}: {found['msg'].removeprefix('Value error, ')}") from error


def as_the_command_has(name: str, value: Any) -> Any:
    """An option's value as the command line would give it."""
    if value is None:
        return None
    if name == "resolution":
        return joined(value, "x")
    if name not in REPEATED:
        return str(value) if name in AS_TEXT else value
    is_one_box = name == "box" and is_list_of(value, (int, float))
    values = list(value) if isinstance(value, (list, tuple)) and not is_one_box else [value]
    if name == "box":
        return [joined(each, ",") for each in values]
    return [str(each) for each in values] if name in AS_TEXT else values


def is_list_of(value: Any, kind: tuple[type, ...]) -> bool:
    """Whether it is a list, not an empty one, that begins so."""
    return isinstance(value, (list, tuple)) and bool(value) and isinstance(value[0], kind)


def joined(value: Any, sign: str) -> Any:
    """Numbers as the command takes them, in one text; anything else stays, to be taken or refused."""
    return sign.join(map(str, value)) if isinstance(value, (list, tuple)) else value


def pointed(said: GenerateOptions, job: PathLike | None, on_note: Callable[[str], None]) -> GenerateOptions:
    """The options with the file of their job; under them those of a record, where the file is one."""
    if job is None:
        return said
    options = replace(said, input_json=Path(job))
    if is_list(job_words(options)):
        raise InputError(f"{job} means several jobs", hint="generate() makes one video; call it for each")
    if (record := record_of(options)) is None:
        return options
    on_note(repetition_note(record))
    return repeating(options, record)
