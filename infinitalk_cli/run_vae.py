"""The video VAE of a run: which numbers it computes with, and what to do when they are too small for it.

float32 is what the published programs use; on a GPU its convolutions round to 10 bits of mantissa (TF32), as torch does
if nobody says otherwise. bfloat16 and float16 take half the memory and 45 % of the time (benchmarks): bfloat16 has
float32's range and 7 bits of mantissa, float16 has 10 and ends at 65,504. What the layers of the published weights
reach has not been measured here, so in float16 every result is looked at, and one that is no number ends the run in
words.

GPUs have faster convolutions for weights with channels fastest, in float32, too: 10 % less time, a sixth less memory.
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


def load_vae(files: WeightFiles, device: torch.device, home: torch.device, dtype: torch.dtype) -> VideoVAE:
    """The VAE for a device, put in `home`, in the layout that is fast there."""
    vae = build_vae(files, dtype=dtype, device=home)
    if device.type == "cuda":
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
