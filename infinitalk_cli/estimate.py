"""How much memory and time a run takes, before it starts: predictions, from arithmetic.

Memory follows from the sizes of the networks and of the picture. A pass of the transformer holds some tensors of one
vector per token; a streamed transformer has two blocks on the GPU beside the resident ones. Networks of different
stages are not on the GPU together, except for the part of the transformer that stays.

Time is that of the arithmetic: the multiplications of a pass at a share of the card's peak, or the copying of the
streamed blocks where that takes longer, for they overlap. A rate measured on this machine replaces
the vendor's figure. Nothing here is a measurement, and everything printed from here says so.

Constants of the published networks are arithmetic on their tensors; what is not is marked with where it was seen.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from infinitalk_cli.hardware import Gpu
from infinitalk_cli.models.config import DiTConfig
from infinitalk_cli.profile_table import CARDS, Card, Profile, Quant

PUBLISHED = DiTConfig(dim=5120, ffn_dim=13824, freq_dim=256, num_heads=40, num_layers=40)
"""Sizes of the published 14B transformer."""

GIB = 1 << 30

BLOCK_PARAMETERS = 464_162_304
OUTSIDE_PARAMETERS = 315_600_000
SCALES_PER_BLOCK = 90_624
"""Rows of an 8-bit block, each with a scale of 4 bytes at most."""

TEXT_ENCODER_BYTES: dict[Quant, int] = {"none": 11_362_000_000, "fp8": 6_730_000_000, "int8": 6_730_000_000}
TEXT_ENCODER_PARAMETERS = 5_680_910_336
IMAGE_ENCODER_BYTES = 1_264_000_000
VAE_BYTES = 508_000_000
AUDIO_ENCODER_BYTES = 378_000_000

TEXT_STAGE_BYTES = 3_200_000_000
"""On the GPU while the text encoder visits it block by block: its table of words and two blocks."""

WORKING_TENSORS = 8
INPUT_BYTES = 350_000_000
"""Tensors of one vector per token alive in a pass, and what is there whatever the picture's size.

Fitted from above to passes on an H200 (benchmarks: bf16 and fp8, resident and streamed, 32,928 and 73,920 tokens).
"""

VAE_BYTES_PER_PIXEL = {"float32": 23_800, "bfloat16": 12_900}
"""What decoding takes beside the weights: 10.0 and 5.4 GB in all at 448 x 896, measured on an H200."""

KERNELS_BYTES = 1_000_000_000
"""The CUDA context, kernels and the workspaces of the libraries."""

WHOLE_BESIDE_BYTES = 14_000_000_000
"""So much is to be free beside the transformer for it to stay on the GPU as a whole: the runner's rule."""

PROGRAM_BYTES = 1_900_000_000
"""RAM beside the weights: what the reference program took on an H200 machine."""

SHARE_OF_PEAK = 0.6
"""Of the vendor's bfloat16 peak that a pass reaches; measured on an H200: 0.61."""

BYTES_PER_S_OF_LANE = 1.5625e9
"""Page-locked copies over one lane of PCIe 4.0: 25 GB/s over 16. Each generation doubles it."""

VAE_S_PER_PIXEL = (1.52 + 2.46) / (448 * 896)
VAE_TFLOPS = 989.0
"""Encoding and decoding a chunk took 4.0 s at 448 x 896 on a card of this peak; others in proportion."""

PASSES_OF_GUIDANCE = {(False, False): 1, (False, True): 2, (True, False): 2, (True, True): 3}
"""Passes of a step by whether text and audio guidance are on."""


@dataclass(frozen=True)
class JobShape:
    """What of a job decides memory and time. Sizes in pixels; `num_frames` of the whole video, at `fps`."""

    width: int
    height: int
    num_frames: int
    num_speakers: int = 1
    fps: int = 25


@dataclass(frozen=True)
class Rate:
    """How fast a device computes and is fed. `basis`: where the figures are from, in words.

    `flops_per_s`: useful arithmetic in a pass; None for unknown. `peak_tflops`: the vendor's.
    """

    flops_per_s: float | None = None
    copy_bytes_per_s: float | None = None
    peak_tflops: float | None = None
    basis: str = "no rate is known for this device: `talk bench` measures it"


