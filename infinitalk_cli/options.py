"""The options of `talk generate` and what they mean: the one way from a command line to a `GenerateRequest`.

Everything is checked here, before the engine is imported: a wrong option costs a fraction of a second, not the
loading of torch.
"""

import os
import random
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from infinitalk_cli.console_options import OUTPUT, ProgressOptions
from infinitalk_cli.errors import InputError, WeightsError
from infinitalk_cli.footprint import all_parameters
from infinitalk_cli.hardware import Gpu, detect_hardware
from infinitalk_cli.job import DEFAULT_PROMPT, Job, job_from_flags, read_job
from infinitalk_cli.job_media import media_hint
from infinitalk_cli.job_record import JobRecord, is_record, read_record
from infinitalk_cli.options_media import (
    ChunkOptions,
    DubbingOptions,
    PictureOptions,
    SoundOptions,
    VoiceOptions,
    voice_files,
)
from infinitalk_cli.options_record import OPTION_OF_KEY, told_options
from infinitalk_cli.options_values import (
    Attention,
    AudioType,
    Engine,
    PresetName,
    Quant,
    Size,
    TextEncoderPlace,
    VaeTiling,
)
from infinitalk_cli.profiles import AUTO, Profile
from infinitalk_cli.profiles import Quant as WeightsForm
from infinitalk_cli.request import GenerateRequest, check_request, check_shares, parse_lora
from infinitalk_cli.run_choice import RunChoice, Said, choose_run, gpus_of, read_sizes, refuse_gpuless, with_quant
from infinitalk_cli.run_loras import loras_of_run, named_lora
from infinitalk_cli.settings_files import KEYS, Setting, read_settings
from infinitalk_cli.weights import choose_engine, find_weights_dir, locate

DEFAULT_TEACACHE_THRESHOLD = 0.2
LARGEST_RANDOM_SEED = 2**31
"""A random seed stays short enough to be typed again."""

INPUT, SAMPLING, MACHINE, TUNING = "Input", "Quality and speed", "Weights and machine", "Fine tuning"

DEFAULT_OUTPUT = Path("output.mp4")


@dataclass(frozen=True)
class MainOptions(ProgressOptions):
    """Job, output, quality and machine."""

    input_json: Annotated[
        Path | None,
        typer.Argument(
            metavar="JOB.json...",
            help="Job files, patterns such as 'jobs/*.json', lines of jobs in a .jsonl file, or - for lines on stdin. "
            "Or leave it out and use --image and --audio.",
        ),
    ] = None
    image: Annotated[Path | None, typer.Option(help="Picture of the speaker.", rich_help_panel=INPUT)] = None
    video: Annotated[
        Path | None,
        typer.Option(
            help="Video of the speaker, to be dubbed: made anew after a frame of it every 2.9 s; not its lips alone "
            "are changed (docs/dubbing.md).",
            rich_help_panel=INPUT,
        ),
    ] = None
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
            help="Left, top, right and bottom of a speaker, in pixels of the picture; once per --audio. With one "
            "--audio this face speaks, and everyone else keeps silent.",
            show_default="left and right half",
            rich_help_panel=INPUT,
        ),
    ] = None
    mask: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="The same as a picture, white where the speaker is; per --audio.",
            rich_help_panel=INPUT,
        ),
    ] = None
    turns: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.srt",
            help="Subtitles that say who speaks when in one --audio; lines begin with 'Anna: '.",
            rich_help_panel=INPUT,
        ),
    ] = None
    audio_type: Annotated[
        AudioType | None,
        typer.Option(
            help="Two voices at once (para) or one after the other (add).", show_default="para", rich_help_panel=INPUT
        ),
    ] = None
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="The mp4 to write. With several jobs a name for each, of {stem}, {index}, {seed} and {profile}.",
            show_default="output.mp4; several: {stem}.mp4",
            rich_help_panel=OUTPUT,
        ),
    ] = DEFAULT_OUTPUT
    skip_existing: Annotated[
        bool,
        typer.Option("--skip-existing", help="Leave out a video that the same job has made.", rich_help_panel=OUTPUT),
    ] = False
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output.", rich_help_panel=OUTPUT)] = False
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with this video's run that ended early, if any.", rich_help_panel=OUTPUT),
    ] = False
    max_seconds: Annotated[
        float | None, typer.Option(help="Stop there.", show_default="length of the speech", rich_help_panel=OUTPUT)
    ] = None
    crf: Annotated[int, typer.Option(help="H.264 quality: 0 lossless, 51 worst.", rich_help_panel=OUTPUT)] = 17
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would run, and start nothing.", rich_help_panel=OUTPUT)
    ] = False
    profile: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="A card's, such as rtx-4090; demo: small built-in weights. `talk profiles ls` has all.",
            show_default="auto: what suits this machine",
            rich_help_panel=SAMPLING,
        ),
    ] = None
    preset: Annotated[
        PresetName | None,
        typer.Option(help="How long it may take.", show_default="the profile's steps", rich_help_panel=SAMPLING),
    ] = None
    size: Annotated[Size | None, typer.Option(help="Set of picture sizes.", rich_help_panel=SAMPLING)] = None
    num_steps: Annotated[int | None, typer.Option("--steps", help="Denoising steps.", rich_help_panel=SAMPLING)] = None
    seed: Annotated[int, typer.Option(help="Of the noise; -1 for a random one.", rich_help_panel=SAMPLING)] = 42
    lora: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE[:SCALE]",
            help="Add a LoRA: a file, or a name that `talk download --lora` takes. May be repeated.",
            rich_help_panel=SAMPLING,
        ),
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
    no_convert: Annotated[
        bool, typer.Option("--no-convert", help="Make no compact weights before the run.", rich_help_panel=MACHINE)
    ] = False
    quant: Annotated[Quant | None, typer.Option(help="8-bit weights.", rich_help_panel=MACHINE)] = None
    engine: Annotated[
        Engine | None, typer.Option(help="Whose loop.", show_default="the weights' own", rich_help_panel=MACHINE)
    ] = None
    gpu: Annotated[
        str | None,
        typer.Option(
            metavar="N", help="Number or UUID of the GPU.", show_default="the fittest", rich_help_panel=MACHINE
        ),
    ] = None
    gpus: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=1,
            help="GPUs of this machine that share the work on one video: 2, 4, 5 or 8.",
            rich_help_panel=MACHINE,
        ),
    ] = 1
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.", rich_help_panel=MACHINE)] = "auto"
    num_persistent_param_in_dit: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Parameters of the transformer that stay on the GPU; the others are streamed. 0: least memory.",
            show_default="as many as fit",
            rich_help_panel=MACHINE,
        ),
    ] = None
    attention: Annotated[
        Attention | None,
        typer.Option(
            help="Attention kernel. sage and fp8 are faster and less exact.",
            show_default="auto: the fastest exact one",
            rich_help_panel=MACHINE,
        ),
    ] = None
    vae_tiling: Annotated[
        VaeTiling | None,
        typer.Option(
            help="Decode pictures in tiles: slower, in less GPU memory.",
            show_default="auto: if they don't fit otherwise",
            rich_help_panel=MACHINE,
        ),
    ] = None
    text_encoder: Annotated[
        TextEncoderPlace | None,
        typer.Option(
            help="Where the prompt is read: whole on the GPU, streamed to it, or on the CPU.",
            show_default="auto: whole if there is room",
            rich_help_panel=MACHINE,
        ),
    ] = None
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


