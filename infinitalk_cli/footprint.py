"""What a run takes of memory: arithmetic, asked before a run and by the run.

Memory follows from the sizes of the networks and of the picture. A pass of the transformer holds some tensors of one
vector per token; a streamed transformer has two blocks on the GPU beside the resident ones. Networks of different
stages are not on the GPU together, except for the part of the transformer that stays. How the GPU is shared out is a
`Rung`; `rungs.py` chooses one.

Constants of the published networks are arithmetic on their tensors; what is not is marked with where it was seen.
"""

from __future__ import annotations

from dataclasses import dataclass

from infinitalk_cli.models.config import DiTConfig
from infinitalk_cli.profile_table import Profile, Quant

PUBLISHED = DiTConfig(dim=5120, ffn_dim=13824, freq_dim=256, num_heads=40, num_layers=40)
"""Sizes of the published 14B transformer."""

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

IMAGE_TOKENS = 257
"""Tokens of the picture's features."""

NUM_SLOTS = 2
"""Streamed blocks on the GPU at a time."""

WORKING_TENSORS = 9
"""Tensors of one vector per token alive in a pass.

Fitted from above to passes on an H200 (benchmarks: bf16 and fp8, resident and streamed, 32,928 and 73,920 tokens).
"""

WORKING_TENSORS_IN_SLICES = 5
"""The same where a block's attention is computed for some of the tokens at a time: keys, values, the tokens themselves
and their norm, and one to spare; counted in the source. Each slice takes `WORKING_TENSORS` of its own tokens."""

VAE_BYTES_PER_PIXEL, VAE_BYTES_PER_PIXEL_EXACT = 10_300, 21_000
"""What decoding takes beside the weights, in 16 bits and in float32: a tenth more than at 448 x 896 on an H200, where
it took 4.00 and 8.16 GB in all (benchmarks)."""

VAE_WHOLE_BYTES_PER_PIXEL = 2_000
"""What the picture takes as a whole while its tiles are decoded or encoded: the frames to encode (972 a pixel), and
twice the features of all latents at the smallest size (252 to 504); counted in the source."""

KERNELS_BYTES = 1_080_000_000
"""The CUDA context, kernels and the workspaces of the libraries: 0.92 to 0.94 GB on an H200, from above."""

SEGMENTS_SHARE = 1.03
"""What torch holds of the GPU against what tensors take: 1.01 to 1.06 on an H200 with segments that grow. With both, an
estimate is 1.02 to 1.10 times what a run takes (benchmarks: caps of 8 to 24 GB, 480 and 720)."""

CONTEXT_BYTES = 500_000_000
"""About half of them: what a program holds from its first word with the GPU on, so a run no longer finds it free."""

PROGRAM_BYTES = 1_900_000_000
"""RAM beside the weights: what the reference program took on an H200 machine."""

READING_BYTES = 134_217_728
"""RAM that the threads hold that read weights into a GPU: 8 of them, two pieces of 8 MiB each."""

READ_AHEAD_BYTES = 268_435_456
"""RAM for what is read ahead of blocks that are read from the disk in every pass."""

RAM_LEFT_BYTES = 1_500_000_000
"""Of RAM that is too short, what a run leaves: its own estimates may be off, and other programs live beside it."""

FFN_TOKENS = 16_384


@dataclass(frozen=True)
class JobShape:
    """What of a job decides memory and time.

    Sizes in pixels; `num_frames` of the whole video, at `fps`; `cuts`: first frames of the scenes that are known, at
    which a chunk of its own begins.
    """

    width: int
    height: int
    num_frames: int
    num_speakers: int = 1
    fps: int = 25
    cuts: tuple[int, ...] = ()


@dataclass(frozen=True)
class Rung:
    """How a run shares out the GPU.

    `num_resident`: blocks of the transformer that stay there; with all of them the other networks stay, too.
    `vae_tile`: latents on a side of the video VAE's tiles, None for the whole picture. `attention_tokens`: tokens whose
    attention is computed at a time, None for all. `ffn_tokens`: the same for the hidden layer of the feed-forward.
    """

    num_resident: int
    vae_tile: int | None = None
    attention_tokens: int | None = None
    ffn_tokens: int = FFN_TOKENS

    def and_not_above(self, other: Rung) -> Rung:
        """The lower of both in every respect."""
        tiles = [tile for tile in (self.vae_tile, other.vae_tile) if tile is not None]
        tokens = [count for count in (self.attention_tokens, other.attention_tokens) if count is not None]
        return Rung(
            num_resident=min(self.num_resident, other.num_resident),
            vae_tile=min(tiles, default=None),
            attention_tokens=min(tokens, default=None),
            ffn_tokens=min(self.ffn_tokens, other.ffn_tokens),
        )

    def describe(self, num_blocks: int) -> str:
        """In words, for the user."""
        told = [f"{self.num_resident} of {num_blocks} blocks on the GPU"]
        if self.attention_tokens is not None:
            told.append(f"attention for {self.attention_tokens:,} tokens at a time")
        if self.vae_tile is not None:
            told.append(f"pictures in tiles of {8 * self.vae_tile} pixels")
        return ", ".join(told)


