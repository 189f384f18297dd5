"""How much memory and time a run takes, before it starts: predictions, from arithmetic.

Memory is that of `footprint`, by which the run itself is laid out.

Time is that of the arithmetic: the multiplications of a pass at a share of the card's peak, or the copying of the
streamed blocks where that takes longer, for they overlap. A rate measured on this machine replaces the vendor's figure.
Nothing here is a measurement, and everything printed from here says so.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from infinitalk_cli.footprint import (
    AUDIO_ENCODER_BYTES,
    IMAGE_ENCODER_BYTES,
    PUBLISHED,
    TEXT_ENCODER_BYTES,
    VAE_BYTES,
    JobShape,
    Rung,
    block_bytes,
    num_read,
    num_tokens,
    outside_bytes,
    process_bytes,
    ram_bytes,
    vram_bytes,
)
from infinitalk_cli.hardware import Gpu
from infinitalk_cli.models.config import DiTConfig
from infinitalk_cli.profile_table import CARDS, Card, Profile
from infinitalk_cli.rungs import first_rung

GIB = 1 << 30

SHARE_OF_PEAK = 0.6
"""Of the vendor's bfloat16 peak that a pass reaches; measured on an H200: 0.61."""

BYTES_PER_S_OF_LANE = 1.5625e9
"""Page-locked copies over one lane of PCIe 4.0: 25 GB/s over 16. Each generation doubles it."""

VAE_S_PER_PIXEL = (1.52 + 2.46) / (448 * 896)
VAE_TFLOPS = 989.0
"""Encoding and decoding a chunk took 4.0 s at 448 x 896 on a card of this peak; others in proportion."""

ASSUMED_READ_BYTES_PER_S = 1e9
"""Of weight files from an ordinary solid-state disk: assumed, until `talk bench --random-weights load` has measured."""

PASSES_OF_GUIDANCE = {(False, False): 1, (False, True): 2, (True, False): 2, (True, True): 3}
"""Passes of a step by whether text and audio guidance are on."""


SHARE_IN_TEAM = 0.91
"""Of its speed that a GPU keeps when several share a pass: measured with two H200s, assumed for more."""


@dataclass(frozen=True)
class Rate:
    """How fast a device computes and is fed. `basis`: where the figures are from, in words.

    `flops_per_s`: useful arithmetic in a pass; None for unknown. `peak_tflops`: the vendor's. `read_bytes_per_s`: of
    weight files. `vae_s_per_pixel`: to encode and decode a chunk, None to go by the peak.
    """

    flops_per_s: float | None = None
    copy_bytes_per_s: float | None = None
    peak_tflops: float | None = None
    basis: str = "no rate is known for this device: `talk bench` measures it"
    read_bytes_per_s: float = ASSUMED_READ_BYTES_PER_S
    vae_s_per_pixel: float | None = None


@dataclass(frozen=True)
class Estimate:
    """A prediction. Bytes; seconds, None where no rate is known.

    `vram_bytes` None: runs on the CPU. `num_resident`: blocks of the transformer that stay on the GPU. `num_read`:
    those that are read from the disk in every pass; `read_s`: how long that takes; `read_wait_s`: what of it is not
    hidden behind computing.
    """

    vram_bytes: int | None
    ram_bytes: int
    scratch_bytes: int
    num_chunks: int
    passes_per_chunk: int
    num_resident: int
    num_blocks: int
    pass_s: float | None
    decode_s: float | None
    basis: str
    num_read: int = 0
    read_s: float = 0.0
    read_wait_s: float | None = None
    load_s: float = 0.0
    text_s: float = 0.0

    @property
    def seconds(self) -> float | None:
        """All passes, encoding and decoding; loading the weights and reading the prompt come on top."""
        if self.pass_s is None:
            return None
        return self.num_chunks * (self.passes_per_chunk * self.pass_s + (self.decode_s or 0.0))

    @property
    def stages(self) -> dict[str, float]:
        """Seconds of each stage, in their order; empty where no rate is known."""
        if self.pass_s is None:
            return {}
        chunks = self.num_chunks
        return {
            "text": self.text_s,
            "loading": self.load_s,
            "passes": chunks * self.passes_per_chunk * self.pass_s,
            "encoding and decoding": chunks * (self.decode_s or 0.0),
        }