@dataclass(frozen=True)
class GenerateOptions(PictureOptions, ChunkOptions, SoundOptions, DubbingOptions, VoiceOptions, MainOptions):
    """Everything that `talk generate` can be told; the help shows the last base first.

    `more`: what stands behind the job, where nothing should. `given`: the fields that were said on the command line.
    `record`: of the video that is to be made again.
    """

    more: tuple[str, ...] = ()
    given: frozenset[str] = frozenset()
    record: JobRecord | None = None


@dataclass(frozen=True)
class PreparedRun:
    """A request that is ready to start, and how its profile was chosen. `gpus`: see `gpus_of`.

    `lacking`: of a dry run, how to get the weights that are not there yet; what it says then goes by published sizes.
    """

    request: GenerateRequest
    choice: RunChoice
    gpus: tuple[Gpu, ...] = ()
    lacking: str = ""


def prepare_run(options: GenerateOptions, job: Job | None = None) -> PreparedRun:
    """Check everything that the user said and settle what was left open; writes nothing.

    Args: job: None for the one that the options name.
    Raises: InputError: for the job or the options. WeightsError: if files are missing. EnvironmentUnfitError: if the
    machine has no GPU and the user did not say to go without.
    """
    job = job or read_options_job(options)
    run = choose_run(options_said(options), detect_hardware())
    demo = run.base.demo_weights and options.weights_dir is None
    weights_dir = None if demo else find_weights_dir(options.weights_dir)
    run = with_weights_there(run, weights_dir, num_speakers=job.num_speakers)
    quant = run.profile("infinitetalk").quant
    engine = options.engine.value if options.engine else "infinitetalk"
    if options.engine is None and weights_dir is not None:
        engine = choose_engine(weights_dir, num_speakers=job.num_speakers, quant=quant)
    threshold = DEFAULT_TEACACHE_THRESHOLD if options.teacache else None
    profile = run.profile(engine)
    request = GenerateRequest(
        job=job,
        output=options.output,
        profile=profile,
        engine=engine,
        weights_dir=weights_dir,
        overwrite=options.overwrite,
        resume=options.resume,
        seed=random.SystemRandom().randrange(LARGEST_RANDOM_SEED) if options.seed < 0 else options.seed,
        device=options.device,
        loras=tuple(parse_lora(text, named_lora(weights_dir)) for text in options.lora or ()),
        max_seconds=options.max_seconds,
        crf=options.crf,
        apg=options.apg,
        step_cache_threshold=threshold if options.teacache_threshold is None else options.teacache_threshold,
        color_strength=options.color_strength,
        reference_by_index=options.reference_by_index,
        source=options.source_wishes,
        sound=options.sound_wishes,
        voice=options.voice_wishes,
        voice_files=voice_files(job, options.voice or (), find_weights_dir(options.weights_dir)),
        resident_parameters=resident_parameters(profile),
        convert=not options.no_convert,
        num_gpus=options.gpus,
        chunks=options.chunk_wishes,
        picture=options.picture_wishes,
    )
    request = replace(request, told=told_options(options, run, request))
    lenient = options.dry_run or options.skip_existing  # a dry run writes nothing; what is there, is looked at later
    check_request(replace(request, overwrite=True) if lenient else request)
    refuse_gpuless(run)
    gpus = gpus_of(run, request.num_gpus)
    if weights_dir is not None:
        if (sizes := read_sizes(weights_dir)) is not None:
            check_shares(request.num_gpus, sizes.num_heads)
        try:
            files = locate(weights_dir, num_speakers=job.num_speakers, quant=quant, engine=engine)
        except WeightsError as error:
            if not options.dry_run:
                raise
            return PreparedRun(request, run, gpus, lacking=error.hint)
        request = replace(request, loras=loras_of_run(request.loras, profile, files, weights_dir))
    return PreparedRun(request, run, gpus)


