"""From the options of `talk generate` to a `GenerateRequest`: the one way from a command line to a run.

Everything is checked here, before the engine is imported: a wrong option costs a fraction of a second, not the
loading of torch.
"""

import os
import random
import shlex
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import TypeVar

from infinitalk_cli.errors import EnvironmentUnfitError, WeightsError
from infinitalk_cli.espeak import espeak_here
from infinitalk_cli.footprint import all_parameters
from infinitalk_cli.hardware import Gpu, detect_hardware
from infinitalk_cli.job import Job
from infinitalk_cli.job_list import fill_name
from infinitalk_cli.options import DEFAULT_TEACACHE_THRESHOLD, GenerateOptions
from infinitalk_cli.options_job import read_options_job, with_sound_of
from infinitalk_cli.options_media import voice_files
from infinitalk_cli.options_record import OPTION_OF_KEY, told_options
from infinitalk_cli.profiles import AUTO, Engine, Profile
from infinitalk_cli.request import (
    GenerateRequest,
    check_lasting,
    check_request,
    check_shares,
    is_begun,
    parse_lora,
    usual_color_strength,
)
from infinitalk_cli.run_choice import (
    RunChoice,
    Said,
    choose_run,
    gpus_of,
    read_sizes,
    refuse_gpuless,
    with_weights_there,
)
from infinitalk_cli.run_loras import loras_of_run, named_lora, parameters_beside
from infinitalk_cli.settings_files import KEYS, Setting, read_settings
from infinitalk_cli.stored_form import is_stored_as_computed
from infinitalk_cli.voices import VoiceFiles
from infinitalk_cli.weights import choose_engine, find_weights_dir, locate

AnyOptions = TypeVar("AnyOptions", bound=GenerateOptions)

LARGEST_RANDOM_SEED = 2**31
"""A random seed stays short enough to be typed again."""


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
    options = with_sound_of(job, options)
    run = choose_run(options_said(options), detect_hardware())
    demo = run.base.demo_weights and options.weights_dir is None
    weights_dir = None if demo else find_weights_dir(options.weights_dir)
    run = with_weights_there(run, weights_dir, num_speakers=job.num_speakers)
    request = request_of(options, job, run, weights_dir)
    lenient = options.dry_run or options.skip_existing  # a dry run writes nothing; what is there, is looked at later
    (check_lasting if lenient else check_request)(request)
    refuse_gpuless(run)
    prepared = PreparedRun(request, run, gpus_of(run, request.num_gpus))
    if weights_dir is not None:
        prepared = with_files(prepared, weights_dir, may_lack=options.dry_run)
    return replace(prepared, request=with_loras_counted(prepared.request))


def with_name_filled(options: AnyOptions) -> AnyOptions:
    """The options with the fields in the name that they give the video filled in, as for the one job of a list.

    Raises: InputError: for a field that there is not, or a brace alone.
    """
    template = str(options.output)
    if "output" not in options.given or not {"{", "}"} & set(template):
        return options
    source, seed = options.input_json or options.image or options.video, a_seed(options)
    profile = str(options_said(options).value("profile", AUTO))
    fields = {"stem": source.stem if source else "talk", "index": 1, "seed": seed, "profile": profile}
    return replace(options, seed=seed, output=Path(fill_name(template, fields)))


def leaving_finished(options: AnyOptions) -> AnyOptions:
    """The options; where --resume finds a finished video and no pieces, as with --skip-existing."""
    is_finished = options.output.is_file() and not is_begun(options.output)
    return replace(options, skip_existing=True) if options.resume and is_finished and not options.overwrite else options


def request_of(options: GenerateOptions, job: Job, run: RunChoice, weights_dir: Path | None) -> GenerateRequest:
    """What the options ask of the engine, with the LoRAs that they name alone."""
    engine = engine_of(options, job, run, weights_dir)
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
        seed=a_seed(options),
        device=options.device,
        loras=tuple(parse_lora(text, named_lora(weights_dir)) for text in options.lora or ()),
        max_seconds=options.max_seconds,
        crf=options.crf,
        apg=options.apg,
        step_cache_threshold=threshold if options.teacache_threshold is None else options.teacache_threshold,
        color_strength=usual_color_strength(job)[0] if options.color_strength is None else options.color_strength,
        reference_by_index=options.reference_by_index,
        source=options.source_wishes,
        sound=options.sound_wishes,
        voice=options.voice_wishes,
        voice_files=voices_of_run(options, job, run),
        resident_parameters=resident_parameters(profile),
        convert=not options.no_convert,
        num_gpus=options.gpus,
        chunks=options.chunk_wishes,
        picture=options.picture_wishes,
    )
    return replace(request, told=told_options(options, run, request))


def voices_of_run(options: GenerateOptions, job: Job, run: RunChoice) -> VoiceFiles | None:
    """What the texts of the job are spoken with.

    Raises: as `voice_files`; for the demo of a machine with espeak-ng, the hint names the command that takes this one.
    """
    try:
        return voice_files(job, options.voice or (), find_weights_dir(options.weights_dir))
    except (EnvironmentUnfitError, WeightsError) as error:
        if run.base.demo_weights and options.text and not job.dialogue and espeak_here():
            picture = f"--image {shlex.quote(str(options.image))} " if options.image else ""
            error.hint += f'\n      or let espeak-ng speak: talk demo {picture}--text "..."'
        raise


def with_files(prepared: PreparedRun, weights_dir: Path, *, may_lack: bool) -> PreparedRun:
    """The run with the LoRAs that go with its weight files.

    Args: may_lack: of a dry run, which goes by published sizes where files are missing.
    Raises: InputError: if the GPUs can't share this transformer, or for a LoRA. WeightsError: if files are missing.
    """
    request = prepared.request
    if (sizes := read_sizes(weights_dir)) is not None:
        check_shares(request.num_gpus, sizes.num_heads)
    try:
        files = locate(
            weights_dir, num_speakers=request.job.num_speakers, quant=request.profile.quant, engine=request.engine
        )
    except WeightsError as error:
        if not may_lack:
            raise
        return replace(prepared, lacking=error.hint)
    loras = loras_of_run(request.loras, request.profile, files, weights_dir)
    reads = request.num_gpus == 1 and is_stored_as_computed(files, request.profile.dtype)  # several share the RAM
    profile = replace(request.profile, blocks_from_disk=reads)
    return replace(prepared, request=replace(request, loras=loras, profile=profile))


def with_loras_counted(request: GenerateRequest) -> GenerateRequest:
    """The request, whose profile knows how much memory its LoRAs take: none where they are merged into the weights."""
    if request.profile.lora_mode == "merge":
        return request
    return replace(request, profile=replace(request.profile, lora_parameters=parameters_beside(request.loras)))


def engine_of(options: GenerateOptions, job: Job, run: RunChoice, weights_dir: Path | None) -> Engine:
    """The engine that was asked for, else the one whose weights are there."""
    if options.engine:
        return options.engine.value
    if weights_dir is None:
        return "infinitetalk"
    return choose_engine(weights_dir, num_speakers=job.num_speakers, quant=run.profile("infinitetalk").quant)


def a_seed(options: GenerateOptions) -> int:
    """The seed that was asked for, or a random one."""
    return random.SystemRandom().randrange(LARGEST_RANDOM_SEED) if options.seed == -1 else options.seed


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
