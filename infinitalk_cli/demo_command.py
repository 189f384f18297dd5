"""`talk demo`: a video by the small weights of the package, of its own portrait and sentence or of others."""

import filecmp
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

from infinitalk_cli.console_options import output_option
from infinitalk_cli.demo_package import PORTRAIT, SENTENCE
from infinitalk_cli.errors import InputError, TalkError
from infinitalk_cli.espeak import find_espeak, save_speech
from infinitalk_cli.options import GenerateOptions, input_option, sampling_option
from infinitalk_cli.options_job import read_options_job
from infinitalk_cli.options_media import voice_files
from infinitalk_cli.prepare import PreparedRun, prepare_run
from infinitalk_cli.request import check_request, kept_speech
from infinitalk_cli.weights import find_weights_dir

SHOWN = (
    *("image", "audio", "text", "output", "overwrite", "resume", "max_seconds", "seed", "device"),
    *("quiet", "as_json", "debug", "progress"),
)
"""The options of `talk generate` that the demo takes."""


@dataclass(frozen=True)
class DemoOptions(GenerateOptions):
    """Those of `talk generate` with answers of their own."""

    image: Annotated[
        Path | None,
        input_option(
            help="Picture of the speaker. The small networks know drawn people alone.",
            show_default="the package's portrait",
        ),
    ] = None
    audio: Annotated[
        list[str] | None,
        input_option(
            metavar="FILE",
            help="Speech: a sound file, or a video with sound.",
            show_default="the package's sentence",
        ),
    ] = None
    text: Annotated[
        str | None, input_option(help="What is said, in place of --audio: by Kokoro, or else by espeak-ng.")
    ] = None
    output: Annotated[Path, output_option("--output", "-o", help="The mp4 to write.")] = Path("talk-demo.mp4")
    profile: Annotated[str | None, sampling_option()] = "demo"


def prepare_demo(options: DemoOptions) -> PreparedRun:
    """The run of a demo; where espeak-ng is to speak, its words are in a file beside the output.

    Raises: InputError: for the options. EnvironmentUnfitError: if there is nothing to speak a text with.
    """
    options = replace(options, image=options.image or PORTRAIT)
    if options.text is None:
        return prepare_run(replace(options, audio=options.audio or [str(SENTENCE)]))
    job = read_options_job(options)
    try:
        voice_files(job, (), find_weights_dir(None))
    except TalkError:
        program = find_espeak()
    else:
        return prepare_run(options)
    if job.dialogue:
        raise InputError("--text: espeak-ng speaks for one alone", hint="leave (s1) and (s2) out")
    prepared = prepare_run(replace(options, text=None, audio=[str(SENTENCE)]))
    wished = replace(prepared.request, job=job)
    (path,) = kept_speech(wished)
    if not (options.resume and _says(program, options.text, path)):
        check_request(wished)
        save_speech(program, options.text, path)
    (speaker,) = prepared.request.job.speakers
    spoken = replace(prepared.request.job, speakers=(replace(speaker, audio=path),))
    return replace(prepared, request=replace(prepared.request, job=spoken))


def _says(program: str, text: str, path: Path) -> bool:
    """Whether a file is there and is this text as the program speaks it, so that it is ours to go on with."""
    if not path.is_file():
        return False
    with TemporaryDirectory() as folder:
        again = Path(folder) / path.name
        save_speech(program, text, again)
        return filecmp.cmp(path, again, shallow=False)
