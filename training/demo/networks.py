"""The demo's networks: sizes, construction, and files in the published names.

Everything is our own classes at small sizes. The text encoder and CLIP are not trained: their numbers are random, drawn
once by `frozen.py` and kept, and the transformer learns what to make of them. What is stored is 16-bit floats.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from infinitalk_cli.models.audio_encoder import AudioEncoder
from infinitalk_cli.models.config import DiTConfig
from infinitalk_cli.models.dit import DiT
from infinitalk_cli.models.encoder_config import AudioEncoderConfig, ImageEncoderConfig, VAEConfig
from infinitalk_cli.models.image_encoder import ImageEncoder
from infinitalk_cli.models.vae import VideoVAE

TEXT_DIM = 64
IMAGE = ImageEncoderConfig(dim=64, ffn_dim=64, num_layers=2, patch_size=28, image_size=224)
AUDIO = AudioEncoderConfig(
    dim=96, ffn_dim=192, num_layers=3, num_heads=6, conv_dim=(48,) * 7, position_kernel=32, position_groups=16
)
VAE = VAEConfig(dim=24, z_dim=16, stage_dims=(24, 48, 56, 56), halves_time=(False, True, True), num_res_blocks=1)
DIT = DiTConfig(
    dim=192,
    ffn_dim=384,
    freq_dim=64,
    num_heads=6,
    num_layers=6,
    text_dim=TEXT_DIM,
    image_dim=IMAGE.dim,
    audio_layers=AUDIO.num_layers,
    audio_dim=AUDIO.dim,
    audio_hidden_dim=96,
    audio_token_dim=64,
    audio_tokens=8,
)

CHUNK_FRAMES, MOTION_FRAMES = 33, 9
NUM_STEPS, SHIFT = 8, 3.0
CROSS_FADE, REANCHOR_EVERY = True, 4
"""What the profile `demo` samples with. Without the fade, a chunk's first new frame differs from the one before by
three times the usual: the motion frames lose detail on their way through so small a VAE. Without a new start from the
reference every few chunks, colours wander within 20 s."""

DIT_FILE, VAE_FILE, AUDIO_FILE, IMAGE_FILE = (
    "dit.safetensors",
    "vae.safetensors",
    "audio.safetensors",
    "clip.safetensors",
)


def new_dit(seed: int) -> DiT:
    """A transformer before training; its head is zero, so that it starts with no opinion."""
    torch.manual_seed(seed)
    dit = DiT(DIT)
    nn.init.zeros_(dit.head.head.weight)
    nn.init.zeros_(dit.head.head.bias)
    return dit


def new_vae(seed: int) -> VideoVAE:
    """A VAE before training."""
    torch.manual_seed(seed)
    return VideoVAE(VAE)


def new_audio_encoder(seed: int) -> AudioEncoder:
    """A wav2vec2 before training. It stays in evaluation mode, which has no dropout."""
    torch.manual_seed(seed)
    return AudioEncoder(AUDIO)


def new_image_encoder(seed: int) -> ImageEncoder:
    """A CLIP that stays as it is."""
    torch.manual_seed(seed)
    return ImageEncoder(IMAGE)


def save_half(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors as 16-bit floats; the file appears whole."""
    part = path.with_name(f".{path.name}.part")
    half = {name: tensor.detach().to("cpu", torch.float16).contiguous() for name, tensor in tensors.items()}
    save_file(half, part, metadata={"format": "pt"})
    part.replace(path)


def load_weights(module: nn.Module, path: Path) -> None:
    """Fill a module from a file written by `save_half` under the module's own names."""
    module.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def published_audio_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an `AudioEncoder` as a wav2vec2 checkpoint names them."""
    renamed: dict[str, Any] = {}
    for name, tensor in state.items():
        name = name.replace("parametrizations.weight.original0", "weight_g")
        name = name.replace("parametrizations.weight.original1", "weight_v")
        renamed["wav2vec2." + name.removeprefix("model.")] = tensor
    return renamed