def estimate(
    shape: JobShape,
    profile: Profile,
    rate: Rate,
    *,
    free_bytes: int | None,
    free_ram_bytes: int | None = None,
    sizes: DiTConfig = PUBLISHED,
    num_gpus: int = 1,
) -> Estimate:
    """Predict a run of a settled profile.

    `free_bytes`: on the GPU, None for a run on the CPU. `free_ram_bytes`: None for as much as it takes. Of `num_gpus`
    the first needs the most memory; each works at `SHARE_IN_TEAM` of its speed.
    """
    on_gpu = free_bytes is not None
    rung = Rung(0) if free_bytes is None else first_rung(profile, shape, free_bytes, sizes)
    resident = rung.num_resident
    passes = profile.num_steps * passes_per_step(profile)
    flops = pass_flops(shape, profile.chunk_frames, sizes)
    read = 0
    if on_gpu and free_ram_bytes is not None and num_gpus == 1:
        read = num_read(profile, resident, free_ram_bytes, sizes)
    read_s = read * block_bytes(profile, sizes) / ASSUMED_READ_BYTES_PER_S
    pass_s = read_wait_s = None
    if rate.flops_per_s is not None:
        copied = (sizes.num_layers - resident) * block_bytes(profile, sizes) if on_gpu else 0
        copy_s = copied / rate.copy_bytes_per_s if rate.copy_bytes_per_s else 0.0
        team = 1.0 if num_gpus == 1 else SHARE_IN_TEAM * num_gpus
        without_s = max(flops / rate.flops_per_s / team, copy_s)
        pass_s = max(without_s, read_s)
        read_wait_s = pass_s - without_s
    pixels = shape.width * shape.height
    decode_s = VAE_S_PER_PIXEL * pixels * VAE_TFLOPS / rate.peak_tflops if rate.peak_tflops else None
    if rate.vae_s_per_pixel is not None:
        decode_s = rate.vae_s_per_pixel * pixels
    return Estimate(
        vram_bytes=vram_bytes(shape, profile, rung, sizes) if on_gpu else None,
        ram_bytes=ram_bytes(profile, resident, sizes, on_gpu=on_gpu, num_read=read)
        + (num_gpus - 1) * process_bytes(profile, resident, sizes),
        scratch_bytes=shape.num_speakers * shape.num_frames * 16_000 * 4 // shape.fps,
        num_chunks=num_chunks(shape.num_frames, profile, shape.cuts),
        passes_per_chunk=passes,
        num_resident=resident,
        num_blocks=sizes.num_layers,
        pass_s=pass_s,
        decode_s=decode_s,
        basis=rate.basis if num_gpus == 1 else f"{rate.basis}; {num_gpus} GPUs, each at {SHARE_IN_TEAM:.0%}",
        num_read=read,
        read_s=read_s,
        read_wait_s=read_wait_s,
        load_s=load_bytes(profile, sizes) / rate.read_bytes_per_s,
        text_s=text_seconds(profile, rate, on_gpu=on_gpu) if sizes == PUBLISHED else 0.0,
    )


def load_bytes(profile: Profile, sizes: DiTConfig = PUBLISHED) -> int:
    """What is read of weight files before the video begins, the text encoder aside."""
    blocks = sizes.num_layers * block_bytes(profile, sizes) + outside_bytes(profile, sizes)
    return blocks + (IMAGE_ENCODER_BYTES + VAE_BYTES + AUDIO_ENCODER_BYTES if sizes == PUBLISHED else 0)


