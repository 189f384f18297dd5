"""The `talk` command: options in, one call per command, errors out as exit codes."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from infinitalk_cli import __version__
from infinitalk_cli.batch import run_batch
from infinitalk_cli.before_run import (
    announcements,
    bind_gpus,
    misfit,
    nothing_left_note,
    predict,
    repetition_note,
    side_notes,
    was_made_before,
)
from infinitalk_cli.bench_command import bench
from infinitalk_cli.console import Console, duration, errors_as_exit_codes
from infinitalk_cli.console_options import Commands, taking
from infinitalk_cli.demo_command import SHOWN as DEMO_SHOWN
from infinitalk_cli.demo_command import DemoOptions, prepare_demo
from infinitalk_cli.doctor_commands import doctor, env
from infinitalk_cli.download_command import download
from infinitalk_cli.errors import InputError
from infinitalk_cli.interrupts import stops_as_interrupts
from infinitalk_cli.job_list import is_list
from infinitalk_cli.options import GenerateOptions
from infinitalk_cli.options_job import job_words
from infinitalk_cli.options_record import record_of, repeating
from infinitalk_cli.prepare import PreparedRun, leaving_finished, prepare_run, with_name_filled
from infinitalk_cli.preview_command import SHOWN, PreviewOptions, preview
from infinitalk_cli.profiles_commands import profiles_app
from infinitalk_cli.request import GenerateRequest, GenerateResult, check_request, output_fate
from infinitalk_cli.run_reports import plan_record, plan_text, work_record
from infinitalk_cli.weights_commands import weights_app

if TYPE_CHECKING:
    from infinitalk_cli.run_batch import WarmNetworks

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},  # commands have it from here
)


@app.callback(invoke_without_command=True)
def talk(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Talking videos from a picture and speech.

    \b
    Examples:
    talk demo
    talk generate --image face.png --audio speech.wav
    talk generate --help
    """
    if version:
        Console().result(f"talk {__version__}", {"version": __version__})
        raise typer.Exit


@app.command(context_settings={"allow_extra_args": True})  # to say what was meant by them
@taking(GenerateOptions)
def generate(options: GenerateOptions) -> None:
    """Turn a picture or a video, and speech, into a talking video.

    \b
    Examples:
    talk generate job.json
    talk generate --image face.png --audio speech.wav -o talk.mp4
    talk generate --image two.png --audio left.wav --audio right.wav
    talk generate --image face.png --text "Good morning."
    talk generate --video clip.mp4 --audio french.wav --prompt "A woman talks."
    talk generate job.json --profile demo
    talk generate 'jobs/*.json' more.jsonl -o 'out/{stem}-{seed}.mp4' --skip-existing
    talk generate talk.json   # the record beside talk.mp4: makes it again
    """
    console = options.console()
    with errors_as_exit_codes(console), stops_as_interrupts():
        if is_list(job_words(options)):
            run_batch(options, console, bind_gpus, perform)
            return
        if record := record_of(options):
            options = repeating(options, record)
            console.note(repetition_note(record))
        options = leaving_finished(with_name_filled(options))
        prepared = prepare_run(options)
        if not options.dry_run:
            bind_gpus(prepared)
        perform(prepared, options, console)


@app.command()
@taking(DemoOptions, DEMO_SHOWN)
def demo(options: DemoOptions) -> None:
    """Make a portrait talk here and now: no GPU, no download, under a minute.

    It runs every stage of `talk generate` on small weights that come with the package. These were trained on drawn
    people and synthetic speech, so photographs come out badly; `talk doctor` says what the published weights need.

    \b
    Examples:
    talk demo
    talk demo --text "Good morning to all of you." -o morning.mp4
    talk demo --image drawn.png --audio speech.wav
    """
    console = options.console()
    with errors_as_exit_codes(console), stops_as_interrupts():
        options = leaving_finished(with_name_filled(options))
        prepared = prepare_demo(options)
        bind_gpus(prepared)
        perform(prepared, options, console)