@dataclass(frozen=True)
class Estimate:
    """A prediction. Bytes; seconds, None where no rate is known; loading is not predicted.

    `vram_bytes` None: runs on the CPU. `num_resident`: blocks of the transformer that stay on the GPU.
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

    @property
    def seconds(self) -> float | None:
        """All passes, encoding and decoding; loading the weights comes on top."""
        if self.pass_s is None:
            return None
        return self.num_chunks * (self.passes_per_chunk * self.pass_s + (self.decode_s or 0.0))


def estimate(
    shape: JobShape,
    profile: Profile,
    rate: Rate,
    *,
    free_bytes: int | None,
    sizes: DiTConfig = PUBLISHED,
    num_gpus: int = 1,
) -> Estimate:
    """Predict a run of a settled profile. `free_bytes`: on the GPU, None for a run on the CPU.

    Of `num_gpus` the first needs the most memory, and the time is as if they lost none on each other.
    """
    on_gpu = free_bytes is not None
    resident = 0 if free_bytes is None else resident_blocks(profile, shape, free_bytes, sizes)
    passes = profile.num_steps * passes_per_step(profile)
    flops = pass_flops(shape, profile.chunk_frames, sizes)
    pass_s = None
    if rate.flops_per_s is not None:
        copied = (sizes.num_layers - resident) * block_bytes(profile.quant, sizes) if on_gpu else 0
        copy_s = copied / rate.copy_bytes_per_s if rate.copy_bytes_per_s else 0.0
        pass_s = max(flops / rate.flops_per_s / num_gpus, copy_s)
    pixels = shape.width * shape.height
    decode_s = VAE_S_PER_PIXEL * pixels * VAE_TFLOPS / rate.peak_tflops if rate.peak_tflops else None
    return Estimate(
        vram_bytes=vram_bytes(shape, profile, resident, sizes) if on_gpu else None,
        ram_bytes=ram_bytes(profile, resident, sizes, on_gpu=on_gpu)
        + (num_gpus - 1) * process_bytes(profile, resident, sizes),
        scratch_bytes=shape.num_speakers * shape.num_frames * 16_000 * 4 // shape.fps,
        num_chunks=num_chunks(shape.num_frames, profile),
        passes_per_chunk=passes,
        num_resident=resident,
        num_blocks=sizes.num_layers,
        pass_s=pass_s,
        decode_s=decode_s,
        basis=rate.basis if num_gpus == 1 else f"{rate.basis}; shared by {num_gpus} GPUs without loss",
    )


def num_chunks(num_frames: int, profile: Profile) -> int:
    """Chunks that cover a video: each after the first adds all frames but the carried ones."""
    rest = max(0, num_frames - profile.chunk_frames)
    return 1 + -(-rest // (profile.chunk_frames - profile.motion_frames))


def passes_per_step(profile: Profile) -> int:
    """Passes that the guidance scales ask for."""
    return PASSES_OF_GUIDANCE[profile.text_guidance_scale != 1.0, profile.audio_guidance_scale != 1.0]


def num_tokens(shape: JobShape, chunk_frames: int) -> int:
    """Tokens of a chunk: a latent frame per 4 frames after the first, a token per 16 x 16 pixels."""
    return ((chunk_frames - 1) // 4 + 1) * (shape.height // 16) * (shape.width // 16)


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


def block_parameters(sizes: DiTConfig = PUBLISHED) -> int:
    """Parameters of a block; of other sizes than the published ones, those of its linears."""
    if sizes == PUBLISHED:
        return BLOCK_PARAMETERS
    return 14 * sizes.dim**2 + 2 * sizes.dim * sizes.ffn_dim + 2 * sizes.audio_token_dim * sizes.dim


def block_bytes(quant: Quant, sizes: DiTConfig = PUBLISHED) -> int:
    """Bytes of a block on the GPU."""
    if quant == "none":
        return 2 * block_parameters(sizes)
    return block_parameters(sizes) + 4 * SCALES_PER_BLOCK * sizes.dim // PUBLISHED.dim


def outside_bytes(sizes: DiTConfig = PUBLISHED) -> int:
    """Bytes of the transformer's weights outside of its blocks, in 16 bits."""
    return 2 * OUTSIDE_PARAMETERS if sizes == PUBLISHED else 40 * sizes.dim**2


def working_bytes(shape: JobShape, chunk_frames: int, sizes: DiTConfig = PUBLISHED) -> int:
    """What a pass takes on the GPU beside weights, in 16 bits."""
    return INPUT_BYTES + WORKING_TENSORS * num_tokens(shape, chunk_frames) * sizes.dim * 2


