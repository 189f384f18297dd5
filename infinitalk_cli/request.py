"""One run, ready to start: the job, the settled profile and everything else the engine must know.

The shell builds a `GenerateRequest`, `check_request` says everything that is wrong with it before anything heavy is
loaded, and the engine answers with a `GenerateResult`. Nothing is written here; the engine makes the output's folder
when the first frames are there.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from infinitalk_cli.errors import InputError
from infinitalk_cli.job import Job
from infinitalk_cli.media.part_lock import is_held
from infinitalk_cli.media.part_name import LOCK, holds_pieces, part_folder_of, part_path_of
from infinitalk_cli.profiles import Engine, Profile, profile_problems
from infinitalk_cli.speech_mark import is_marked_speech
from infinitalk_cli.voices import VoiceFiles
from infinitalk_cli.wishes import ChunkWishes, PictureWishes, SoundWishes, SourceWishes, VoiceWishes

COLOR_STRENGTH = {"picture": 1.0, "video": 0.5}
"""Of the colour correction, by what the source is. One picture's colours are held for good. Those of a video may
change: full strength would hold each chunk's for 2.9 s and then jump; half of it keeps small errors from adding up
(docs/experiments.md)."""

LARGEST_SEED = 2**63 - 1
LARGEST_CRF = 51
"""The worst picture that x264 can be asked for; 0 is lossless."""

MOST_GPUS = 8
"""In one host."""


Fate = Literal["new", "replaced", "resumed", "refused", "skipped"]
"""Of the output of a run, by what is there before it."""


@dataclass(frozen=True)
class LoraFile:
    """A LoRA to add to the transformer, `scale` times."""

    path: Path
    scale: float = 1.0


@dataclass(frozen=True)
class Told:
    """What the record of a video tells of how it was asked for, in JSON's values.

    `options`: of the command, by their field, with what was left open settled; `origins`: where each comes from.
    `repeats`: of a run that repeats a record, what decided the frames then.
    """

    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    origins: Mapping[str, str] = field(default_factory=dict[str, str])
    repeats: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class GenerateRequest:
    """One run.

    `resume`: go on with an earlier run that ended early, if there is one. `profile`: with the user's wishes in it.
    `weights_dir`: None for the demo weights. `max_seconds`: cut the video there, None for the length of the speech.
    `crf`: x264's quality, 0 to 51. `step_cache_threshold`: TeaCache, None for off. `color_strength`: of the colour
    correction, 0 to 1. `reference_by_index`: take a video's reference frames by number, as the reference program does,
    not by time. `source`, `sound`, `voice`: what is done with a source video, the recordings and
    text. `voice_files`: None where no text is spoken. `device`: "auto", "cpu",
    "cuda" or "cuda:N". `resident_parameters`: of the transformer's, so many may stay on the GPU, the others are
    streamed; None for as many as find room. `convert`: make compact weights first if that pays.
    `num_gpus`: of this machine, to share every pass. `chunks`: how they meet. `picture`: its size. `told`: for the
    record.
    """

    job: Job
    output: Path
    profile: Profile
    engine: Engine = "infinitetalk"
    weights_dir: Path | None = None
    overwrite: bool = False
    resume: bool = False
    seed: int = 42
    device: str = "auto"
    loras: tuple[LoraFile, ...] = ()
    max_seconds: float | None = None
    crf: int = 17
    apg: bool = False
    step_cache_threshold: float | None = None
    color_strength: float = 1.0
    reference_by_index: bool = False
    source: SourceWishes = field(default_factory=SourceWishes)
    sound: SoundWishes = field(default_factory=SoundWishes)
    voice: VoiceWishes = field(default_factory=VoiceWishes)
    voice_files: VoiceFiles | None = None
    resident_parameters: int | None = None
    convert: bool = True
    num_gpus: int = 1
    chunks: ChunkWishes = field(default_factory=ChunkWishes)
    picture: PictureWishes = field(default_factory=PictureWishes)
    told: Told = field(default_factory=Told)


@dataclass(frozen=True)
class GenerateResult:
    """What a run made. Sizes in pixels, times in seconds, peaks in bytes (None where not measured).

    `drift`: how far colours strayed and how much seams stand out, as `Drift.summary` has it. `record`: the file beside
    the video that tells all of this, None if it could not be written. `skipped`: nothing was left to do; the rest tells
    of the run that had made the video.
    """

    output: Path
    width: int
    height: int
    num_frames: int
    fps: int
    num_chunks: int
    elapsed_s: float
    ram_peak_bytes: int | None = None
    vram_peak_bytes: int | None = None
    drift: Mapping[str, float | int | None] = field(default_factory=dict[str, float | int | None])
    record: Path | None = None
    skipped: bool = False

    @property
    def duration_s(self) -> float:
        """Length of the video."""
        return self.num_frames / self.fps


def check_request(request: GenerateRequest) -> None:
    """Refuse what can't work. Raises: InputError: with every problem and the option to change."""
    _refuse([*profile_problems(request.profile), *_option_problems(request), *_output_problems(request)])