def perform(
    prepared: PreparedRun, options: GenerateOptions, console: Console, warm: "WarmNetworks | None" = None
) -> None:
    """Make the video of a prepared run, or what else the options wish of it, and say so."""
    request = prepared.request
    is_done = options.skip_existing and was_made_before(request)
    if options.dry_run:
        show_plan(prepared, console, is_done=is_done)
        return
    if is_done:
        from infinitalk_cli.run_finished import finished_result

        console.note(nothing_left_note(request))
        console.result(str(request.output), result_record(request, finished_result(request)))
        return
    check_request(request)
    for note in announcements(prepared):
        console.note(note)
    from infinitalk_cli import runner  # torch loads here, after the input is known to be good

    with console.progress() as on_progress:
        result = runner.generate(request, on_progress=on_progress, on_note=console.note, warm=warm)
    made, *further = closing_notes(prepared, result)
    for note in (made, *further) if warm is None else (made,):  # of many jobs, each would say the same
        console.note(note)
    console.result(str(result.output), result_record(request, result))


def show_plan(prepared: PreparedRun, console: Console, *, is_done: bool) -> None:
    """What would run, as the result, and what it would do about what is there.

    Raises: InputError, DoesNotFitError: after that, for a run that would be refused or can't fit.
    """
    from infinitalk_cli.run_plan import plan_job, short_note, unplayed_note
    from infinitalk_cli.run_scenes import with_scenes

    request = prepared.request
    planned = plan_job(request)
    short = short_note(planned.shape.num_frames, planned.shape.fps)
    for note in (short, *side_notes(request), unplayed_note(request)):
        if note:
            console.note(note)
    planned = with_scenes(request, planned, console.note)
    found, lines = predict(prepared, planned.shape)
    if prepared.lacking:
        console.note(f"note: not all weights are there, so published sizes are taken; {prepared.lacking}")
    fate, note = output_fate(request, is_done=is_done)
    refusal = would_be_refused(request) if fate == "refused" else misfit(prepared, planned.shape)
    if note:
        console.note(note)
    record = plan_record(prepared.choice, planned, found, prepared.gpus, fate)
    record |= {**work_record(planned.shape, request.profile), "refused": refusal and refusal.message}
    console.result(plan_text(prepared.choice, planned, lines), record)
    if refusal:
        raise refusal


def would_be_refused(request: GenerateRequest) -> InputError | None:
    """What a run would be refused for."""
    try:
        check_request(request)
    except InputError as error:
        return error
    return None


def closing_notes(prepared: PreparedRun, result: GenerateResult) -> tuple[str, str]:
    """What was made, and the next command."""
    request = prepared.request
    size = f"{result.width} x {result.height} at {result.fps} fps"
    made = f"{result.duration_s:.2f} s of {size}, made in {duration(result.elapsed_s)}"
    told = f"\nrecord: {result.record}" if result.record else ""
    if request.weights_dir is None:
        further = "talk download, then talk generate without --profile demo"
        if prepared.choice.gpu is None:
            further = "talk doctor, which says what the published weights need"
        return f"{made} with the demo weights{told}", f"next: {further}"
    other = request.output.with_stem(f"{request.output.stem}-{request.seed + 1}")
    return f"{made}{told}", f"next: the same with --seed {request.seed + 1} -o {other} for another take"


def result_record(request: GenerateRequest, result: GenerateResult) -> dict[str, object]:
    """The outcome as `--json` prints it."""
    chosen = {"seed": request.seed, "engine": request.engine, "profile": request.profile.name}
    paths = {"output": str(result.output), "record": str(result.record) if result.record else None}
    return {**asdict(result), **paths, "duration_s": result.duration_s, **chosen}


app.command()(bench)
app.command(no_args_is_help=True)(taking(PreviewOptions, SHOWN)(preview))
app.command()(download)
app.command()(doctor)
app.command()(env)
app.add_typer(profiles_app, name="profiles")
app.add_typer(weights_app, name="weights")