def num_tokens(shape: JobShape, chunk_frames: int) -> int:
    """Tokens of a chunk: a latent frame per 4 frames after the first, a token per 16 x 16 pixels."""
    return ((chunk_frames - 1) // 4 + 1) * (shape.height // 16) * (shape.width // 16)


def block_parameters(sizes: DiTConfig = PUBLISHED) -> int:
    """Parameters of a block; of other sizes than the published ones, those of its linears."""
    if sizes == PUBLISHED:
        return BLOCK_PARAMETERS
    return 14 * sizes.dim**2 + 2 * sizes.dim * sizes.ffn_dim + 2 * sizes.audio_token_dim * sizes.dim


def outside_parameters(sizes: DiTConfig = PUBLISHED) -> int:
    """Parameters of the transformer outside of its blocks; nearly, for other sizes than the published ones."""
    return OUTSIDE_PARAMETERS if sizes == PUBLISHED else 20 * sizes.dim**2


def all_parameters(sizes: DiTConfig = PUBLISHED) -> int:
    """Parameters of the transformer."""
    return outside_parameters(sizes) + sizes.num_layers * block_parameters(sizes)


def persistent_parameters(num_resident: int, sizes: DiTConfig = PUBLISHED) -> int:
    """`num_persistent_param_in_dit` for so many resident blocks."""
    return 0 if num_resident == 0 else outside_parameters(sizes) + num_resident * block_parameters(sizes)


def block_bytes(profile: Profile, sizes: DiTConfig = PUBLISHED) -> int:
    """Bytes of a block on the GPU, with its share of the LoRAs beside it."""
    beside = loras_bytes_of_block(profile, sizes)
    if profile.quant == "none":
        return number_bytes(profile) * block_parameters(sizes) + beside
    return block_parameters(sizes) + beside + 4 * SCALES_PER_BLOCK * sizes.dim // PUBLISHED.dim


def loras_bytes_of_block(profile: Profile, sizes: DiTConfig = PUBLISHED) -> int:
    """Bytes of the LoRAs beside a block, if they are not merged into it."""
    return number_bytes(profile) * -(-profile.lora_parameters // sizes.num_layers)


def number_bytes(profile: Profile) -> int:
    """Bytes of a number that is not in 8 bits, on a GPU."""
    return 4 if profile.dtype == "float32" else 2


def outside_bytes(profile: Profile, sizes: DiTConfig = PUBLISHED) -> int:
    """Bytes of the transformer's weights outside of its blocks."""
    return number_bytes(profile) * outside_parameters(sizes)


def working_bytes(shape: JobShape, profile: Profile, rung: Rung, sizes: DiTConfig = PUBLISHED) -> int:
    """What a pass takes on the GPU beside weights."""
    tokens = num_tokens(shape, profile.chunk_frames)
    vectors = WORKING_TENSORS * tokens
    if rung.attention_tokens is not None:
        slice_tokens = max(rung.attention_tokens, tokens // ((profile.chunk_frames - 1) // 4 + 1))
        vectors = min(vectors, WORKING_TENSORS_IN_SLICES * tokens + WORKING_TENSORS * slice_tokens)
    return vectors * sizes.dim * number_bytes(profile)


def vae_bytes(profile: Profile) -> int:
    """The video VAE's weights on a GPU."""
    return VAE_BYTES if profile.vae_dtype == "float32" else VAE_BYTES // 2


def keys_values_bytes(shape: JobShape, profile: Profile, sizes: DiTConfig = PUBLISHED) -> int:
    """Keys and values of two prompts, the picture, the speech and none, which stay the same from step to step."""
    frames = (profile.chunk_frames - 1) // 4 + 1
    tokens = 2 * sizes.text_len + IMAGE_TOKENS + 2 * shape.num_speakers * frames * sizes.audio_tokens
    return sizes.num_layers * tokens * 2 * sizes.dim * number_bytes(profile)


def decoding_bytes(shape: JobShape, profile: Profile, rung: Rung) -> int:
    """What the video VAE takes on the GPU, its weights included."""
    weights, pixels = vae_bytes(profile), shape.width * shape.height
    rate = VAE_BYTES_PER_PIXEL_EXACT if profile.vae_dtype == "float32" else VAE_BYTES_PER_PIXEL
    if rung.vae_tile is None:
        return weights + rate * pixels
    side = 8 * rung.vae_tile
    in_tile = min(side, shape.width) * min(side, shape.height)
    return weights + min(rate * pixels, rate * in_tile + VAE_WHOLE_BYTES_PER_PIXEL * pixels)


def vram_bytes(
    shape: JobShape, profile: Profile, rung: Rung, sizes: DiTConfig = PUBLISHED, *, with_text: bool = True
) -> int:
    """Peak on the GPU: the largest of the stages; between passes and decoding the resident blocks stay."""
    block, whole = block_bytes(profile, sizes), rung.num_resident == sizes.num_layers
    stays = rung.num_resident * block + outside_bytes(profile, sizes)
    encoder = IMAGE_ENCODER_BYTES if sizes == PUBLISHED else 0
    passes = working_bytes(shape, profile, rung, sizes) + min(NUM_SLOTS, sizes.num_layers - rung.num_resident) * block
    decoding = decoding_bytes(shape, profile, rung)
    if whole:
        passes += keys_values_bytes(shape, profile, sizes)
    if whole and sizes == PUBLISHED:
        passes += encoder + vae_bytes(profile)
        decoding += encoder
    text = text_stage_bytes(profile) if with_text and sizes == PUBLISHED else 0
    tensors = max(stays + passes, stays + decoding, stays + encoder, text)
    return KERNELS_BYTES + round(SEGMENTS_SHARE * tensors)


def text_stage_bytes(profile: Profile) -> int:
    """What the text encoder takes on the GPU while it reads."""
    whole = TEXT_ENCODER_BYTES[profile.quant]
    return {"auto": TEXT_STAGE_BYTES, "stream": TEXT_STAGE_BYTES, "gpu": whole, "cpu": 0}[profile.text_encoder]


def ram_bytes(
    profile: Profile, num_resident: int, sizes: DiTConfig = PUBLISHED, *, on_gpu: bool = True, num_read: int = 0
) -> int:
    """Peak in main memory: the text encoder is gone before the transformer comes.

    Everything is read straight to where it is to be: blocks that are streamed into RAM, the rest of the transformer
    into the GPU. Blocks that leave the GPU later, where its memory runs out after all, come on top. On a CPU everything
    is in float32. `num_read`: streamed blocks that are read from the disk in every pass.
    """
    if not on_gpu:
        blocks = 4 * all_parameters(sizes)
        text = 4 * TEXT_ENCODER_PARAMETERS if sizes == PUBLISHED else 0
        encoders = 2 * IMAGE_ENCODER_BYTES + VAE_BYTES + AUDIO_ENCODER_BYTES if sizes == PUBLISHED else 0
        return PROGRAM_BYTES + max(blocks + encoders, text)
    streamed = (sizes.num_layers - num_resident - num_read) * block_bytes(profile, sizes)
    streamed += num_read * loras_bytes_of_block(profile, sizes)
    beside = beside_blocks_bytes(sizes) + (READ_AHEAD_BYTES if num_read else 0)
    return max(streamed + beside, PROGRAM_BYTES + (TEXT_ENCODER_BYTES[profile.quant] if sizes == PUBLISHED else 0))


def beside_blocks_bytes(sizes: DiTConfig = PUBLISHED) -> int:
    """Main memory beside streamed blocks while the video is made."""
    if sizes != PUBLISHED:
        return PROGRAM_BYTES
    return PROGRAM_BYTES + READING_BYTES + IMAGE_ENCODER_BYTES + VAE_BYTES // 2 + AUDIO_ENCODER_BYTES


def most_in_ram(profile: Profile, num_resident: int, usable_bytes: int, sizes: DiTConfig = PUBLISHED) -> int:
    """How many streamed blocks RAM may hold; where that is fewer than are streamed, the others are read in every pass.

    All of them if there is just enough for these; more, should some leave the GPU, only with RAM to spare.
    """
    num_streamed = sizes.num_layers - num_resident
    room, block = usable_bytes - beside_blocks_bytes(sizes), block_bytes(profile, sizes)
    fit = max(0, min(sizes.num_layers, (room - RAM_LEFT_BYTES - READ_AHEAD_BYTES) // block))
    return max(fit, num_streamed) if num_streamed * block <= room else fit


def num_read(profile: Profile, num_resident: int, usable_bytes: int, sizes: DiTConfig = PUBLISHED) -> int:
    """Blocks that are read from the disk in every pass, because RAM has no room for them and their files allow it."""
    by_form = profile.quant != "none"  # published in 8 bits, they are computed with as they are
    if not (by_form if profile.blocks_from_disk is None else profile.blocks_from_disk):
        return 0
    return max(0, sizes.num_layers - num_resident - most_in_ram(profile, num_resident, usable_bytes, sizes))


def process_bytes(profile: Profile, num_resident: int, sizes: DiTConfig = PUBLISHED) -> int:
    """Main memory for each further GPU: its process has streamed blocks of its own."""
    return PROGRAM_BYTES + READING_BYTES + (sizes.num_layers - num_resident) * block_bytes(profile, sizes)
