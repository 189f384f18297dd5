"""`talk preview`: a job as a picture, before anything is computed."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from infinitalk_cli.console import errors_as_exit_codes
from infinitalk_cli.console_options import output_option
from infinitalk_cli.errors import InputError
from infinitalk_cli.hardware import detect_hardware
from infinitalk_cli.options import GenerateOptions
from infinitalk_cli.options_job import read_options_job, with_sound_of
from infinitalk_cli.options_record import record_of, repeating
from infinitalk_cli.prepare import options_said
from infinitalk_cli.profiles import AUTO, settle
from infinitalk_cli.profiles import find_profile as profile_of
from infinitalk_cli.request import GenerateRequest, check_settings, input_files
from infinitalk_cli.run_choice import choose_run
from infinitalk_cli.run_reports import seen_line

if TYPE_CHECKING:
    from infinitalk_cli.preview import Preview

SHOWN = (
    *(
        "input_json",
        "image",
        "video",
        "audio",
        "box",
        "mask",
        "turns",
        "text",
        "voice",
        "audio_type",
        "output",
        "overwrite",
    ),
    *("max_seconds", "quiet", "as_json", "debug", "profile", "size", "engine", "frames", "motion_frames"),
    *("resolution", "fit", "audio_start", "audio_end", "short_source", "scenes"),
)
"""The options of `talk generate` that change what a preview shows."""


@dataclass(frozen=True)
class PreviewOptions(GenerateOptions):
    """Those of `talk generate`, for one job and with another output."""

    input_json: Annotated[
        Path | None,
        typer.Argument(metavar="JOB.json", help="A job file. Or leave it out and use --image and --audio."),
    ] = None
    output: Annotated[Path, output_option("--output", "-o", help="The PNG to write.")] = Path("preview.png")


def preview(options: PreviewOptions) -> None:
    """Draw who is where and who speaks when, before anything runs; needs no weights.

    The picture shows what of the source is seen, each speaker's box or mask, the size, the chunks and their times. An
    earlier preview is replaced.

    \b
    Examples:
    talk preview job.json
    talk preview --image two.png --audio left.wav --audio right.wav --size 720 -o look.png
    """
    console = options.console()
    with errors_as_exit_codes(console):
        record = record_of(options)
        request = preview_request(replace(repeating(options, record), output=options.output) if record else options)
        from infinitalk_cli.preview import draw, look_ahead, save

        found = look_ahead(request, console.note)
        lines = preview_lines(request, found)
        save(draw(request.job, found, lines), options.output, overwrite=options.overwrite)
        for line in (*request.job.notes, *lines):
            console.note(line)
        console.result(str(options.output), preview_record(request, found))


def preview_request(options: GenerateOptions) -> GenerateRequest:
    """The request of a run whose weights nobody looks for. Raises: InputError: for the job and the options."""
    job = read_options_job(options)
    run = choose_run(options_said(options), detect_hardware())
    if run.base.demo_weights and run.said.value("profile", AUTO) == AUTO:  # no GPU here, but the job runs elsewhere
        run = replace(run, base=profile_of("default"))
    engine = options.engine.value if options.engine else "infinitetalk"
    profile = settle(run.base, run.said.wishes, engine, run.preset)
    request = GenerateRequest(
        job=job,
        output=options.output,
        profile=profile,
        engine=engine,
        max_seconds=options.max_seconds,
        picture=options.picture_wishes,
        source=options.source_wishes,
        sound=with_sound_of(job, options).sound_wishes,
    )
    check_settings(request)
    if options.output.exists() and any(options.output.samefile(path) for path in input_files(job)):
        raise InputError(f"the output {options.output} is an input of the job", hint="-o names another")
    return request


def preview_lines(request: GenerateRequest, found: "Preview") -> list[str]:
    """The facts in words."""
    planned, chunks = found.planned, len(found.chunks)
    shape, frames = planned.shape, request.profile.chunk_frames
    about = "about " if request.job.read_aloud else ""  # how long a text takes shows when it is spoken
    return [
        f"video: {shape.width} x {shape.height}, {about}{found.seconds:.2f} s, {shape.num_frames} frames, "
        f"{'1 chunk' if chunks == 1 else f'{chunks} chunks'} of up to {frames} frames",
        seen_line(planned),
    ]


def preview_record(request: GenerateRequest, found: "Preview") -> dict[str, object]:
    """The same for programs."""
    planned = found.planned
    return {
        "output": str(request.output),
        "width": planned.shape.width,
        "height": planned.shape.height,
        "num_frames": planned.shape.num_frames,
        "crop_box": list(planned.crop_box),
        "chunks": [list(chunk) for chunk in found.chunks],
        "speech": [[list(stretch) for stretch in own] for own in found.speech],
    }
