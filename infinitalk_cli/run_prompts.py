"""The prompts of a run as features: the text encoder comes, reads them and goes."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from infinitalk_cli.job import Job
from infinitalk_cli.memory.offload import visiting
from infinitalk_cli.memory.residency import Residency
from infinitalk_cli.models.text_encoder import TextEncoder
from infinitalk_cli.networks import build_text_encoder
from infinitalk_cli.profiles import TextEncoderPlace
from infinitalk_cli.run_networks import text_dtype
from infinitalk_cli.sampling.guidance import is_off
from infinitalk_cli.sampling.settings import SamplingSettings
from infinitalk_cli.weights import WeightFiles

NEGATIVE_PROMPT = (
    "garish or burnt-out colours, overexposed, frozen picture, blurred details, subtitles, text, painting, drawing, "
    "grey veil, low quality, compression artefacts, ugly, mutilated, extra fingers, fused fingers, malformed hands, "
    "badly drawn face, deformed limbs, cluttered background, three legs, crowd in the background, walking backwards"
)
"""What a video must not show, where the user does not say. Unused when text guidance is off."""


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
