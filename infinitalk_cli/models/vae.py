"""The video VAE: pixels to latents, eight times smaller in space and four times in time, and back.

Both directions run group by group with a `TemporalCache`: encoding feeds frame 0 alone and then four frames at a time,
decoding one latent at a time. So neither direction ever looks ahead: the latents of a beginning are those of the whole,
and decoded frames can be written while the next ones are computed, at a memory that does not grow with the length.
Where a clip stands still, most of the encoder need not run again (`vae_still.py`).

A picture too large for the GPU is computed tile by tile (`vae_tiling.py`): each tile through the whole clip, so that
the cache is that of one tile, too. Decoded tiles are put together in RAM.

Weights decide the precision: float32 is exact, in 16 bits the norms and the latent statistics stay in float32. What
float16 can't hold spreads as infinities and NaN to what is made of it, so looking at the results is enough.
Source: Wan2.1's video VAE (Apache-2.0), same arithmetic and the same parameter names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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
    is_channels_last,
)
from infinitalk_cli.models.vae_still import shrink_groups
from infinitalk_cli.models.vae_tiling import Tiling

GROUP = 4  # frames per latent, but for the first
SCALE = 8  # pixels per latent, in both directions

# Statistics of the latents of the published VAE, one per channel: normalised = (mu - mean) / std.
LATENT_MEAN = (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
LATENT_STD = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)


class BeyondFloat16(ArithmeticError):
    """Values within the VAE went beyond 65,504, where float16 ends."""


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
        for layer in self.shrinking:
            x = layer(x, cache)
        return self.finish(x, cache)

    @property
    def shrinking(self) -> list[nn.Module]:
        """The first part, which looks at neighbours only: `(B, 3, 1 or 4, H, W)` to `(B, C, 1, H / 8, W / 8)`."""
        return [self.conv1, *self.downsamples]

    def finish(self, x: Tensor, cache: TemporalCache) -> Tensor:
        """The second part, with the attention within the frame: `(B, C, 1, h, w)` to `(B, 2 * z_dim, 1, h, w)`."""
        for layer in self.middle:
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
        return self.grow(self.begin(x, cache), cache)

    def begin(self, x: Tensor, cache: TemporalCache) -> Tensor:
        """The first part, with the attention within the frame: `(B, z_dim, 1, h, w)` to `(B, C, 1, h, w)`."""
        x = self.conv1(x, cache)
        for layer in self.middle:
            x = layer(x, cache)
        return x

    def grow(self, x: Tensor, cache: TemporalCache) -> Tensor:
        """The second part, which looks at neighbours only: `(B, C, 1, h, w)` to `(B, 3, 1 or 4, 8 h, 8 w)`."""
        for layer in self.upsamples:
            x = layer(x, cache)
        return self.head(x, cache)


class VideoVAE(nn.Module):
    """The published video VAE. Parameters are named as in `Wan2.1_VAE.pth`.

    `tiling`: larger pictures are computed tile by tile; the memory it takes is then that of a tile.
    """

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.tiling: Tiling | None = None
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
        Raises: BeyondFloat16: if weights in float16 give what is no number.
        """
        height, width = (size // SCALE for size in frames.shape[3:])
        tiling = self.tiling if self.tiling and self.tiling.divides(height, width) else None
        cache, latents = TemporalCache(), list[Tensor]()
        for shrunk in self._shrink(frames) if tiling is None else self._shrink_tiles(frames, tiling).split(1, dim=2):
            mean, _ = self.conv1(self.encoder.finish(shrunk, cache)).chunk(2, dim=1)
            latents.append(mean)
        center, spread = latent_statistics(frames.device)
        return (within_range(torch.cat(latents, dim=2)).float() - center) / spread

    def _shrink(self, frames: Tensor) -> Iterator[Tensor]:
        """Group by group `(B, C, 1, H / 8, W / 8)`."""
        groups = [frames[:, :, start:end] for start, end in frame_groups(frames.shape[2])]
        yield from shrink_groups(self.encoder.shrinking, groups, self.conv1.weight.dtype)

    def _shrink_tiles(self, frames: Tensor, tiling: Tiling) -> Tensor:
        """The same for all groups `(B, C, T', H / 8, W / 8)`, put together from tiles."""
        height, width = (size // SCALE for size in frames.shape[3:])
        channels = self.config.stage_dims[-1]
        size = (frames.shape[0], channels, len(frame_groups(frames.shape[2])), height, width)
        whole = torch.zeros(size, dtype=self.conv1.weight.dtype, device=frames.device)
        for tile in tiling.tiles(height, width):
            for made, place in zip(self._shrink(tile.cut(frames, SCALE)), whole.split(1, dim=2), strict=True):
                tile.add(made, place)
        return whole

    @torch.no_grad()
    def decode_stream(self, latents: Tensor) -> Iterator[Tensor]:
        """Decode latent by latent.

        Args: latents: `(B, z_dim, T, h, w)`, normalised.
        Yields: frames `(B, 3, t, 8 h, 8 w)` in [-1, 1], float32: t is 1 for the first latent, then 4.
        Raises: BeyondFloat16: if weights in float16 give what is no number, in place of the frames.
        """
        tiling = self.tiling if self.tiling and self.tiling.divides(*latents.shape[3:]) else None
        begun = self._begin(latents)
        if tiling is None:
            yield from self._grow(begun)
        else:
            for frames in self._grow_tiles(torch.cat(list(begun), dim=2), tiling):
                yield frames.to(latents.device)

    def _begin(self, latents: Tensor) -> Iterator[Tensor]:
        """Latent by latent `(B, C, 1, h, w)`."""
        cache = TemporalCache()
        center, spread = latent_statistics(latents.device)
        for latent in latents.split(1, dim=2):
            restored = (latent.float() * spread + center).to(self.conv2.weight.dtype)
            yield self.decoder.begin(self.conv2(restored), cache)

    def _grow(self, begun: Iterable[Tensor]) -> Iterator[Tensor]:
        """Latent by latent `(B, 3, 1 or 4, 8 h, 8 w)`."""
        cache = TemporalCache()
        for latent in begun:
            yield within_range(self.decoder.grow(latent, cache)).float().clamp_(-1, 1)
            cache.is_first = False

    def _grow_tiles(self, begun: Tensor, tiling: Tiling) -> Iterator[Tensor]:
        """The same from all latents, put together from tiles in RAM."""
        batch, _, num_latents, height, width = begun.shape
        layout = torch.channels_last_3d if is_channels_last(self.decoder.conv1.weight) else torch.contiguous_format
        whole = [
            torch.zeros(batch, 3, GROUP if number else 1, height * SCALE, width * SCALE)
            for number in range(num_latents)
        ]
        for tile in tiling.tiles(height, width):
            parts = (part.contiguous(memory_format=layout) for part in tile.cut(begun).split(1, dim=2))
            for made, place in zip(self._grow(parts), whole, strict=True):
                tile.add(made, place, SCALE)
        while whole:
            yield whole.pop(0)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode a clip at once: `(B, z_dim, T, h, w)` to `(B, 3, 4 T - 3, 8 h, 8 w)` in [-1, 1], float32."""
        return torch.cat(list(self.decode_stream(latents)), dim=2)


def within_range(made: Tensor) -> Tensor:
    """What was made, not clamped yet. Raises: BeyondFloat16: if it is in float16 and not finite."""
    if made.dtype == torch.float16 and not made.isfinite().all():
        raise BeyondFloat16
    return made


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