def check_lasting(request: GenerateRequest) -> None:
    """The same but for what is at the output's place, to which a dry run or --skip-existing has an answer."""
    lasting = _output_problems(request, may_be_taken=True)
    _refuse([*profile_problems(request.profile), *_option_problems(request), *lasting])


def check_settings(request: GenerateRequest) -> None:
    """The same without the output, which a preview has elsewhere."""
    _refuse([*profile_problems(request.profile), *_option_problems(request)])


def input_files(job: Job) -> list[Path]:
    """Every file that a job reads."""
    own = [path for speaker in job.speakers for path in (speaker.audio, speaker.mask) if path is not None]
    return [job.reference, *own]


def _refuse(problems: Sequence[str]) -> None:
    if len(problems) == 1:
        raise InputError(problems[0])
    if problems:
        raise InputError("\n  ".join([f"{len(problems)} options can't work:", *problems]))


def check_shares(num_gpus: int, num_heads: int) -> None:
    """Refuse a number of GPUs that can't have equally many attention heads. Raises: InputError: with those that can."""
    if num_heads % num_gpus:
        fitting = [str(number) for number in range(2, MOST_GPUS + 1) if num_heads % number == 0]
        raise InputError(
            f"--gpus {num_gpus}: the model's {num_heads} attention heads can't be divided equally among them",
            hint=f"--gpus {' or '.join(fitting)}" if fitting else "leave --gpus out",
        )


def parse_lora(text: str, find: Callable[[str], Path] = Path) -> LoraFile:
    """Read FILE or FILE:SCALE. Args: find: the file that FILE means.

    Raises: InputError: if the file is not there or the scale no number.
    """
    name, colon, tail = text.rpartition(":")
    is_scale = bool(colon) and re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)", tail) is not None
    path, scale = (find(name), float(tail)) if is_scale else (find(text), 1.0)
    if not path.is_file():
        raise InputError(
            f"--lora: no such file: {path}",
            hint="--lora FILE, or FILE:SCALE such as x.safetensors:0.8; or a name that `talk download --lora` takes",
        )
    return LoraFile(path, scale)


def _option_problems(request: GenerateRequest) -> Iterator[str]:
    if not 0 <= request.seed <= LARGEST_SEED:
        yield f"--seed must be from 0 to {LARGEST_SEED}, or -1 for a random one"
    if not 0 <= request.crf <= LARGEST_CRF:
        yield f"--crf must be from 0 (lossless) to {LARGEST_CRF} (worst), not {request.crf}"
    if not 0 <= request.color_strength <= 1:
        yield f"--color-strength must be from 0 to 1, not {request.color_strength:g}"
    if request.max_seconds is not None and not 0 < request.max_seconds < math.inf:
        yield f"--max-seconds must be above 0, not {request.max_seconds:g}"
    if request.step_cache_threshold is not None and not 0 < request.step_cache_threshold < math.inf:
        yield f"--teacache-threshold must be above 0, not {request.step_cache_threshold:g}"
    yield from request.source.problems(by_index=request.reference_by_index)
    job = request.job
    yield from request.sound.problems(num_recordings=len(job.recordings), is_video=job.is_video)
    yield from request.voice.problems()
    yield from request.chunks.problems()
    yield from request.picture.problems()
    if request.num_gpus < 1:
        yield f"--gpus must be at least 1, not {request.num_gpus}"
    if request.num_gpus > 1 and request.device not in ("auto", "cuda"):
        yield f"--gpus {request.num_gpus} does not go with --device {request.device}; --gpu N names the first GPU"
    if re.fullmatch(r"auto|cpu|cuda(:\d+)?", request.device) is None:
        yield f"--device must be auto, cpu, cuda or cuda:N, not {request.device!r}"