def decoding_bytes(shape: JobShape, *, whole: bool) -> int:
    """What the video VAE takes on the GPU, its weights included. `whole`: in float32, beside a whole transformer."""
    if whole:
        return VAE_BYTES + VAE_BYTES_PER_PIXEL["float32"] * shape.width * shape.height
    return VAE_BYTES // 2 + VAE_BYTES_PER_PIXEL["bfloat16"] * shape.width * shape.height


def all_parameters(sizes: DiTConfig = PUBLISHED) -> int:
    """Parameters of the transformer."""
    return outside_bytes(sizes) // 2 + sizes.num_layers * block_parameters(sizes)


def resident_blocks(profile: Profile, shape: JobShape, free_bytes: int, sizes: DiTConfig = PUBLISHED) -> int:
    """Blocks that stay on the GPU: by the profile's number of parameters, else as many as there is room for."""
    block, persistent = block_bytes(profile.quant, sizes), profile.num_persistent_param_in_dit
    if persistent is not None and persistent < all_parameters(sizes):
        left = persistent - outside_bytes(sizes) // 2
        return max(0, min(sizes.num_layers, left // block_parameters(sizes)))
    if sizes.num_layers * block + outside_bytes(sizes) + WHOLE_BESIDE_BYTES <= free_bytes:
        return sizes.num_layers
    beside = max(working_bytes(shape, profile.chunk_frames, sizes) + 2 * block, decoding_bytes(shape, whole=False))
    room = free_bytes - KERNELS_BYTES - outside_bytes(sizes) - beside
    return max(0, min(sizes.num_layers - 1, room // block))


def persistent_parameters(num_resident: int, sizes: DiTConfig = PUBLISHED) -> int:
    """`num_persistent_param_in_dit` for so many resident blocks."""
    return 0 if num_resident == 0 else outside_bytes(sizes) // 2 + num_resident * block_parameters(sizes)


def vram_bytes(shape: JobShape, profile: Profile, num_resident: int, sizes: DiTConfig = PUBLISHED) -> int:
    """Peak on the GPU: the largest of the stages; between passes and decoding the resident blocks stay."""
    block, whole = block_bytes(profile.quant, sizes), num_resident == sizes.num_layers
    stays = num_resident * block + outside_bytes(sizes)
    if whole and sizes == PUBLISHED:
        stays += IMAGE_ENCODER_BYTES + VAE_BYTES  # with the whole transformer the other networks stay, too
    passes = (0 if whole else 2 * block) + working_bytes(shape, profile.chunk_frames, sizes)
    text = TEXT_STAGE_BYTES if sizes == PUBLISHED else 0
    return KERNELS_BYTES + max(stays + passes, stays + decoding_bytes(shape, whole=whole), text)


def ram_bytes(profile: Profile, num_resident: int, sizes: DiTConfig = PUBLISHED, *, on_gpu: bool = True) -> int:
    """Peak in main memory: the text encoder is gone before the transformer comes.

    A transformer that stays on the GPU is read straight into it; to be streamed it is first in RAM as a whole, and one
    block of it twice. On a CPU everything is in float32.
    """
    if not on_gpu:
        blocks = 4 * (sizes.num_layers * block_parameters(sizes) + outside_bytes(sizes) // 2)
        text = 4 * TEXT_ENCODER_PARAMETERS if sizes == PUBLISHED else 0
        encoders = 2 * IMAGE_ENCODER_BYTES + VAE_BYTES + AUDIO_ENCODER_BYTES if sizes == PUBLISHED else 0
        return PROGRAM_BYTES + max(blocks + encoders, text)
    streamed = (sizes.num_layers + 1) * block_bytes(profile.quant, sizes) if num_resident < sizes.num_layers else 0
    if sizes != PUBLISHED:
        return PROGRAM_BYTES + streamed
    encoders = IMAGE_ENCODER_BYTES + VAE_BYTES // 2 + AUDIO_ENCODER_BYTES
    return PROGRAM_BYTES + max(streamed + outside_bytes(sizes) + encoders, TEXT_ENCODER_BYTES[profile.quant])


def process_bytes(profile: Profile, num_resident: int, sizes: DiTConfig = PUBLISHED) -> int:
    """Main memory for each further GPU: its process has streamed blocks of its own."""
    streamed = sizes.num_layers + 1 if num_resident < sizes.num_layers else 0
    return PROGRAM_BYTES + streamed * block_bytes(profile.quant, sizes)


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
