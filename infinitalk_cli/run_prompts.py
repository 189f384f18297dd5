"""The prompts of a run as features: the text encoder comes, reads them and goes; what it has read before is kept.

The encoder is larger than many cards. Where there is room it is read from its files straight into the GPU, else it
stays in RAM and its blocks visit the GPU one by one.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from infinitalk_cli.job import Job
from infinitalk_cli.memory.block_stages import visiting
from infinitalk_cli.models.text_encoder import TextEncoder
from infinitalk_cli.networks import build_text_encoder, text_encoder_size_bytes
from infinitalk_cli.profiles import TextEncoderPlace
from infinitalk_cli.prompt_cache import PromptCache, open_prompt_cache
from infinitalk_cli.request import GenerateRequest
from infinitalk_cli.run_dtypes import text_dtype
from infinitalk_cli.sampling.guidance import is_off
from infinitalk_cli.sampling.settings import SamplingSettings
from infinitalk_cli.weights import WeightFiles

NEGATIVE_PROMPT = (
    "garish or burnt-out colours, overexposed, frozen picture, blurred details, subtitles, text, painting, drawing, "
    "grey veil, low quality, compression artefacts, ugly, mutilated, extra fingers, fused fingers, malformed hands, "
    "badly drawn face, deformed limbs, cluttered background, three legs, crowd in the background, walking backwards"
)
"""What a video must not show, where the user does not say. Unused when text guidance is off."""


ROOM_BESIDE_BYTES = 2_000_000_000
"""What is to stay free on the GPU beside the whole text encoder."""


def encode_prompts(
    request: GenerateRequest,
    files: WeightFiles,
    settings: SamplingSettings,
    device: torch.device,
    others: Sequence[GenerateRequest] = (),
) -> tuple[Tensor, Tensor | None]:
    """Features of the prompt, and of the negative one if it plays a part.

    Prompts that were read before come from the disk. For others the encoder is loaded, and gone afterwards.

    Args: others: whose prompts are read in the same go and kept on the disk, so that the encoder is loaded once.
    """
    wanted = prompts_of(request.job, settings.text_guidance_scale)
    cache = prompt_cache(request, files, device)
    ahead = [text for other in others for text in prompts_of(other.job, other.profile.text_guidance_scale) if cache]
    known = {prompt: cache.find(prompt) for prompt in (*wanted, *ahead)} if cache else {}
    features = {prompt: values for prompt, values in known.items() if values is not None}
    missing = [prompt for prompt in dict.fromkeys([*wanted, *ahead]) if prompt not in features]
    if missing:
        made = read_prompts(missing, request, files, device)
        features |= made
        give_back_memory(device)
        for prompt, values in made.items():
            if cache:
                cache.keep(prompt, values)
    text, *negative = [features[prompt].to(device) for prompt in wanted]
    return text, negative[0] if negative else None


def prompts_of(job: Job, text_guidance_scale: float) -> list[str]:
    """The prompt of a job, and the negative one if it plays a part."""
    if is_off(text_guidance_scale):
        return [job.prompt]
    return [job.prompt, NEGATIVE_PROMPT if job.negative_prompt is None else job.negative_prompt]


def prompt_cache(request: GenerateRequest, files: WeightFiles, device: torch.device) -> PromptCache | None:
    """Where features of prompts are kept; nowhere for the demo, whose encoder is no larger than they are."""
    if request.weights_dir is None:
        return None
    on_gpu = device.type == "cuda" and request.profile.text_encoder != "cpu"
    return open_prompt_cache(files, text_dtype(device), torch.cuda.get_device_name(device) if on_gpu else "cpu")


def read_prompts(
    prompts: Sequence[str], request: GenerateRequest, files: WeightFiles, device: torch.device
) -> dict[str, Tensor]:
    """Load the text encoder and have it read prompts."""
    dtype = text_dtype(device)
    place = request.profile.text_encoder
    if place == "auto" and device.type == "cuda":
        place = "gpu" if may_be_whole(request, text_encoder_size_bytes(files, dtype), device) else "stream"
    encoder = build_text_encoder(files, dtype=dtype, device=device if place == "gpu" else "cpu")
    with text_stage(encoder, device, place):
        return {prompt: encoder.encode(prompt) for prompt in prompts}


def give_back_memory(device: torch.device) -> None:
    """Let the GPU have what the encoder took: whether the transformer fits is decided by what is free."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def may_be_whole(request: GenerateRequest, encoder_bytes: int, device: torch.device) -> bool:
    """Whether the text encoder may go to the GPU whole: there is room, and the user did not ask to save memory."""
    if request.resident_parameters is not None:
        return False
    free_bytes, _ = torch.cuda.mem_get_info(device)
    return encoder_bytes + ROOM_BESIDE_BYTES <= free_bytes


def text_stage(encoder: TextEncoder, device: torch.device, place: TextEncoderPlace) -> AbstractContextManager[None]:
    """Have the text encoder compute where `place` says.

    Streamed, its weights cross to the GPU block by block, once per prompt.
    """
    if place == "stream" and device.type == "cuda":
        return visiting(encoder, list(encoder.model.encoder.block), device)
    return nullcontext()
