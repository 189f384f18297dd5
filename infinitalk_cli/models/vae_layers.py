"""Layers of the causal video VAE, which sees a clip as one frame and then groups of frames.

Time is padded on the past side only, so a clip can be fed group by group, provided that each temporal convolution
remembers the end of what it saw. That memory is a `TemporalCache`: an object of one encode or decode call, handed down
through the layers, never an attribute of a module. Two calls can run at once, and an abandoned one leaves nothing
behind. The cache keeps two frames per convolution, copied, because a view would keep the whole group alive.

The temporal resamplers are the surprise. In the first group (one frame) they leave time alone: going down, the frame
is remembered and later groups are reduced together with the last frame before them; going up, the first frame does
not even enter the history, so the second group starts from zeros.

Module names follow the published file; no key map is needed. Source: Wan2.1's video VAE (Apache-2.0), same arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from infinitalk_cli.models.fused import can_norm_silu, channel_norm_silu

HISTORY = 2  # frames that a three-tap kernel looks back
NORM_FLOOR = 1e-12  # smallest channel norm to divide by


@dataclass
class TemporalCache:
    """The last input frames of every temporal convolution within one clip; `is_first` while in the first group."""

    is_first: bool = True
    frames: dict[nn.Module, Tensor] = field(default_factory=dict[nn.Module, Tensor])

    def extend(self, module: nn.Module, x: Tensor, length: int) -> Tensor:
        """Put the remembered frames (zeros at first) before `x` and remember the last `length` frames of the result.

        Args: x: `(B, C, T, H, W)`. Returns: `(B, C, length + T, H, W)`.
        """
        if is_channels_last(x):  # torch.cat is slow in this layout
            extended, rest = self.room(module, x, length)
            rest.copy_(x)
            self.remember(module, extended, length)
            return extended
        past = self.frames.get(module)
        if past is None:
            batch, channels, _, height, width = x.shape
            past = x.new_zeros(batch, channels, length, height, width)
        extended = torch.cat([past, x], dim=2)
        self.remember(module, extended, length)
        return extended

    def room(self, module: nn.Module, x: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Like `extend` for a tensor like `x` that is yet to be made: the whole, and the part of it to be filled.

        It saves a copy of everything. `remember` has to be called when it is filled.
        """
        batch, channels, frames, height, width = x.shape
        shape = (batch, channels, length + frames, height, width)
        whole = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last_3d)
        past = self.frames.get(module)
        if past is None:
            whole[:, :, :length].zero_()
        else:
            whole[:, :, :length].copy_(past)
        return whole, whole[:, :, length:]

    def remember(self, module: nn.Module, x: Tensor, length: int) -> None:
        """Keep a copy of the last `length` frames of `x`."""
        self.frames[module] = x[:, :, -length:].clone()


