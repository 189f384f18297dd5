"""The options of `talk generate` and what they mean: the one way from a command line to a `GenerateRequest`.

The options are the fields of a frozen dataclass, so that they travel as one value; `taking` shows them to Typer.
Everything is checked here, before the engine is imported: a wrong option costs a fraction of a second, not the
loading of torch.
"""

import inspect
import random
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from infinitalk_cli.errors import InputError
from infinitalk_cli.job import Job, job_from_flags, read_job
from infinitalk_cli.profiles import Wishes, find_profile, settle
from infinitalk_cli.request import GenerateRequest, check_request, parse_lora
from infinitalk_cli.weights import choose_engine, find_weights_dir, locate

DEFAULT_PROMPT = "A person talks to the camera."
DEFAULT_TEACACHE_THRESHOLD = 0.2
LARGEST_RANDOM_SEED = 2**31
"""A random seed stays short enough to be typed again."""

INPUT, OUTPUT, SAMPLING, MACHINE, TUNING = "Input", "Output", "Quality and speed", "Weights and machine", "Fine tuning"


class AudioType(str, Enum):
    """Two voices at the same time, or one after the other."""

    para = "para"
    add = "add"


class Size(str, Enum):
    """Sets of picture sizes."""

    small = "480"
    large = "720"


class Quant(str, Enum):
    """Forms of the transformer's weights."""

    none = "none"
    fp8 = "fp8"
    int8 = "int8"


class Engine(str, Enum):
    """Which model's loop runs."""

    infinitetalk = "infinitetalk"
    multitalk = "multitalk"


@dataclass(frozen=True)
class GenerateOptions:
    """Everything that `talk generate` can be told."""

    input_json: Annotated[
        Path | None,
        typer.Argument(metavar="JOB.json", help="A job file. Or leave it out and use --image and --audio."),
    ] = None
    image: Annotated[Path | None, typer.Option(help="Picture of the speaker.", rich_help_panel=INPUT)] = None
    video: Annotated[Path | None, typer.Option(help="Video of the speaker, to be dubbed.", rich_help_panel=INPUT)] = (
        None
    )
    audio: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            help="Speech: a sound file, or a video with sound. Twice for two speakers, the left one first; "
            "'none' for a silent one.",
            rich_help_panel=INPUT,
        ),
    ] = None
    prompt: Annotated[
        str | None,
        typer.Option(help="What the video shows.", show_default=DEFAULT_PROMPT, rich_help_panel=INPUT),
    ] = None
    negative_prompt: Annotated[
        str | None,
        typer.Option(help="What it must not show; '' for nothing.", show_default="built in", rich_help_panel=INPUT),
    ] = None
    box: Annotated[
        list[str] | None,
        typer.Option(
            metavar="L,T,R,B",
            help="Left, top, right and bottom of a speaker, in pixels of the picture; once per --audio.",
            show_default="left and right half",
            rich_help_panel=INPUT,
        ),
    ] = None
    audio_type: Annotated[
        AudioType | None,
        typer.Option(
            help="Two voices at once (para) or one after the other (add).", show_default="para", rich_help_panel=INPUT
        ),
    ] = None
    output: Annotated[Path, typer.Option("--output", "-o", help="The mp4 to write.", rich_help_panel=OUTPUT)] = Path(
        "output.mp4"
    )
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output.", rich_help_panel=OUTPUT)] = False
    max_seconds: Annotated[
        float | None, typer.Option(help="Stop there.", show_default="length of the speech", rich_help_panel=OUTPUT)
    ] = None
    crf: Annotated[int, typer.Option(help="H.264 quality: 0 lossless, 51 worst.", rich_help_panel=OUTPUT)] = 17
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the path alone.", rich_help_panel=OUTPUT)] = False
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.", rich_help_panel=OUTPUT)] = False
    profile: Annotated[
        str, typer.Option(help="default, or demo: small built-in weights.", rich_help_panel=SAMPLING)
    ] = "default"
    size: Annotated[Size | None, typer.Option(help="Set of picture sizes.", rich_help_panel=SAMPLING)] = None
    num_steps: Annotated[int | None, typer.Option("--steps", help="Denoising steps.", rich_help_panel=SAMPLING)] = None
    seed: Annotated[int, typer.Option(help="Of the noise; -1 for a random one.", rich_help_panel=SAMPLING)] = 42
    lora: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE[:SCALE]", help="Add a LoRA; may be repeated.", rich_help_panel=SAMPLING),
    ] = None
    teacache: Annotated[
        bool, typer.Option("--teacache", help="Skip steps that change little.", rich_help_panel=SAMPLING)
    ] = False
    teacache_threshold: Annotated[
        float | None,
        typer.Option(
            help="How much is little; implies --teacache.",
            show_default=str(DEFAULT_TEACACHE_THRESHOLD),
            rich_help_panel=SAMPLING,
        ),
    ] = None
    weights_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the weights.",
            show_default="$TALK_WEIGHTS_DIR, ./weights or the user's data folder",
            rich_help_panel=MACHINE,
        ),
    ] = None
    quant: Annotated[Quant | None, typer.Option(help="8-bit weights.", rich_help_panel=MACHINE)] = None
    engine: Annotated[
        Engine | None, typer.Option(help="Whose loop.", show_default="the weights' own", rich_help_panel=MACHINE)
    ] = None
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.", rich_help_panel=MACHINE)] = "auto"
    shift: Annotated[float | None, typer.Option(help="Schedule shift.", rich_help_panel=TUNING)] = None
    text_guidance: Annotated[
        float | None, typer.Option(help="Text guidance scale; 1 is off, and faster.", rich_help_panel=TUNING)
    ] = None
    audio_guidance: Annotated[
        float | None, typer.Option(help="Audio guidance scale; 1 is off, and faster.", rich_help_panel=TUNING)
    ] = None
    apg: Annotated[bool, typer.Option("--apg", help="Adaptive projected guidance.", rich_help_panel=TUNING)] = False
    frames: Annotated[int | None, typer.Option(help="Frames of a chunk, 4n + 1.", rich_help_panel=TUNING)] = None
    motion_frames: Annotated[
        int | None, typer.Option(help="Frames carried into the next chunk, 4n + 1.", rich_help_panel=TUNING)
    ] = None
    color_strength: Annotated[
        float, typer.Option(help="Hold the picture's colours: 0 off, 1 full.", rich_help_panel=TUNING)
    ] = 1.0
    reference_by_index: Annotated[
        bool,
        typer.Option(
            "--reference-by-index",
            help="Take a video's reference frames by number, not by time, as the original program does.",
            rich_help_panel=TUNING,
        ),
    ] = False


