"""The whole pipeline on one page: a request in, an mp4 out.

Everything a user may have got wrong is read before a network is loaded. Each network lives only as long as its stage:
the text encoder is gone before the transformer comes. Frames go to the writer chunk by chunk, so memory does not grow
with the video.
"""

from __future__ import annotations

import tempfile
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from infinitalk_cli.convert_when_it_pays import convert_what_pays
from infinitalk_cli.demo_package import locate_demo
from infinitalk_cli.errors import EnvironmentUnfitError, InputError
from infinitalk_cli.kernel_wish import attention_of_run, trying
from infinitalk_cli.media.drift import Drift
from infinitalk_cli.media.part_folder import PartFolder
from infinitalk_cli.media.reference import VIDEO_FPS
from infinitalk_cli.media.segments import Picture
from infinitalk_cli.media.writer import VideoWriter
from infinitalk_cli.memory.allocator import use_growing_segments
from infinitalk_cli.networks import read_dit_sizes
from infinitalk_cli.progress import OnNote, OnProgress, ignore_progress
from infinitalk_cli.request import GenerateRequest, GenerateResult
from infinitalk_cli.run_batch import WarmNetworks
from infinitalk_cli.run_dtypes import compute_dtype
from infinitalk_cli.run_errors import foreseen_errors
from infinitalk_cli.run_inputs import Inputs, make_conditioning, read_inputs
from infinitalk_cli.run_networks import load_networks
from infinitalk_cli.run_progress import PREPARATION, RunProgress
from infinitalk_cli.run_prompts import encode_prompts
from infinitalk_cli.run_record import Making, keep_record, repetition_differences
from infinitalk_cli.run_resume import Resumed, begin_or_resume, job_identity, save_carried, told_files
from infinitalk_cli.run_team import open_team
from infinitalk_cli.run_transformer import NetworkSources
from infinitalk_cli.run_vae import numbers_of
from infinitalk_cli.run_voice import keep_tracks
from infinitalk_cli.run_writing import write_chunks
from infinitalk_cli.sampling.stream import Chunk, generate_chunks
from infinitalk_cli.weights import WeightFiles, locate

DEMO_THREADS = 1
"""That many serve the demo's small networks on a CPU: `talk demo` took 24 s with one, 71 s with two busy ones."""


def generate(
    request: GenerateRequest,
    on_progress: OnProgress = ignore_progress,
    on_note: OnNote = lambda _: None,
    warm: WarmNetworks | None = None,
) -> GenerateResult:
    """Make the video of a request; `on_note` is told what a user should know but need not act on.

    Args: warm: the networks of earlier requests, which are used again where they are the same.
    Raises: InputError, WeightsError, EnvironmentUnfitError: before anything is written.
    MediaError, OutOfGpuMemoryError, InterruptedRunError: on the way; the message says where the finished part is.
    """
    device = pick_device(request.device)
    progress = RunProgress(on_progress, on_gpu=device.type == "cuda")
    with foreseen_errors(), few_threads(request, device), scratch_dir() as work_dir, ExitStack() as at_end:
        # 1. What is said, and what is seen.
        inputs = read_inputs(request, device, work_dir, progress, on_note)

        # 2. The networks, and what they make of it.
        files = convert_first(request, find_weights(request), device, on_progress, on_note)
        folder = at_end.enter_context(PartFolder(request.output))
        refuse_what_came_meanwhile(request)
        making = Making(request, files, device, job_identity(request, files, device, inputs.cuts))
        begun = begin_or_resume(
            folder, making.identity, told_files(request), resume=request.resume, overwrite=request.overwrite
        )
        if begun.note:
            on_note(begun.note)
        if other := repetition_differences(request, making.identity):
            on_note(f"note: it will be another video than the record's: {other}")
        progress.stage("text", "encoding the prompt")
        prompts = encode_prompts(request, files, inputs.settings, device, warm.others if warm else ())
        progress.stage("weights", "loading the networks")
        tried = at_end.enter_context(trying(request.profile.attention, device, read_dit_sizes(files).head_dim))
        share = at_end.enter_context(open_team(request, files, device, foreseen_errors))
        load = warm.load if warm else load_networks
        networks = load(NetworkSources(request, files, inputs.loras, device), inputs.shape, on_note)
        conditioning = make_conditioning(inputs, prompts, files, close_mouth=request.sound.close_mouth)
        networks = share(networks)

        # 3. Chunk by chunk into the file.
        progress.begin_video()
        chunks = generate_chunks(networks, conditioning, inputs.settings, on_step=progress.step, resume=begun.carried)
        with attention_of_run(tried(), networks.dit, device, on_note):
            written = write_video(making, folder, begun, inputs, chunks, on_note)
        if complaint := written.drift.complaint(VIDEO_FPS):
            on_note(f"note: {complaint}; docs/long-videos.md has what mends it")
        for path in keep_tracks(request, inputs.job):
            on_note(f"the speech is kept in {path}")
    return keep_result(making, inputs, written, numbers_of(networks.vae), progress, on_note)