class CausalConv3d(nn.Conv3d):
    """3-D convolution, same size in space, three taps (this frame and the two before it) or one in time."""

    def __init__(self, in_dim: int, out_dim: int, kernel: tuple[int, int, int]) -> None:
        super().__init__(in_dim, out_dim, kernel, padding=(0, kernel[1] // 2, kernel[2] // 2))

    def forward(self, input: Tensor, cache: TemporalCache | None = None) -> Tensor:
        """Convolve `(B, C, T, H, W)`; without a cache the clip starts here."""
        if self.kernel_size[0] > 1:
            input = (cache or TemporalCache()).extend(self, input, HISTORY)
            if input.device.type == "cpu":
                return self.convolve_frames(input)
        return super().forward(input)

    def after_norm(self, norm: ChannelNorm, x: Tensor, cache: TemporalCache) -> Tensor:
        """Convolve `silu(norm(x))`, which is written where the convolution wants it if there is a kernel for that."""
        if not can_norm_silu(x):
            return self(functional.silu(norm(x)), cache)
        whole, rest = cache.room(self, x, HISTORY)
        channel_norm_silu(x, norm.gamma, NORM_FLOOR, out=rest)
        cache.remember(self, whole, HISTORY)
        return super().forward(whole)

    def convolve_frames(self, x: Tensor) -> Tensor:
        """The same sums as 2-D convolutions in which each frame's channels hold its neighbours in time too.

        On a CPU torch computes a 3-D convolution of one small clip without its fast kernels; this is 1.5 to 9 times
        faster there (a core, 96 to 16 channels). Args: x: `(B, C, T + taps - 1, H, W)`. Returns: `(B, C', T, H, W)`.
        """
        taps = self.kernel_size[0]
        frames = rearrange(x.unfold(2, taps, 1), "b c t h w k -> (b t) (c k) h w")
        weight = self.weight.flatten(1, 2)
        rows, columns = self.kernel_size[1] // 2, self.kernel_size[2] // 2
        made = functional.conv2d(frames, weight, self.bias, padding=(rows, columns))
        return rearrange(made, "(b t) c h w -> b c t h w", b=x.shape[0])


class ChannelNorm(nn.Module):
    """Scale each position's channel vector to length sqrt(C), times gamma; the length is taken in float32."""

    def __init__(self, dim: int, num_axes: int) -> None:
        super().__init__()
        self.scale = dim**0.5
        self.gamma = nn.Parameter(torch.ones(dim, *[1] * num_axes))  # num_axes: axes after the channels

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `(B, C, ...)` over C."""
        return x * (self.scale / channel_length(x).clamp_min(NORM_FLOOR)).to(x.dtype) * self.gamma


def channel_length(x: Tensor) -> Tensor:
    """Euclidean length over the channels: `(B, C, ...)` to `(B, 1, ...)`, float32."""
    if x.device.type == "cpu":  # the kernel below takes 19 times as long there, over an axis that is not the last
        return x.float().square().sum(dim=1, keepdim=True).sqrt()
    return torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32)


class ConvStack(nn.Sequential):
    """Norm, SiLU, causal 3x3x3 convolution, once or twice, in the published numbering."""

    def forward(self, input: Tensor, cache: TemporalCache | None = None) -> Tensor:
        """Apply the layers in order to `(B, C, T, H, W)`."""
        cache = cache or TemporalCache()
        convolutions = [layer for layer in self if isinstance(layer, CausalConv3d)]
        norms = [layer for layer in self if isinstance(layer, ChannelNorm)]
        for norm, convolution in zip(norms, convolutions, strict=True):
            input = convolution.after_norm(norm, input, cache)
        return input


class ResidualBlock(nn.Module):
    """Twice norm, SiLU and a causal 3x3x3 convolution, beside a shortcut."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        # Index 5 is a dropout in the published module; the number of the last layer depends on it.
        self.residual = ConvStack(
            ChannelNorm(in_dim, 3),
            nn.SiLU(),
            CausalConv3d(in_dim, out_dim, (3, 3, 3)),
            ChannelNorm(out_dim, 3),
            nn.SiLU(),
            nn.Identity(),
            CausalConv3d(out_dim, out_dim, (3, 3, 3)),
        )
        self.shortcut = nn.Identity() if in_dim == out_dim else CausalConv3d(in_dim, out_dim, (1, 1, 1))

    def forward(self, x: Tensor, cache: TemporalCache) -> Tensor:
        """Map `(B, in_dim, T, H, W)` to `(B, out_dim, T, H, W)`."""
        return self.shortcut(x) + self.residual(x, cache)


class FrameAttention(nn.Module):
    """Single-head attention among the positions of each frame, added to its input."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(dim, 2)
        self.to_qkv = nn.Conv2d(dim, dim * 3, 1)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor, cache: TemporalCache) -> Tensor:
        """Map `(B, C, T, H, W)` to the same shape; frames do not see each other."""
        batch, _, _, height, _ = x.shape
        frames = rearrange(x, "b c t h w -> (b t) c h w")
        qkv = rearrange(self.to_qkv(self.norm(frames)), "n (three c) h w -> three n 1 (h w) c", three=3)
        # One head as wide as all channels (384): more than the fused attention kernels for the transformer take.
        mixed = functional.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        mixed = self.proj(rearrange(mixed, "n 1 (h w) c -> n c h w", h=height))
        return x + rearrange(mixed, "(b t) c h w -> b c t h w", b=batch)


class Downsample(nn.Module):
    """Halve height and width, and perhaps time."""

    def __init__(self, dim: int, halves_time: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(dim, dim, 3, stride=2))
        self.time_conv = nn.Conv3d(dim, dim, (3, 1, 1), stride=(2, 1, 1)) if halves_time else None

    def forward(self, x: Tensor, cache: TemporalCache) -> Tensor:
        """Map `(B, C, T, H, W)` to `(B, C, T / 2, H / 2, W / 2)`; T stays in the first group."""
        x = per_frame(self.resample, x)
        if self.time_conv is None:
            return x
        if cache.is_first:
            cache.remember(self.time_conv, x, 1)
            return x
        return self.time_conv(cache.extend(self.time_conv, x, 1))


class Upsample(nn.Module):
    """Double height and width, halving the channels, and perhaps double time."""

    def __init__(self, dim: int, doubles_time: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(
            nn.Upsample(scale_factor=2.0, mode="nearest-exact"),
            nn.Conv2d(dim, dim // 2, 3, padding=1),
        )
        self.time_conv = CausalConv3d(dim, dim * 2, (3, 1, 1)) if doubles_time else None

    def forward(self, x: Tensor, cache: TemporalCache) -> Tensor:
        """Map `(B, C, T, H, W)` to `(B, C / 2, 2 T, 2 H, 2 W)`; T stays in the first group."""
        if self.time_conv is not None and not cache.is_first:
            both = self.time_conv(x, cache)  # first half of the channels: even frames, second half: odd ones
            if is_channels_last(both):  # keep that layout, with one copy
                last = rearrange(both, "b (two c) t h w -> b (t two) h w c", two=2)
                x = rearrange(last, "b t h w c -> b c t h w")
            else:
                x = rearrange(both, "b (two c) t h w -> b c (t two) h w", two=2)
        return per_frame(self.resample, x)


def is_channels_last(x: Tensor) -> bool:
    """Whether channels lie side by side in memory, and no other layout says the same."""
    return x.is_contiguous(memory_format=torch.channels_last_3d) and not x.is_contiguous()


def per_frame(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply a 2-D layer to every frame of `(B, C, T, H, W)`."""
    frames = layer(rearrange(x, "b c t h w -> (b t) c h w"))
    return rearrange(frames, "(b t) c h w -> b c t h w", b=x.shape[0])