def text_seconds(profile: Profile, rate: Rate, *, on_gpu: bool) -> float:
    """To read the text encoder, and to carry it to the GPU: streamed once per prompt, whole once, never to the CPU."""
    size = TEXT_ENCODER_BYTES[profile.quant]
    num_prompts = 1 if profile.text_guidance_scale == 1.0 else 2
    copies = {"auto": num_prompts, "stream": num_prompts, "gpu": 1, "cpu": 0}[profile.text_encoder] if on_gpu else 0
    copy_s = copies * size / rate.copy_bytes_per_s if rate.copy_bytes_per_s else 0.0
    return size / rate.read_bytes_per_s + copy_s


def num_chunks(num_frames: int, profile: Profile, cuts: Sequence[int] = ()) -> int:
    """Chunks that cover a video: each after the first of a scene adds all frames but the carried ones.

    Args: cuts: first frames of new scenes, ascending.
    """
    stride = profile.chunk_frames - profile.motion_frames
    scenes = (stop - start for start, stop in pairwise([0, *cuts, num_frames]))
    return sum(1 + -(-max(0, length - profile.chunk_frames) // stride) for length in scenes)


def passes_per_step(profile: Profile) -> int:
    """Passes that the guidance scales ask for."""
    return PASSES_OF_GUIDANCE[profile.text_guidance_scale != 1.0, profile.audio_guidance_scale != 1.0]


def pass_flops(shape: JobShape, chunk_frames: int, sizes: DiTConfig = PUBLISHED) -> float:
    """Floating-point operations of one pass, a multiply-add as 2."""
    n, d = num_tokens(shape, chunk_frames), sizes.dim
    latent_frames, pictures = (chunk_frames - 1) // 4 + 1, 769  # 512 text tokens and 257 of the picture
    speech = sizes.audio_tokens * shape.num_speakers
    linears = 8 * n * d**2
    attention = 4 * n**2 * d
    text = 4 * n * d**2 + 4 * pictures * d**2 + 4 * n * pictures * d
    audio = 4 * n * d**2 + 2 * latent_frames * speech * sizes.audio_token_dim * 2 * d + 4 * n * speech * d
    feed_forward = 4 * n * d * sizes.ffn_dim
    return float(sizes.num_layers * (linears + attention + text + audio + feed_forward))


def rate_of(gpu: Gpu | None, measured_flops_per_s: float | None = None) -> Rate:
    """What a card can do: by its measured rate if there is one, else by its row, else unknown."""
    if gpu is None:
        return Rate()
    card, copies = find_card(gpu), copy_rate(gpu)
    peak = card.bf16_tflops if card else None
    if measured_flops_per_s is not None:
        return Rate(measured_flops_per_s, copies, peak, "from `talk bench` on this machine")
    if peak is None:
        return Rate(copy_bytes_per_s=copies)
    basis = f"roofline prediction, not a measurement: {SHARE_OF_PEAK:.0%} of {peak:g} TFLOP/s"
    return Rate(SHARE_OF_PEAK * peak * 1e12, copies, peak, basis)


def find_card(gpu: Gpu) -> Card | None:
    """The row of a card, None for a card without one. A part of a card (MIG) has none."""
    if gpu.mig_index is not None:
        return None
    gib = None if gpu.total_bytes is None else gpu.total_bytes / GIB
    for card in CARDS:
        fits = card.memory_gib is None or gib is None or abs(gib - card.memory_gib) <= card.memory_gib / 10
        if re.search(card.pattern, gpu.name) and fits:
            return card
    return None


def copy_rate(gpu: Gpu) -> float | None:
    """Bytes per second from page-locked memory to the card, by its slot; None where the driver does not tell."""
    generation, width = gpu.pcie.max_generation, gpu.pcie.max_width
    if generation is None or width is None:
        return None
    return BYTES_PER_S_OF_LANE * width * 2.0 ** (generation - 4)
