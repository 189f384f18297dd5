"""The video VAE of a run: which numbers it computes with, and what to do when they are too small for it.

float32 is what the published programs use. bfloat16 and float16 take half the memory and 40 % of the time (benchmarks):
bfloat16 has float32's range and 8 bits of mantissa, float16 has 11 bits and ends at 65,504. What the layers of the
published weights reach has not been measured here, so in float16 every result is looked at, and one that is no number
ends the run in words.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from infinitalk_cli.errors import WeightsError
from infinitalk_cli.footprint import Rung
from infinitalk_cli.models.vae import VideoVAE
from infinitalk_cli.networks import build_vae
from infinitalk_cli.profiles import Profile
from infinitalk_cli.weights import WeightFiles


def vae_dtype_of(profile: Profile, rung: Rung) -> torch.dtype:
    """The VAE's dtype on a GPU that is shared out in this way."""
    if rung.exact_vae:
        return torch.float32
    return torch.float16 if profile.vae_dtype == "float16" else torch.bfloat16


def load_vae(files: WeightFiles, home: torch.device, dtype: torch.dtype) -> VideoVAE:
    """The VAE in float32, or in 16 bits with the layout that makes these fast."""
    vae = build_vae(files, dtype=dtype, device=home)
    if dtype != torch.float32:
        vae.use_channels_last()
    if dtype == torch.float16:
        refuse_overflow(vae)
    return vae


def refuse_overflow(vae: VideoVAE) -> None:
    """Have the VAE raise WeightsError where what it encodes or decodes is no number."""

    def check(module: nn.Module, given: object, made: Tensor) -> None:
        if not made.isfinite().all():
            raise WeightsError(
                "the video VAE gives values that are no numbers in float16",
                hint="--vae-dtype bfloat16 has the range for it and takes as little memory",
            )

    for last in (vae.conv1, vae.decoder.head):
        last.register_forward_hook(check)
