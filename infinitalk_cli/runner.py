"""The whole pipeline on one page: a request in, an mp4 out.

Everything a user may have got wrong is read before a network is loaded. Each network lives only as long as its stage:
the text encoder is gone before the transformer comes. Frames go to the writer chunk by chunk, so memory does not grow
with the video.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import torch
from torch import nn

from infinitalk_cli.convert_when_it_pays import convert_what_pays
from infinitalk_cli.demo import ensure_demo_weights
from infinitalk_cli.errors import (
    DoesNotFitError,
    EnvironmentUnfitError,
    InputError,
    InterruptedRunError,
    OutOfGpuMemoryError,
)
from infinitalk_cli.interrupts import held_interrupts
from infinitalk_cli.job import Job
from infinitalk_cli.kernel_wish import wished_kernel
from infinitalk_cli.media.color import match_color
from infinitalk_cli.media.image import BUCKETS
from infinitalk_cli.media.reference import VIDEO_FPS, Reference, open_reference
from infinitalk_cli.media.speech import SpeechTracks, prepare_speech
from infinitalk_cli.media.writer import VideoWriter
from infinitalk_cli.memory.lora import Lora, LoraReport, read_lora
from infinitalk_cli.memory.offload import (
    BlockOffloader,
    StreamedStage,
    resident_for_bytes,
    resident_for_parameters,
    visiting,
)
from infinitalk_cli.memory.residency import Residency
from infinitalk_cli.models.attention import use_kernel
from infinitalk_cli.models.audio_encoder import num_audio_frames
from infinitalk_cli.models.dit import DiT
from infinitalk_cli.models.text_encoder import TextEncoder
from infinitalk_cli.models.vae import VideoVAE
from infinitalk_cli.networks import (
    build_audio_encoder,
    build_dit,
    build_image_encoder,
    build_text_encoder,
    build_vae,
    dit_size_bytes,
)
from infinitalk_cli.profiles import TextEncoderPlace
from infinitalk_cli.progress import OnProgress, ignore_progress
from infinitalk_cli.request import GenerateRequest, GenerateResult
from infinitalk_cli.run_progress import PREPARATION, RunProgress
from infinitalk_cli.sampling.conditioning import AudioEmbeds, Conditioning, ReversedTail
from infinitalk_cli.sampling.guidance import is_off
from infinitalk_cli.sampling.settings import ApgSettings, InvalidInput, SamplingSettings
from infinitalk_cli.sampling.speaker_masks import speaker_masks
from infinitalk_cli.sampling.stream import Chunk, Networks, generate_chunks
from infinitalk_cli.weights import WeightFiles, locate

NEGATIVE_PROMPT = (
    "garish or burnt-out colours, overexposed, frozen picture, blurred details, subtitles, text, painting, drawing, "
    "grey veil, low quality, compression artefacts, ugly, mutilated, extra fingers, fused fingers, malformed hands, "
    "badly drawn face, deformed limbs, cluttered background, three legs, crowd in the background, walking backwards"
)
"""What a video must not show, where the user does not say. Unused when text guidance is off."""

BESIDE_TRANSFORMER_BYTES = 14_000_000_000
"""What else is on the GPU while the whole transformer stays there: CLIP, the VAE, and its decoding at 480."""

OnNote = Callable[[str], None]
OnStage = Callable[[nn.Module], AbstractContextManager[object]]


def generate(
    request: GenerateRequest, on_progress: OnProgress = ignore_progress, on_note: OnNote = lambda _: None
) -> GenerateResult:
    """Make the video of a request; `on_note` is told what a user should know but need not act on.

    Raises: InputError, WeightsError, EnvironmentUnfitError: before anything is written.
    MediaError, OutOfGpuMemoryError, InterruptedRunError: on the way; the message says where the finished part is.
    """
    job, device = request.job, pick_device(request.device)
    progress = RunProgress(on_progress, on_gpu=device.type == "cuda")
    with foreseen_errors(), scratch_dir() as work_dir:
        # 1. What is said, and what is seen.
        progress.stage("speech", "reading the sound")
        speech = prepare_speech([speaker.audio for speaker in job.speakers], work_dir, job.audio_type)
        if speech.silent:
            on_note("note: the sound is silent, so nobody will speak")
        progress.stage("reference", "reading the picture")
        reference = open_reference(
            job.reference,
            BUCKETS[request.profile.size],
            is_video=job.is_video,
            by_index=request.reference_by_index,
        )
        loras = [read_lora(lora.path, lora.scale) for lora in request.loras]
        settings = sampling_settings(request, num_output_frames(speech.duration_s))
        masks = place_speakers(job, reference)

        # 2. The networks, and what they make of it.
        files = convert_first(request, find_weights(request), device, on_progress, on_note)
        progress.stage("text", "encoding the prompt")
        text, null_text = encode_prompts(job, files, settings, device, request.profile.text_encoder)
        progress.stage("weights", "loading the networks")
        conditioning = Conditioning(
            text=text,
            null_text=null_text,
            audio=embed_speech(files, speech),
            reference=reference,
            speaker_masks=masks,
            height=reference.crop.height,
            width=reference.crop.width,
        )
        networks = load_networks(request, files, loras, device, on_note)
        kernel = wished_kernel(request.profile.attention, device, on_note)

        # 3. Chunk by chunk into the file.
        progress.begin_video()
        chunks = generate_chunks(networks, conditioning, settings, on_step=progress.step)
        writer = VideoWriter(
            request.output,
            width=conditioning.width,
            height=conditioning.height,
            crf=request.crf,
            sound=speech.sound_track,
            metadata=describe(request),
            overwrite=request.overwrite,
        )
        with use_kernel(kernel):
            num_chunks = write_chunks(writer, chunks)
    return GenerateResult(
        output=request.output,
        width=conditioning.width,
        height=conditioning.height,
        num_frames=writer.num_frames,
        fps=VIDEO_FPS,
        num_chunks=num_chunks,
        elapsed_s=progress.elapsed_s,
        ram_peak_bytes=progress.ram_peak_bytes,
        vram_peak_bytes=progress.vram_peak_bytes,
    )


@contextmanager
def scratch_dir() -> Generator[Path]:
    """A folder for the prepared sound. Windows can't remove files that are still mapped; the system does that later."""
    with tempfile.TemporaryDirectory(prefix="talk-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def pick_device(wish: str) -> torch.device:
    """The device to compute on. Raises: EnvironmentUnfitError: if a GPU is asked for that torch can't use."""
    if wish == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(wish)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = f"{torch.cuda.device_count()} of them" if torch.cuda.is_available() else "none"
        raise EnvironmentUnfitError(
            f"--device {wish}: torch {torch.__version__} sees no such GPU, but {found}",
            hint="--device cpu computes without; `python -c 'import torch; print(torch.version.cuda)'` printing None "
            "means that this torch was built without CUDA",
        )
    return device


def num_output_frames(duration_s: Fraction) -> int:
    """Frames of a video as long as the sound."""
    return max(1, round(duration_s * VIDEO_FPS))


def sampling_settings(request: GenerateRequest, num_frames: int) -> SamplingSettings:
    """What the sampler is told. `num_frames`: of a video as long as the sound."""
    profile = request.profile
    if request.max_seconds is not None:
        num_frames = min(num_frames, max(1, round(request.max_seconds * VIDEO_FPS)))
    return SamplingSettings(
        engine=request.engine,
        bucket_set=profile.size,
        chunk_frames=profile.chunk_frames,
        motion_frames=profile.motion_frames,
        max_frames=num_frames,
        num_steps=profile.num_steps,
        shift=profile.shift,
        text_guidance_scale=profile.text_guidance_scale,
        audio_guidance_scale=profile.audio_guidance_scale,
        apg=ApgSettings() if request.apg else None,
        step_cache_threshold=request.step_cache_threshold,
        seed=request.seed,
        color_strength=request.color_strength,
    )


def place_speakers(job: Job, reference: Reference) -> torch.Tensor | None:
    """Where two speakers are in the picture; None for one."""
    if job.num_speakers == 1:
        return None
    boxes = [speaker.box for speaker in job.speakers if speaker.box is not None]
    return speaker_masks(reference.source_height, reference.source_width, reference.crop, boxes or None)


def find_weights(request: GenerateRequest) -> WeightFiles:
    """The weight files of the run; the demo's are made when they are not there yet."""
    return locate(
        request.weights_dir or ensure_demo_weights(),
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


def encode_prompts(
    job: Job,
    files: WeightFiles,
    settings: SamplingSettings,
    device: torch.device,
    place: TextEncoderPlace = "auto",
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Features of the prompt, and of the negative one if it plays a part. The encoder is gone afterwards."""
    encoder = build_text_encoder(files, dtype=text_dtype(device))
    with text_stage(encoder, device, place):
        text = encoder.encode(job.prompt).to(device)
        if is_off(settings.text_guidance_scale):
            return text, None
        negative = NEGATIVE_PROMPT if job.negative_prompt is None else job.negative_prompt
        return text, encoder.encode(negative).to(device)


def text_stage(encoder: TextEncoder, device: torch.device, place: TextEncoderPlace) -> AbstractContextManager[None]:
    """Have the text encoder compute where `place` says; of itself on a GPU block by block, as it is as large as a card.

    Streamed, its weights cross to the GPU once per prompt: no slower than moving it whole for the one or two prompts of
    a run.
    """
    if device.type != "cuda" or place == "cpu":
        return nullcontext()
    if place == "gpu":
        return Residency(device).on_stage(encoder)
    return visiting(encoder, list(encoder.model.encoder.block), device)


def embed_speech(files: WeightFiles, speech: SpeechTracks) -> tuple[AudioEmbeds, ...]:
    """Each speaker's features, computed window by window when a chunk asks for them, on the CPU."""
    encoder = build_audio_encoder(files)
    num_frames = num_output_frames(speech.duration_s)
    return tuple(
        ReversedTail(encoder.stream(waveform), max(0, num_frames - num_audio_frames(len(waveform))))
        for waveform in speech.waveforms
    )


def load_networks(
    request: GenerateRequest, files: WeightFiles, loras: Sequence[Lora], device: torch.device, on_note: OnNote
) -> Networks:
    """The networks of the video. A transformer that does not fit on the GPU is streamed to it block by block."""
    dtype = compute_dtype(request, device)
    on_gpu = device.type == "cuda"
    keep = on_gpu and request.resident_parameters is None and fits(dit_size_bytes(files, dtype), device)
    home = device if keep else torch.device("cpu")
    dit = build_dit(files, dtype=dtype, device=home, loras=loras, on_lora=lambda report: on_note(lora_note(report)))
    on_stage = Residency(device, keep=keep).on_stage
    return Networks(
        dit=dit,
        vae=load_vae(files, home, fast=on_gpu and not keep),
        image_encoder=build_image_encoder(files, dtype=torch.float16 if on_gpu else torch.float32, device=home),
        match_color=match_color,
        device=device,
        on_stage=stream_blocks(dit, request, device, on_stage, on_note) if on_gpu and not keep else on_stage,
    )


def load_vae(files: WeightFiles, home: torch.device, *, fast: bool) -> VideoVAE:
    """The VAE in float32, or `fast`: in bfloat16, in half the memory, 2 % off in the latents' norm."""
    if not fast:
        return build_vae(files, device=home)
    vae = build_vae(files, dtype=torch.bfloat16, device=home)
    vae.use_channels_last()
    return vae


def stream_blocks(
    dit: DiT, request: GenerateRequest, device: torch.device, on_stage: OnStage, on_note: OnNote
) -> OnStage:
    """Have `dit` stream the blocks that find no room on the GPU; other networks come and go as `on_stage` says."""
    blocks = list(dit.blocks)
    if request.resident_parameters is None:
        free_bytes, _ = torch.cuda.mem_get_info(device)
        num_resident = resident_for_bytes(blocks, free_bytes - BESIDE_TRANSFORMER_BYTES)
    else:
        num_resident = resident_for_parameters(dit, blocks, request.resident_parameters)
    offloader = BlockOffloader(blocks, device, num_resident=num_resident)
    on_note(f"{offloader.num_resident} of {len(blocks)} transformer blocks stay on the GPU, the others are streamed")
    if not offloader.is_pinned:
        on_note("the system refuses to lock that much RAM: streaming is slower, and computing waits for it")
    stage = StreamedStage(dit, offloader)
    return lambda module: stage.running() if module is dit else on_stage(module)


def fits(dit_bytes: int, device: torch.device) -> bool:
    """Whether the whole transformer and what runs beside it find room on the GPU."""
    free_bytes, _ = torch.cuda.mem_get_info(device)
    return dit_bytes + BESIDE_TRANSFORMER_BYTES <= free_bytes


def compute_dtype(request: GenerateRequest, device: torch.device) -> torch.dtype:
    """The transformer's dtype: what the profile says, or what the device is good at."""
    if request.profile.dtype == "auto":
        return text_dtype(device)
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[request.profile.dtype]


def text_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 on a GPU; UMT5 overflows float16."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def lora_note(report: LoraReport) -> str:
    """What a LoRA did, in a line."""
    skipped = f", {len(report.skipped)} tensors had no place" if report.skipped else ""
    return f"LoRA {report.path.name}: {report.num_matched} tensors applied{skipped}"


def describe(request: GenerateRequest) -> dict[str, str]:
    """Metadata of the mp4: enough to make it again."""
    profile = request.profile
    how = f"talk: {request.engine}, {profile.name}, seed {request.seed}, {profile.num_steps} steps"
    return {"comment": how, "description": request.job.prompt}


def write_chunks(writer: VideoWriter, chunks: Iterator[Chunk]) -> int:
    """Write every chunk as it comes and finish the file; the number of chunks.

    Raises: InterruptedRunError: after Ctrl-C; the chunks done make the video.
    """
    num_chunks = 0
    with writer:
        try:
            for chunk in chunks:
                with held_interrupts():
                    writer.write(chunk.frames)
                    num_chunks += 1
        except KeyboardInterrupt as interrupt:
            if not writer.num_frames:
                raise InterruptedRunError("stopped before the first chunk was done; nothing was written") from interrupt
            finish_undisturbed(writer)
            seconds = writer.num_frames / VIDEO_FPS
            raise InterruptedRunError(f"stopped; the first {seconds:.2f} s are in {writer.path}") from interrupt
        finish_undisturbed(writer)
    return num_chunks


def finish_undisturbed(writer: VideoWriter) -> None:
    """Complete the file whatever is pressed: there is nothing left to stop, but a video to lose."""
    with suppress(KeyboardInterrupt), held_interrupts():
        writer.finish()


@contextmanager
def foreseen_errors() -> Generator[None]:
    """Say failures of the libraries and the sampler in a user's words."""
    try:
        yield
    except InvalidInput as error:
        raise InputError(error.message, hint=error.hint) from error
    except torch.OutOfMemoryError as error:
        hint = "use 8-bit weights (--quant fp8 or int8), a smaller --size, or fewer --frames; close other GPU programs"
        raise OutOfGpuMemoryError(f"the GPU has too little memory: {first_line(error)}", hint=hint) from error
    except MemoryError as error:
        hint = "close other programs, or use 8-bit weights (--quant fp8 or int8)"
        raise DoesNotFitError("this computer has too little memory (RAM)", hint=hint) from error


def first_line(error: BaseException) -> str:
    """What an exception says, without what follows in further lines."""
    return (str(error).splitlines() or [type(error).__name__])[0]
