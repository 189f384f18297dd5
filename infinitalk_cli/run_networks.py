"""The networks that make the video, built from their files and placed: on the GPU, or streamed to it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from infinitalk_cli.media.color import match_color
from infinitalk_cli.memory.keys_values import kept_keys_values
from infinitalk_cli.memory.lora import Lora, LoraReport
from infinitalk_cli.memory.offload import BlockOffloader, StreamedStage, resident_for_bytes, resident_for_parameters
from infinitalk_cli.memory.residency import Residency
from infinitalk_cli.models.dit import DiT
from infinitalk_cli.models.dit_layers import Block
from infinitalk_cli.models.vae import VideoVAE
from infinitalk_cli.networks import build_dit, build_image_encoder, build_vae, dit_size_bytes, import_library
from infinitalk_cli.request import GenerateRequest
from infinitalk_cli.sampling.stream import Networks
from infinitalk_cli.weights import WeightFiles

BESIDE_TRANSFORMER_BYTES = 14_000_000_000
"""What else is on the GPU while the whole transformer stays there: CLIP, the VAE, and its decoding at 480."""

OnNote = Callable[[str], None]
OnStage = Callable[[nn.Module], AbstractContextManager[object]]


@dataclass(frozen=True)
class PlacedTransformer:
    """The video transformer, and how networks come to the device. `keep`: they all stay there."""

    dit: DiT
    on_stage: OnStage
    keep: bool


def load_networks(
    request: GenerateRequest, files: WeightFiles, loras: Sequence[Lora], device: torch.device, on_note: OnNote
) -> Networks:
    """The networks of the video."""
    with ThreadPoolExecutor(1) as beside:  # seconds of Python, while that of the transformer waits for files
        beside.submit(import_library)
        placed = load_transformer(request, files, loras, device, on_note)
    on_gpu, on_stage = device.type == "cuda", placed.on_stage
    if on_gpu and request.resident_parameters is None:
        on_stage = keep_steady_values(placed.dit, device, on_stage)
    home = device if placed.keep else torch.device("cpu")
    return Networks(
        dit=placed.dit,
        vae=load_vae(files, home, fast=on_gpu and not placed.keep),
        image_encoder=build_image_encoder(files, dtype=torch.float16 if on_gpu else torch.float32, device=home),
        match_color=match_color,
        device=device,
        on_stage=on_stage,
    )


def load_transformer(
    request: GenerateRequest, files: WeightFiles, loras: Sequence[Lora], device: torch.device, on_note: OnNote
) -> PlacedTransformer:
    """The video transformer. One that does not fit on the GPU is streamed to it block by block."""
    dtype = compute_dtype(request, device)
    on_gpu = device.type == "cuda"
    keep = on_gpu and request.resident_parameters is None and fits(dit_size_bytes(files, dtype), device)
    home = device if keep else torch.device("cpu")
    dit = build_dit(files, dtype=dtype, device=home, loras=loras, on_lora=lambda report: on_note(lora_note(report)))
    on_stage = Residency(device, keep=keep).on_stage
    if on_gpu and not keep:
        on_stage = stream_blocks(dit, request, device, on_stage, on_note)
    return PlacedTransformer(dit, on_stage, keep)


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


def keep_steady_values(dit: DiT, device: torch.device, on_stage: OnStage) -> OnStage:
    """Have `dit` keep, while it is on stage, what does not depend on the step, in memory that nothing else needs."""

    @contextmanager
    def stage() -> Generator[None]:
        with on_stage(dit):
            free_bytes, _ = torch.cuda.mem_get_info(device)
            with kept_keys_values(steady_keys_values(dit), free_bytes - BESIDE_TRANSFORMER_BYTES):
                yield

    return lambda module: stage() if module is dit else on_stage(module)


def steady_keys_values(dit: DiT) -> list[tuple[nn.Module, str]]:
    """The methods that make a block's keys and values of text, picture and speech."""
    blocks = cast("list[Block]", list(dit.blocks))
    return [
        method
        for block in blocks
        for method in (
            (block.cross_attn, "text_keys_values"),
            (block.cross_attn, "image_keys_values"),
            (block.audio_cross_attn, "keys_values"),
        )
    ]


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