def resident_parameters(profile: Profile) -> int | None:
    """How many parameters stay on the GPU; None where the profile asks for all, which may stay if they fit."""
    number = profile.num_persistent_param_in_dit
    return None if number is None or number >= all_parameters() else number


def options_said(options: GenerateOptions) -> Said:
    """What options, environment and files say, the nearest of each."""
    settings = read_settings(os.environ, Path.cwd())
    for key in KEYS:
        value = getattr(options, OPTION_OF_KEY.get(key, key))
        if value is not None:
            option = "--" + key.replace("_", "-")
            settings[key] = Setting(value.value if isinstance(value, Enum) else value, option)
    return Said(settings, options.device)


def with_weights_there(run: RunChoice, weights_dir: Path | None, *, num_speakers: int) -> RunChoice:
    """Of the forms of the weights that fit, the one that is there, if the preferred one is not."""
    preferred = run.profile("infinitetalk").quant
    if weights_dir is None or run.gpu is None or run.base.demo_weights or "quant" in run.said.settings:
        return run
    if "profile" in run.said.settings and run.said.value("profile") != AUTO:
        return run
    forms: tuple[WeightsForm, ...] = (preferred, *(form for form in ("fp8", "int8", "none") if form != preferred))
    for form in forms:
        try:
            locate(weights_dir, num_speakers=num_speakers, quant=form)
        except WeightsError:
            continue
        other = run if form == preferred else with_quant(run, form)
        return other if other.choice.fits or form == preferred else run
    return run


def job_words(options: GenerateOptions) -> list[str]:
    """The arguments that name jobs. Raises: InputError: if they are pictures and sounds."""
    given = [] if options.input_json is None else [str(options.input_json), *(options.more or ())]
    if len(given) > 1 and (meant := media_hint(given)):
        raise InputError(f"{', '.join(given)}: pictures and sounds are named by options", hint=meant)
    return given


def refuse_nothing(options: GenerateOptions) -> None:
    """Raises: InputError: if the options name nothing to make a video of, or more than one job."""
    if len(given := job_words(options)) > 1:
        raise InputError(f"one job at a time, not {', '.join(given)}", hint="talk generate takes several")
    if not (options.input_json or options.image or options.video or options.audio):
        raise InputError(
            "nothing to make a video of: name a picture and speech, or a job file",
            hint="talk generate --image face.png --audio speech.wav, or: talk generate job.json\n"
            "      talk generate --help has all options",
        )


def read_options_job(options: GenerateOptions) -> Job:
    """The job of the file, where the options may say its texts anew; or the job of the options alone."""
    refuse_nothing(options)
    audio_type = options.audio_type.value if options.audio_type else None
    if options.input_json is None:
        return job_from_flags(
            image=options.image,
            video=options.video,
            audio=options.audio or (),
            prompt=DEFAULT_PROMPT if options.prompt is None else options.prompt,
            negative_prompt=options.negative_prompt,
            boxes=options.box or (),
            text=options.text,
            masks=options.mask or (),
            turns=options.turns,
            audio_type=audio_type or "para",
        )
    refuse_doubled(options)
    if options.record or is_record(options.input_json):
        return replace((options.record or read_record(options.input_json)).job, **said_anew(options))
    return read_job(options.input_json, said_anew(options))


def said_anew(options: GenerateOptions) -> dict[str, Any]:
    """What options say of a job in a file's place."""
    audio_type = options.audio_type.value if options.audio_type else None
    texts = {"prompt": options.prompt, "negative_prompt": options.negative_prompt, "audio_type": audio_type}
    return {name: text for name, text in texts.items() if text is not None}


def refuse_doubled(options: GenerateOptions) -> None:
    """Raises: InputError: for options that say what a job file says."""
    fixed = {"--image": options.image, "--video": options.video, "--audio": options.audio, "--box": options.box}
    fixed |= {"--mask": options.mask, "--turns": options.turns}
    if doubled := [option for option, value in fixed.items() if value]:
        raise InputError(
            f"{', '.join(doubled)}: the job file {options.input_json} says that already", hint="give one of them"
        )