def _output_problems(request: GenerateRequest, *, may_be_taken: bool = False) -> Iterator[str]:
    output = request.output
    try:
        there = output.exists()
    except (OSError, ValueError) as error:  # too long a name, or a folder that may not be looked into
        yield f"the output {str(output)[:100]} is not a usable path: {getattr(error, 'strerror', error)}"
        return
    if output.is_dir() or not output.name:  # a folder has no place for the files beside it, and "." not even a name
        yield f"the output must end in .mp4, but {output} is a folder: name a file in it, such as {output / 'talk.mp4'}"
        return
    if output.suffix.lower() != ".mp4":
        yield f"the output must end in .mp4, not {output.name!r}"
    elif there and any(output.samefile(path) for path in run_files(request)):
        yield f"the output {output} is an input of the job"
    for path in kept_speech(request):
        if path.exists() and any(path.samefile(other) for other in run_files(request)):
            yield f"{path}, where the spoken text is kept, is an input of the job: -o names another"
    if is_held(part_folder_of(output) / LOCK):
        yield f"another run is writing {output}: wait for it, or name another file with -o"
    elif not may_be_taken:
        yield from _taken_places(request)
    part = part_path_of(output)
    if part.is_file() and any(part.samefile(path) for path in run_files(request)):
        yield f"{part} is an input of the job, and would be overwritten on the way to {output}: -o names another"
    if part_folder_of(output).is_file():
        yield f"{part_folder_of(output)} is a file, but the video grows in a folder of that name: -o names another"
    folder = next(path for path in output.resolve().parents if path.exists())  # a link is followed, not replaced
    if not folder.is_dir():
        yield f"the output folder can't be made: {folder} is a file"
    elif not os.access(folder, os.W_OK | os.X_OK):
        yield f"the output folder {folder} is not writable"


def is_begun(output: Path) -> bool:
    """Whether finished pieces of an earlier run are beside an output."""
    return holds_pieces(part_folder_of(output))


def _taken_places(request: GenerateRequest) -> Iterator[str]:
    """What is at the places that the run writes to and stays, as the request stands."""
    output, folder, inputs = request.output, part_folder_of(request.output), run_files(request)
    begun = is_begun(output)
    for path in kept_speech(request):
        if not path.is_file() or any(path.samefile(other) for other in inputs):
            continue  # an input there is told by itself
        if not is_marked_speech(path):
            yield (
                f"{path} is already there, and the spoken text would be kept under that name: it is no speech that "
                "talk made, so it is never replaced; -o names another video, or move that file"
            )
        elif not request.overwrite:
            yield (
                f"{path}, where the spoken text is kept, is already there: --overwrite replaces it, -o names another"
            )
    if request.overwrite:
        return
    if output.is_file() and not any(output.samefile(other) for other in inputs):
        nothing = ", and no begun run of it to go on with" if request.resume and not begun else ""
        yield f"{output} is already there{nothing}: --overwrite replaces it, -o names another"
    if begun and not request.resume:
        yield (
            f"{folder} holds finished pieces of an earlier run: --resume goes on from there, --overwrite drops them "
            f"and starts anew"
        )


def output_fate(request: GenerateRequest, *, is_done: bool = False) -> tuple[Fate, str]:
    """What a run would do about what is there, and how a dry run says it. `is_done`: the same job has made the output.

    Of a run that would be refused, `check_request` says why.
    """
    if is_done:
        return "skipped", f"note: {request.output} is there already, made by the same job: it would be left out"
    if any(_taken_places(request)):
        return "refused", ""
    if is_begun(request.output) and request.resume:
        return "resumed", f"note: --resume would go on behind what is in {part_folder_of(request.output)}"
    if any(_taken_places(replace(request, overwrite=False))):
        return "replaced", f"note: --overwrite would replace what is there: {request.output}"
    return "new", ""


def usual_color_strength(job: Job) -> tuple[float, str]:
    """The strength of a job's colour correction where nobody says it, and why."""
    kind = "video" if job.is_video else "picture"
    return COLOR_STRENGTH[kind], f"default of a {kind}"


def kept_speech(request: GenerateRequest) -> tuple[Path, ...]:
    """Where the speech that is made from text is kept: beside the video, a file for each speaker who has some."""
    spoken = request.job.read_aloud
    if len(spoken) == 1:
        return (request.output.with_suffix(".wav"),)
    return tuple(request.output.with_suffix(f".s{number + 1}.wav") for number in spoken)


def run_files(request: GenerateRequest) -> list[Path]:
    """Every file of the user's that a run reads."""
    return [*input_files(request.job), *request.sound.files]
