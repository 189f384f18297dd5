"""The `talk` command: options in, one call per command, errors out as exit codes."""

from dataclasses import asdict
from typing import Annotated

import typer

from infinitalk_cli import __version__
from infinitalk_cli.console import Console, duration, errors_as_exit_codes
from infinitalk_cli.download_command import download
from infinitalk_cli.options import GenerateOptions, build_request, taking
from infinitalk_cli.request import GenerateRequest, GenerateResult
from infinitalk_cli.weights_commands import weights_app

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback(invoke_without_command=True)
def talk(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Talking videos from a picture and speech.

    \b
    Examples:
    talk generate --image face.png --audio speech.wav
    talk generate examples/single.json --profile demo
    talk generate --help
    """
    if version:
        Console().result(f"talk {__version__}", {"version": __version__})
        raise typer.Exit


@app.command(no_args_is_help=True)
@taking(GenerateOptions)
def generate(options: GenerateOptions) -> None:
    """Turn a picture or a video, and speech, into a talking video.

    \b
    Examples:
    talk generate job.json
    talk generate --image face.png --audio speech.wav -o talk.mp4
    talk generate --image two.png --audio left.wav --audio right.wav
    talk generate --video clip.mp4 --audio french.wav --prompt "A woman talks."
    talk generate job.json --profile demo
    """
    console = Console(quiet=options.quiet, as_json=options.as_json)
    with errors_as_exit_codes(console):
        request = build_request(options)
        for note in notes(request):
            console.note(note)
        from infinitalk_cli import runner  # torch loads here, after the input is known to be good

        with console.progress() as on_progress:
            result = runner.generate(request, on_progress=on_progress, on_note=console.note)
        console.note(closing_note(request, result))
        console.result(str(result.output), result_record(request, result))


def notes(request: GenerateRequest) -> list[str]:
    """What to know before the run: its main choices, and options without effect."""
    job, profile = request.job, request.profile
    who = "1 speaker" if job.num_speakers == 1 else f"{job.num_speakers} speakers"
    found = [
        f"{who} from {job.reference.name}, {profile.name} profile, {profile.num_steps} steps, seed {request.seed}"
        f" -> {request.output}"
    ]
    if job.num_speakers == 1 and job.speakers[0].box is not None:
        found.append("note: with one speaker the box has no effect")
    if request.reference_by_index and not job.is_video:
        found.append("note: --reference-by-index has no effect on a picture")
    return found


def closing_note(request: GenerateRequest, result: GenerateResult) -> str:
    """What was made, and the next command."""
    size = f"{result.width} x {result.height} at {result.fps} fps"
    made = f"{result.duration_s:.2f} s of {size}, made in {duration(result.elapsed_s)}"
    if request.weights_dir is None:
        return f"{made} with the demo weights\nnext: talk download, then the same without --profile demo"
    other = request.output.with_stem(f"{request.output.stem}-{request.seed + 1}")
    return f"{made}\nnext: the same with --seed {request.seed + 1} -o {other} for another take"


def result_record(request: GenerateRequest, result: GenerateResult) -> dict[str, object]:
    """The outcome as `--json` prints it."""
    chosen = {"seed": request.seed, "engine": request.engine, "profile": request.profile.name}
    return {**asdict(result), "output": str(result.output), "duration_s": result.duration_s, **chosen}


app.command()(download)
app.add_typer(weights_app, name="weights")
