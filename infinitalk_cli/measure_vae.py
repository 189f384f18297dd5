"""What `talk bench` times of the video VAE and of what is done with its frames: formats beside each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from infinitalk_cli.measure import Measured, Stopwatch, Workload
from infinitalk_cli.media.color import match_color
from infinitalk_cli.models.encoder_config import VAEConfig
from infinitalk_cli.models.vae import VideoVAE

REAL_VAE = VAEConfig(
    dim=96, z_dim=16, stage_dims=(96, 192, 384, 384), halves_time=(False, True, True), num_res_blocks=2
)
TINY_VAE = VAEConfig(dim=8, z_dim=16, stage_dims=(8, 8, 16, 16), halves_time=(False, True, True), num_res_blocks=1)


@dataclass(frozen=True)
class VaeSetting:
    """A number format and layout of the VAE."""

    dtype: torch.dtype
    channels_last: bool

    @property
    def name(self) -> str:
        """Such as "bfloat16 channels-last"."""
        return str(self.dtype).removeprefix("torch.") + " channels-last" * self.channels_last


@torch.no_grad()
def measure_vae(settings: list[VaeSetting], work: Workload, watch: Stopwatch) -> Iterator[Measured]:
    """Time encoding and decoding of a chunk; the note says how far results are from those of the first setting.

    Args: settings: the exact one first.
    """
    torch.manual_seed(0)
    with watch.device:
        vae = VideoVAE(TINY_VAE if work.is_tiny else REAL_VAE).eval()
        frames = smooth_frames(work)
        latents = torch.randn(1, 16, *work.latent_size)
    exact: dict[str, Tensor] = {}
    state = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    for setting in settings:
        vae.to(setting.dtype)
        vae.load_state_dict(state)
        if setting.channels_last:
            vae.use_channels_last()
        for kind, call in (
            ("encode", lambda: vae.encode(frames)),
            ("decode", lambda: drain(vae.decode_stream(latents))),
        ):
            made = vae.encode(frames) if kind == "encode" else vae.decode(latents)
            expected = exact.setdefault(kind, made)
            off = ((made - expected).norm() / expected.norm()).item()
            worst = (made - expected).abs().amax().item()
            del made
            yield watch.measure(f"VAE {kind}, {setting.name}", call, note=f"off by {off:.2e}, at most {worst:.3f}")


def smooth_frames(work: Workload) -> Tensor:
    """Frames `(1, 3, T, H, W)` with large shapes in them, as pictures have."""
    coarse = torch.randn(1, 3, work.num_frames // 8 + 2, work.height // 32, work.width // 32)
    size = (work.num_frames, work.height, work.width)
    return F.interpolate(coarse, size=size, mode="trilinear").clamp_(-1, 1)


def drain(pieces: Iterator[Tensor]) -> None:
    """Let a generator do its work, holding one piece at a time."""
    for _ in pieces:
        pass


@torch.no_grad()
def measure_color(work: Workload, watch: Stopwatch) -> Measured:
    """Time the colour correction of a chunk."""
    with watch.device:
        frames = smooth_frames(work)
    return watch.measure("colour correction", lambda: match_color(frames, frames[:, :, :1], 1.0))