def taking(options: type[Any]) -> Callable[[Callable[[Any], None]], Callable[..., None]]:
    """Let a command that takes one dataclass show that dataclass's fields to Typer as its options."""

    def wrap(command: Callable[[Any], None]) -> Callable[..., None]:
        def run(**values: Any) -> None:
            command(options(**values))

        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__annotations__ = get_type_hints(options, include_extras=True)
        setattr(run, "__signature__", inspect.signature(options))  # noqa: B010  functions have no such declared field
        return run

    return wrap


def build_request(options: GenerateOptions) -> GenerateRequest:
    """Check everything that the user said and settle what was left open; writes nothing.

    Raises: InputError: for the job or the options. WeightsError: if files are missing.
    """
    job = read_options_job(options)
    profile, wishes = find_profile(options.profile), options_wishes(options)
    quant = wishes.quant or profile.quant
    demo = profile.demo_weights and options.weights_dir is None
    weights_dir = None if demo else find_weights_dir(options.weights_dir)
    engine = options.engine.value if options.engine else "infinitetalk"
    if options.engine is None and weights_dir is not None:
        engine = choose_engine(weights_dir, num_speakers=job.num_speakers, quant=quant)
    threshold = DEFAULT_TEACACHE_THRESHOLD if options.teacache else None
    request = GenerateRequest(
        job=job,
        output=options.output,
        profile=settle(profile, wishes, engine),
        engine=engine,
        weights_dir=weights_dir,
        overwrite=options.overwrite,
        seed=random.SystemRandom().randrange(LARGEST_RANDOM_SEED) if options.seed < 0 else options.seed,
        device=options.device,
        loras=tuple(parse_lora(text) for text in options.lora or ()),
        max_seconds=options.max_seconds,
        crf=options.crf,
        apg=options.apg,
        step_cache_threshold=threshold if options.teacache_threshold is None else options.teacache_threshold,
        color_strength=options.color_strength,
        reference_by_index=options.reference_by_index,
    )
    check_request(request)
    if weights_dir is not None:
        locate(weights_dir, num_speakers=job.num_speakers, quant=quant, engine=engine)
    return request


def read_options_job(options: GenerateOptions) -> Job:
    """The job of the file, where the options may say its texts anew; or the job of the options alone."""
    audio_type = options.audio_type.value if options.audio_type else None
    if options.input_json is None:
        return job_from_flags(
            image=options.image,
            video=options.video,
            audio=options.audio or (),
            prompt=DEFAULT_PROMPT if options.prompt is None else options.prompt,
            negative_prompt=options.negative_prompt,
            boxes=options.box or (),
            audio_type=audio_type or "para",
        )
    fixed = {"--image": options.image, "--video": options.video, "--audio": options.audio, "--box": options.box}
    if doubled := [option for option, value in fixed.items() if value]:
        raise InputError(
            f"{', '.join(doubled)}: the job file {options.input_json} says that already", hint="give one of them"
        )
    texts = {"prompt": options.prompt, "negative_prompt": options.negative_prompt, "audio_type": audio_type}
    return read_job(options.input_json, {name: text for name, text in texts.items() if text is not None})


def options_wishes(options: GenerateOptions) -> Wishes:
    """What the options say about the profile."""
    return Wishes(
        size=options.size.value if options.size else None,
        quant=options.quant.value if options.quant else None,
        chunk_frames=options.frames,
        motion_frames=options.motion_frames,
        num_steps=options.num_steps,
        shift=options.shift,
        text_guidance_scale=options.text_guidance,
        audio_guidance_scale=options.audio_guidance,
    )
