"""The table of profiles: what runs on which card, and how fast or how well, as plain data.

A profile answers two questions that have nothing to do with each other. What does the machine hold: the form of the
weights and how much of the transformer stays on the GPU; a row for each common card, and one for each amount of memory
for the others. And how long may it take: a preset (`PRESETS`), the same for every card.

Peaks are the vendors' figures for dense bfloat16 matrices with float32 accumulation. They serve for predictions and for
nothing else.

Sources: cards up to the A100 with `num_persistent_param_in_dit` from the InfiniteTalk and MultiTalk guides and their
users' reports; presets from the same guides and LightX2V's InfiniteTalk configuration.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Engine = Literal["infinitetalk", "multitalk"]
Quant = Literal["none", "fp8", "int8"]
Size = Literal["480", "720", "demo"]
Dtype = Literal["auto", "float32", "bfloat16"]
PresetName = Literal["quality", "balanced", "fast"]
Attention = Literal["auto", "sdpa", "flash", "cudnn", "8bit", "int8", "fp8", "sage"]
VaeTiling = Literal["auto", "on", "off"]
TextEncoderPlace = Literal["auto", "gpu", "stream", "cpu"]
VaeDtype = Literal["auto", "float32", "bfloat16", "float16"]
LoraMode = Literal["merge", "beside"]

SHIFT_OF_SIZE: dict[Size, float] = {"480": 7.0, "720": 11.0, "demo": 3.0}
"""Schedule shift that the models were tuned for, by bucket set."""


@dataclass(frozen=True)
class Profile:
    """Every choice that trades time and memory for quality.

    `size`: the set of picture sizes, by its short name. `num_persistent_param_in_dit`: parameters of the transformer
    that stay on the GPU, the others are streamed; None for as many as fit. `chunk_frames`, `motion_frames`: frames
    denoised at once and those carried into the next chunk, both 4n + 1; MultiTalk carries `multitalk_motion_frames`.
    Guidance scales: 1.0 means off. `lora`: a published speed LoRA by name, "" for none. `dtype` "auto": bfloat16 on a
    GPU, float32 on a CPU. `attention`: the kernel of the transformer's attention; "auto" is the fastest exact one,
    "8bit" the fastest of all; "int8", "fp8" and "sage" are inexact, as 8 bits are. `vae_dtype`: of the video VAE on a
    GPU; "auto" is float16. `vae_tiling`: whether pictures are decoded in tiles, which takes less memory; "auto" where
    they would not fit otherwise. `text_encoder`: whole on the GPU, streamed to it block by block, or on the CPU; "auto"
    is whole where there is room and no streaming was asked for, else streamed. `lora_mode`: whether LoRAs are added to
    the weights or kept beside them; `lora_parameters`: in those kept beside, 0 until they are known.
    `blocks_from_disk`: whether blocks for which RAM has no room can be read from their files in every pass; None until
    these are known, and then by `quant`. `cross_fade`: blends what two chunks have in common, also where `--cross-fade`
    does not ask for it. `reanchor_every`: as `--reanchor`, where that is not given. `demo_weights`: runs on the small
    weights that the package brings along unless a weights folder is named.
    """

    name: str
    description: str
    size: Size = "480"
    quant: Quant = "none"
    num_persistent_param_in_dit: int | None = None
    chunk_frames: int = 81
    motion_frames: int = 9
    multitalk_motion_frames: int = 25
    num_steps: int = 40
    shift: float = 7.0
    text_guidance_scale: float = 5.0
    audio_guidance_scale: float = 4.0
    lora: str = ""
    lora_scale: float = 1.0
    dtype: Dtype = "auto"
    attention: Attention = "auto"
    vae_dtype: VaeDtype = "auto"
    vae_tiling: VaeTiling = "auto"
    text_encoder: TextEncoderPlace = "auto"
    lora_mode: LoraMode = "merge"
    lora_parameters: int = 0
    blocks_from_disk: bool | None = None
    cross_fade: bool = False
    reanchor_every: int | None = None
    demo_weights: bool = False


@dataclass(frozen=True)
class Preset:
    """How long a video may take. `shift` None: that of the size. `lora`: as in `Profile`."""

    name: PresetName
    description: str
    num_steps: int
    shift: float | None
    text_guidance_scale: float
    audio_guidance_scale: float
    lora: str = ""
    lora_scale: float = 1.0


@dataclass(frozen=True)
class Card:
    """A kind of GPU. `pattern`: found in its name as the driver tells it. `memory_gib`: tells apart cards of one name.

    `bf16_tflops`: the vendor's peak.
    """

    profile: str
    pattern: str
    bf16_tflops: float
    memory_gib: int | None = None


PROFILES: tuple[Profile, ...] = (
    Profile("default", "the models' own settings: 480 sizes, 40 steps, bfloat16 on a GPU"),
    Profile(
        name="demo",
        description="every stage in seconds on a CPU, with the small weights that come with the package",
        size="demo",
        chunk_frames=33,
        multitalk_motion_frames=9,
        num_steps=8,
        shift=3.0,
        text_guidance_scale=1.0,
        audio_guidance_scale=1.0,
        cross_fade=True,
        reanchor_every=4,
        demo_weights=True,
    ),
    Profile("rtx-5090", "32 GB, computes in fp8", quant="fp8"),
    Profile("rtx-4090", "24 GB, computes in fp8, every block streamed", quant="fp8", num_persistent_param_in_dit=0),
    Profile("rtx-3090", "24 GB, 8-bit integers, every block streamed", quant="int8", num_persistent_param_in_dit=0),
    Profile("rtx-4080", "16 GB, computes in fp8", quant="fp8", num_persistent_param_in_dit=0),
    Profile("rtx-4070-ti", "12 or 16 GB, computes in fp8", quant="fp8", num_persistent_param_in_dit=0),
    Profile("rtx-4060-ti", "16 GB, computes in fp8, half the lanes", quant="fp8", num_persistent_param_in_dit=0),
    Profile("rtx-3060", "12 GB, 8-bit integers", quant="int8", num_persistent_param_in_dit=0),
    Profile("l4", "24 GB, computes in fp8", quant="fp8", num_persistent_param_in_dit=5_000_000_000),
    Profile("a10g", "24 GB, 8-bit integers", quant="int8", num_persistent_param_in_dit=8_000_000_000),
    Profile("a100-40", "40 GB, bfloat16 partly streamed", num_persistent_param_in_dit=11_000_000_000),
    Profile("a100-80", "80 GB, bfloat16 on the GPU", num_persistent_param_in_dit=22_000_000_000),
    Profile("l40s", "48 GB, computes in fp8, all on the GPU", quant="fp8"),
    Profile("h100", "80 GB, bfloat16 on the GPU"),
    Profile("h200", "141 GB, bfloat16 on the GPU"),
    Profile("gpu-8gb", "any card of 8 GB", quant="fp8", num_persistent_param_in_dit=0),
    Profile("gpu-12gb", "any card of 12 GB", quant="fp8", num_persistent_param_in_dit=0),
    Profile("gpu-16gb", "any card of 16 GB", quant="fp8", num_persistent_param_in_dit=0),
    Profile("gpu-24gb", "any card of 24 GB", quant="fp8", num_persistent_param_in_dit=0),
    Profile("gpu-32gb", "any card of 32 GB and more", quant="fp8"),
    Profile("gpu-64gb", "any card of 64 GB and more: bfloat16 on the GPU"),
)

PROFILE_OF_MEMORY: tuple[tuple[int, str], ...] = (
    (60, "gpu-64gb"),
    (30, "gpu-32gb"),
    (22, "gpu-24gb"),
    (15, "gpu-16gb"),
    (11, "gpu-12gb"),
    (0, "gpu-8gb"),
)
"""For cards without a row: at least so many GiB, the profile."""

CARDS: tuple[Card, ...] = (
    Card("rtx-5090", r"RTX 5090(?! Laptop)", 209.5),
    Card("rtx-4090", r"RTX 4090(?! Laptop)", 165.2, 24),
    Card("rtx-3090", r"RTX 3090 Ti", 80.0, 24),
    Card("rtx-3090", r"RTX 3090", 71.2, 24),
    Card("rtx-4080", r"RTX 4080(?! Laptop)", 97.5, 16),
    Card("rtx-4070-ti", r"RTX 4070 Ti", 80.2),
    Card("rtx-4060-ti", r"RTX 4060 Ti", 44.1, 16),
    Card("rtx-3060", r"RTX 3060(?! (Ti|Laptop))", 25.5, 12),
    Card("l40s", r"L40S", 362.0, 45),
    Card("l4", r"\bL4\b", 121.0, 23),
    Card("a10g", r"\bA10G\b", 70.0, 23),
    Card("a100-40", r"A100.*40GB", 312.0, 40),
    Card("a100-80", r"A100.*80GB", 312.0, 80),
    Card("h200", r"\bH200\b", 989.0),
    Card("h100", r"\bH100\b", 989.0, 80),
)
"""The cards with a row of their own, the more exact pattern first. `memory_gib` is met within a tenth."""

PRESETS: tuple[Preset, ...] = (
    Preset("quality", "the models' own settings: 40 steps of 3 passes", 40, None, 5.0, 4.0),
    Preset("balanced", "FusionX LoRA: 8 steps of 2 passes", 8, 2.0, 1.0, 2.0, lora="fusionx"),
    Preset("fast", "lightx2v LoRA: 4 steps of 1 pass", 4, None, 1.0, 1.0, lora="lightx2v"),
)