@dataclass(frozen=True)
class Written:
    """What a run has written. `num_frames`: of the whole video; `num_chunks`: made by this run, not by the one that it
    goes on with; `drift`: how far the chunks strayed from the picture."""

    num_frames: int
    num_chunks: int
    drift: Drift


@contextmanager
def scratch_dir() -> Generator[Path]:
    """A folder for the prepared sound. Windows can't remove files that are still mapped; the system does that later."""
    with tempfile.TemporaryDirectory(prefix="talk-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@contextmanager
def few_threads(request: GenerateRequest, device: torch.device) -> Generator[None]:
    """The demo's networks are so small that more threads cost more than they bring where others compute, too.

    And so the same job gives the same frames, however many cores there are.
    """
    before = torch.get_num_threads()
    if device.type == "cpu" and request.weights_dir is None:
        torch.set_num_threads(min(before, DEMO_THREADS))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def pick_device(wish: str) -> torch.device:
    """The device to compute on. Raises: EnvironmentUnfitError: if a GPU is asked for that torch can't use."""
    use_growing_segments()
    if wish == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(wish)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        found = f"no such GPU: it sees {count}, counted from 0" if count else "no GPU"
        hint = "`talk doctor` says what is missing; --device cpu computes without"
        if torch.version.cuda is None:
            mend = "python -m pip install uv && uv pip install --upgrade --torch-backend=auto torch"
            hint = f"this torch was built without CUDA: {mend}; {hint}"
        raise EnvironmentUnfitError(f"--device {wish}: torch {torch.__version__} sees {found}", hint=hint)
    return device


def find_weights(request: GenerateRequest) -> WeightFiles:
    """The weight files of the run."""
    if request.weights_dir is None:
        speakers, quant = request.job.num_speakers, request.profile.quant
        return locate_demo(num_speakers=speakers, engine=request.engine, quant=quant)
    return locate(
        request.weights_dir,
        num_speakers=request.job.num_speakers,
        quant=request.profile.quant,
        engine=request.engine,
    )


def convert_first(
    request: GenerateRequest, files: WeightFiles, device: torch.device, on_progress: OnProgress, on_note: OnNote
) -> WeightFiles:
    """The files of the run after a conversion, if one pays. A run in float32 needs the published values unrounded."""
    folder, num_speakers = request.weights_dir, request.job.num_speakers
    if not request.convert or folder is None or compute_dtype(request, device) == torch.float32:
        return files
    begun = PREPARATION["reference"]
    made = convert_what_pays(
        folder,
        files,
        num_speakers=num_speakers,
        on_note=on_note,
        on_progress=lambda news: on_progress(replace(news, fraction=begun)),
    )
    return find_weights(request) if made else files


def refuse_what_came_meanwhile(request: GenerateRequest) -> None:
    """Another run may have finished this video since the request was checked. Raises: InputError: if so."""
    if request.output.exists() and not request.overwrite:
        raise InputError(
            f"{request.output} came to be there meanwhile", hint="--overwrite replaces it, -o names another file"
        )


def write_video(
    making: Making, folder: PartFolder, begun: Resumed, inputs: Inputs, chunks: Iterator[Chunk], on_note: OnNote
) -> Written:
    """Write the chunks and the sound."""
    drift = begun.drift

    def keep(chunk: Chunk) -> None:
        nonlocal drift
        drift = drift.after(chunk.frames, chunk.reference, chunk.start, continues=chunk.continues)
        save_carried(folder, chunk.carried, writer.num_frames, drift)

    crop, request = inputs.reference.crop, making.request
    writer = VideoWriter(
        folder,
        Picture(crop.height, crop.width, VIDEO_FPS, request.crf),
        sound=inputs.sound,
        metadata={"comment": making.comment(), "description": request.job.prompt},
        overwrite=request.overwrite,
        num_frames=begun.num_frames,
    )
    num_chunks = write_chunks(writer, chunks, keep, on_note)
    return Written(writer.num_frames, num_chunks, drift)


def keep_result(
    making: Making, inputs: Inputs, written: Written, vae_dtype: str, progress: RunProgress, on_note: OnNote
) -> GenerateResult:
    """What was made, and its record beside it; a record that can't be written spoils no video."""
    crop, output = inputs.reference.crop, making.request.output
    result = GenerateResult(
        output=output,
        width=crop.width,
        height=crop.height,
        num_frames=written.num_frames,
        fps=VIDEO_FPS,
        num_chunks=written.num_chunks,
        elapsed_s=progress.elapsed_s,
        ram_peak_bytes=progress.ram_peak_bytes,
        vram_peak_bytes=progress.vram_peak_bytes,
        drift=written.drift.summary(),
    )
    try:
        return replace(result, record=keep_record(output, making.record(written.drift, progress, result, vae_dtype)))
    except OSError as error:
        on_note(f"note: the video is done, but its record could not be written: {error.strerror or error}")
        return result
