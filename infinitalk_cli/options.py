"""The options of `talk generate`, as Typer shows them: the fields of dataclasses.

`options_job.py` reads the job that they name, `prepare.py` makes a `GenerateRequest` of them.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from infinitalk_cli.console_options import WEIGHTS_DIR_DEFAULT, ProgressOptions, output_option
from infinitalk_cli.job import DEFAULT_PROMPT
from infinitalk_cli.job_record import JobRecord
from infinitalk_cli.options_media import ChunkOptions, DubbingOptions, PictureOptions, SoundOptions, VoiceOptions
from infinitalk_cli.options_values import (
    Attention,
    AudioType,
    Engine,
    LoraMode,
    PresetName,
    Quant,
    Size,
    TextEncoderPlace,
    VaeDtype,
    VaeTiling,
)

DEFAULT_TEACACHE_THRESHOLD = 0.2

input_option = partial(typer.Option, rich_help_panel="Input")
sampling_option = partial(typer.Option, rich_help_panel="Quality and speed")
machine_option = partial(typer.Option, rich_help_panel="Weights and machine")
tuning_option = partial(typer.Option, rich_help_panel="Fine tuning")

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
    image: Annotated[Path | None, input_option(help="Picture of the speaker.")] = None
    video: Annotated[
        Path | None,
        input_option(
            help="Video of the speaker, to be dubbed: made anew after a frame of it every 2.9 s; not its lips alone "
            "are changed (docs/dubbing.md)."
        ),
    ] = None
    audio: Annotated[
        list[str] | None,
        input_option(
            metavar="FILE",
            help="Speech: a sound file, or a video with sound. Twice for two speakers, the left one first; "
            "'none' for a silent one.",
        ),
    ] = None
    prompt: Annotated[str | None, input_option(help="What the video shows.", show_default=DEFAULT_PROMPT)] = None
    negative_prompt: Annotated[
        str | None, input_option(help="What it must not show; '' for nothing.", show_default="built in")
    ] = None
    box: Annotated[
        list[str] | None,
        input_option(
            metavar="L,T,R,B",
            help="Left, top, right and bottom of a speaker, in pixels of the picture; once per --audio. With one "
            "--audio this face speaks, and everyone else keeps silent.",
            show_default="left and right half",
        ),
    ] = None
    mask: Annotated[
        list[Path] | None,
        input_option(metavar="FILE", help="The same as a picture, white where the speaker is; per --audio."),
    ] = None
    turns: Annotated[
        Path | None,
        input_option(
            metavar="FILE.srt", help="Subtitles that say who speaks when in one --audio; lines begin with 'Anna: '."
        ),
    ] = None
    audio_type: Annotated[
        AudioType | None,
        input_option(help="Two voices at once (para) or one after the other (add).", show_default="para"),
    ] = None
    output: Annotated[
        Path,
        output_option(
            "--output",
            "-o",
            help="The mp4 to write. With several jobs a name for each, of {stem}, {index}, {seed} and {profile}.",
            show_default="output.mp4; several: {stem}.mp4",
        ),
    ] = DEFAULT_OUTPUT
    skip_existing: Annotated[
        bool, output_option("--skip-existing", help="Leave out a video that the same job has made.")
    ] = False
    overwrite: Annotated[bool, output_option("--overwrite", help="Replace the output.")] = False
    resume: Annotated[bool, output_option("--resume", help="Go on with this video's run that ended early, if any.")] = (
        False
    )
    max_seconds: Annotated[float | None, output_option(help="Stop there.", show_default="length of the speech")] = None
    crf: Annotated[int, output_option(help="H.264 quality: 0 lossless, 51 worst.")] = 17
    dry_run: Annotated[bool, output_option("--dry-run", help="Say what would run, and start nothing.")] = False
    profile: Annotated[
        str | None,
        sampling_option(
            metavar="NAME",
            help="A card's, such as rtx-4090; demo: small built-in weights. `talk profiles ls` has all.",
            show_default="auto: what suits this machine",
        ),
    ] = None
    preset: Annotated[
        PresetName | None, sampling_option(help="How long it may take.", show_default="the profile's steps")
    ] = None
    size: Annotated[Size | None, sampling_option(help="Set of picture sizes.")] = None
    num_steps: Annotated[int | None, sampling_option("--steps", help="Denoising steps.")] = None
    seed: Annotated[int, sampling_option(help="Of the noise; -1 for a random one.")] = 42
    lora: Annotated[
        list[str] | None,
        sampling_option(
            metavar="FILE[:SCALE]",
            help="Add a LoRA: a file, or a name that `talk download --lora` takes. May be repeated.",
        ),
    ] = None
    lora_mode: Annotated[
        LoraMode | None,
        sampling_option(
            help="Merge LoRAs into the weights, or keep them beside: 8-bit weights then lose nothing of them, for a "
            "little time and memory.",
            show_default="merge",
        ),
    ] = None
    teacache: Annotated[bool, sampling_option("--teacache", help="Skip steps that change little.")] = False
    teacache_threshold: Annotated[
        float | None,
        sampling_option(help="How much is little; implies --teacache.", show_default=str(DEFAULT_TEACACHE_THRESHOLD)),
    ] = None
    weights_dir: Annotated[
        Path | None, machine_option(help="Folder of the weights.", show_default=WEIGHTS_DIR_DEFAULT)
    ] = None
    no_convert: Annotated[bool, machine_option("--no-convert", help="Make no compact weights before the run.")] = False
    quant: Annotated[Quant | None, machine_option(help="8-bit weights.")] = None
    engine: Annotated[Engine | None, machine_option(help="Whose loop.", show_default="the weights' own")] = None
    gpu: Annotated[
        str | None, machine_option(metavar="N", help="Number or UUID of the GPU.", show_default="the fittest")
    ] = None
    gpus: Annotated[
        int,
        machine_option(metavar="N", min=1, help="GPUs of this machine that share the work on one video: 2, 4, 5 or 8."),
    ] = 1
    device: Annotated[str, machine_option(help="auto, cpu, cuda or cuda:N.")] = "auto"
    num_persistent_param_in_dit: Annotated[
        int | None,
        machine_option(
            metavar="N",
            help="Parameters of the transformer that stay on the GPU; the others are streamed. 0: least memory.",
            show_default="as many as fit",
        ),
    ] = None
    attention: Annotated[
        Attention | None,
        machine_option(
            help="Attention kernel. 8bit is the fastest there is, less exact; int8, fp8 and sage name one.",
            show_default="auto: the fastest exact one",
        ),
    ] = None
    vae_dtype: Annotated[
        VaeDtype | None,
        machine_option(
            help="Numbers to encode and decode pictures with on a GPU. 16 bits take half the time and memory; float16 "
            "gives float32's pictures to a level in 255 (docs/profiles.md).",
            show_default="auto: float16, wider if a picture needs it",
        ),
    ] = None
    vae_tiling: Annotated[
        VaeTiling | None,
        machine_option(
            help="Decode pictures in tiles: slower, in less GPU memory.",
            show_default="auto: if they don't fit otherwise",
        ),
    ] = None
    text_encoder: Annotated[
        TextEncoderPlace | None,
        machine_option(
            help="Where the prompt is read: whole on the GPU, streamed to it, or on the CPU.",
            show_default="auto: whole if there is room",
        ),
    ] = None
    shift: Annotated[float | None, tuning_option(help="Schedule shift.")] = None
    text_guidance: Annotated[float | None, tuning_option(help="Text guidance scale; 1 is off, and faster.")] = None
    audio_guidance: Annotated[float | None, tuning_option(help="Audio guidance scale; 1 is off, and faster.")] = None
    apg: Annotated[bool, tuning_option("--apg", help="Adaptive projected guidance.")] = False
    frames: Annotated[int | None, tuning_option(help="Frames of a chunk, 4n + 1.")] = None
    motion_frames: Annotated[int | None, tuning_option(help="Frames carried into the next chunk, 4n + 1.")] = None
    color_strength: Annotated[
        float | None,
        tuning_option(
            help="Hold the picture's colours: 0 off, 1 full.", show_default="a picture's 1, those of a video 0.5"
        ),
    ] = None
    reference_by_index: Annotated[
        bool,
        tuning_option(
            "--reference-by-index",
            help="Take a video's reference frames by number, not by time, as the original program does.",
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
