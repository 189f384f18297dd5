"""The options of `talk generate`, as Typer shows them: the fields of dataclasses.

`options_job.py` reads the job that they name, `prepare.py` makes a `GenerateRequest` of them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from infinitalk_cli.console_options import OUTPUT, ProgressOptions
from infinitalk_cli.job import DEFAULT_PROMPT
from infinitalk_cli.job_record import JobRecord
from infinitalk_cli.options_media import ChunkOptions, DubbingOptions, PictureOptions, SoundOptions, VoiceOptions
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

DEFAULT_TEACACHE_THRESHOLD = 0.2

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
