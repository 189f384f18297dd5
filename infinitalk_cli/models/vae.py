"""The video VAE: pixels to latents, eight times smaller in space and four times in time, and back.

Both directions run group by group with a `TemporalCache`: encoding feeds frame 0 alone and then four frames at a time,
decoding one latent at a time. So neither direction ever looks ahead: the latents of a beginning are those of the whole,
and decoded frames can be written while the next ones are computed, at a memory that does not grow with the length.

Weights decide the precision: float32 is exact, in bfloat16 the norms and the latent statistics stay in float32.
Source: Wan2.1's video VAE (Apache-2.0), same arithmetic and the same parameter names.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn

from infinitalk_cli.models.encoder_config import VAEConfig
from infinitalk_cli.models.vae_layers import (
    CausalConv3d,
    ChannelNorm,
    ConvStack,
    Downsample,
    FrameAttention,
    ResidualBlock,
    TemporalCache,
    Upsample,
)

GROUP = 4  # frames per latent, but for the first

# Statistics of the latents of the published VAE, one per channel: normalised = (mu - mean) / std.
LATENT_MEAN = (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
LATENT_STD = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)


class Encoder(nn.Module):
    """Frames to the two halves of the posterior, mean and log-variance."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = [config.dim, *config.stage_dims]
        layers: list[nn.Module] = []
        for stage, (in_dim, out_dim) in enumerate(pairwise(widths)):
            layers += [ResidualBlock(in_dim if i == 0 else out_dim, out_dim) for i in range(config.num_res_blocks)]
            if stage < len(config.halves_time):
                layers.append(Downsample(out_dim, config.halves_time[stage]))
        self.conv1 = CausalConv3d(3, config.dim, (3, 3, 3))
        self.downsamples = nn.ModuleList(layers)
        self.middle = middle(widths[-1])
        self.head = head(widths[-1], 2 * config.z_dim)

    def forward(self, x: Tensor, cache: TemporalCache) -> Tensor:
        """Map one group of frames `(B, 3, 1 or 4, H, W)` to `(B, 2 * z_dim, 1, H / 8, W / 8)`."""
        x = self.conv1(x, cache)
        for layer in (*self.downsamples, *self.middle):
            x = layer(x, cache)
        return self.head(x, cache)


class Decoder(nn.Module):
    """One latent to its frames."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = list(reversed(config.stage_dims))
        doubles_time = list(reversed(config.halves_time))
        layers: list[nn.Module] = []
        in_dim = widths[0]
        for stage, out_dim in enumerate(widths):
            layers += [ResidualBlock(in_dim if i == 0 else out_dim, out_dim) for i in range(config.num_res_blocks + 1)]
            if stage < len(doubles_time):
                layers.append(Upsample(out_dim, doubles_time[stage]))
                in_dim = out_dim // 2
        self.conv1 = CausalConv3d(config.z_dim, widths[0], (3, 3, 3))
        self.middle = middle(widths[0])
        self.upsamples = nn.ModuleList(layers)
        self.head = head(widths[-1], 3)

    def forward(self, x: Tensor, cache: TemporalCache) -> Tensor:
        """Map one latent `(B, z_dim, 1, h, w)` to frames `(B, 3, 1 or 4, 8 h, 8 w)`, not clamped."""
        x = self.conv1(x, cache)
        for layer in (*self.middle, *self.upsamples):
            x = layer(x, cache)
        return self.head(x, cache)


class VideoVAE(nn.Module):
    """The published video VAE. Parameters are named as in `Wan2.1_VAE.pth`."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.conv1 = CausalConv3d(2 * config.z_dim, 2 * config.z_dim, (1, 1, 1))
        self.conv2 = CausalConv3d(config.z_dim, config.z_dim, (1, 1, 1))
        self.decoder = Decoder(config)

    def use_channels_last(self) -> None:
        """Lay weights out with channels fastest, and with them what the convolutions make: how GPUs like it best."""
        for parameter in self.parameters():
            if parameter.dim() == 5:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)
            elif parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """Encode a clip; the mean of the posterior is taken, nothing is drawn at random.

        Args: frames: `(B, 3, T, H, W)` in [-1, 1], H and W multiples of 8. Frames past the last full group of four
            are dropped.
        Returns: `(B, z_dim, (T - 1) // 4 + 1, H / 8, W / 8)`, normalised, float32.
        """
        cache = TemporalCache()
        latents: list[Tensor] = []
        for start, end in frame_groups(frames.shape[2]):
            group = frames[:, :, start:end].to(self.conv1.weight.dtype)
            mean, _ = self.conv1(self.encoder(group, cache)).chunk(2, dim=1)
            latents.append(mean.float())
            cache.is_first = False
        center, spread = latent_statistics(frames.device)
        return (torch.cat(latents, dim=2) - center) / spread

    @torch.no_grad()
    def decode_stream(self, latents: Tensor) -> Iterator[Tensor]:
        """Decode latent by latent.

        Args: latents: `(B, z_dim, T, h, w)`, normalised.
        Yields: frames `(B, 3, t, 8 h, 8 w)` in [-1, 1], float32: t is 1 for the first latent, then 4.
        """
        cache = TemporalCache()
        center, spread = latent_statistics(latents.device)
        for latent in latents.split(1, dim=2):
            restored = (latent.float() * spread + center).to(self.conv2.weight.dtype)
            yield self.decoder(self.conv2(restored), cache).float().clamp_(-1, 1)
            cache.is_first = False

    def decode(self, latents: Tensor) -> Tensor:
        """Decode a clip at once: `(B, z_dim, T, h, w)` to `(B, 3, 4 T - 3, 8 h, 8 w)` in [-1, 1], float32."""
        return torch.cat(list(self.decode_stream(latents)), dim=2)


def frame_groups(num_frames: int) -> list[tuple[int, int]]:
    """Start and end of each group that is encoded at a time: frame 0, then every full group of four."""
    return [(0, 1), *((start, start + GROUP) for start in range(1, num_frames - GROUP + 1, GROUP))]


def latent_statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the latents, each `(16, 1, 1, 1)` in float32."""
    mean, std = torch.tensor([LATENT_MEAN, LATENT_STD], device=device)
    return mean.view(-1, 1, 1, 1), std.view(-1, 1, 1, 1)


def middle(dim: int) -> nn.ModuleList:
    """The layers at the smallest size: residual, attention within the frame, residual."""
    return nn.ModuleList([ResidualBlock(dim, dim), FrameAttention(dim), ResidualBlock(dim, dim)])


def head(in_dim: int, out_dim: int) -> ConvStack:
    """Norm, SiLU and the last convolution."""
    return ConvStack(ChannelNorm(in_dim, 3), nn.SiLU(), CausalConv3d(in_dim, out_dim, (3, 3, 3)))
