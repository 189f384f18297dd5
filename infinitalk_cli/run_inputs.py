"""What a user gave for a video, read before a network is loaded, and what the video follows of it.

Everything that may be wrong is found here, at the cost of seconds. Prompts come in encoded: that takes a network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from infinitalk_cli.footprint import JobShape
from infinitalk_cli.job import Job
from infinitalk_cli.media.reference import VIDEO_FPS, Reference, open_reference
from infinitalk_cli.media.sound_track import SoundTrack
from infinitalk_cli.media.speech import SpeechTracks
from infinitalk_cli.memory.lora import Lora, read_lora
from infinitalk_cli.places import speaker_areas
from infinitalk_cli.progress import OnNote
from infinitalk_cli.request import GenerateRequest
from infinitalk_cli.run_plan import refuse_late_turns, short_note, sizes_of
from infinitalk_cli.run_progress import RunProgress
from infinitalk_cli.run_scenes import scene_cuts, source_time
from infinitalk_cli.run_speech import embed_speech, num_output_frames, read_speech
from infinitalk_cli.run_voice import speak_job
from infinitalk_cli.sampling.conditioning import Conditioning
from infinitalk_cli.sampling.settings import ApgSettings, SamplingSettings
from infinitalk_cli.sampling.speaker_masks import speaker_masks
from infinitalk_cli.weights import WeightFiles


@dataclass(frozen=True)
class Inputs:
    """What the user gave, read. `job`: with every text spoken. `sound`: of the mp4. `masks`: where two speakers are
    in the picture, None for one. `cuts`: first frames of the source's scenes."""

    job: Job
    speech: SpeechTracks
    sound: SoundTrack | None
    reference: Reference
    loras: Sequence[Lora]
    settings: SamplingSettings
    masks: torch.Tensor | None
    cuts: tuple[int, ...]

    @property
    def shape(self) -> JobShape:
        """What of the job decides the memory it takes."""
        crop, settings = self.reference.crop, self.settings
        num_frames = settings.max_frames or settings.chunk_frames
        return JobShape(crop.width, crop.height, num_frames, len(self.speech.waveforms), VIDEO_FPS)


def read_inputs(
    request: GenerateRequest, device: torch.device, work_dir: Path, progress: RunProgress, on_note: OnNote
) -> Inputs:
    """Read all that a user may have got wrong. `device`: speaks texts. `work_dir`: for the prepared sound."""
    progress.stage("speech", "speaking the text" if request.voice_files else "reading the sound")
    refuse_late_turns(request)
    job = speak_job(request, work_dir, device)
    speech, sound = read_speech(request, job, work_dir)
    if speech.silent:
        on_note("note: the sound is silent, so nobody will speak")
    if short := short_note(num_output_frames(speech.duration_s), VIDEO_FPS):
        on_note(short)
    progress.stage("reference", "reading the picture")
    reference = open_reference(
        job.reference,
        sizes_of(request),
        is_video=job.is_video,
        by_index=request.reference_by_index,
        short_source=request.source.short_source,
        fit=request.picture.fit,
    )
    settings = sampling_settings(request, num_output_frames(speech.duration_s))
    return Inputs(
        job=job,
        speech=speech,
        sound=sound,
        reference=reference,
        loras=[read_lora(lora.path, lora.scale) for lora in request.loras],
        settings=settings,
        masks=place_speakers(job, reference),
        cuts=scene_cuts(request, source_time(reference), settings.max_frames or 0, on_note),
    )


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
        cross_fade=request.chunks.cross_fade or profile.cross_fade,
        reanchor_every=request.chunks.reanchor_every or profile.reanchor_every,
    )


def place_speakers(job: Job, reference: Reference) -> torch.Tensor | None:
    """Where two speakers are in the picture; None for one."""
    height, width = reference.source_height, reference.source_width
    areas = speaker_areas(job, height, width)
    return speaker_masks(height, width, reference.crop, [torch.from_numpy(area) for area in areas]) if areas else None


def make_conditioning(
    inputs: Inputs, prompts: tuple[torch.Tensor, torch.Tensor | None], files: WeightFiles, *, close_mouth: bool
) -> Conditioning:
    """All that the video is to follow. `prompts`: features of the prompt and of the negative one."""
    text, null_text = prompts
    return Conditioning(
        text=text,
        null_text=null_text,
        audio=embed_speech(files, inputs.speech, close_mouth=close_mouth),
        reference=inputs.reference,
        speaker_masks=inputs.masks,
        cuts=inputs.cuts,
        height=inputs.reference.crop.height,
        width=inputs.reference.crop.width,
    )
