"""The parts of one transformer block.

Numbers: linear layers and attention run in the compute dtype (that of the weights); the residual stream is kept in it.
Statistics of norms are float32, their results are rounded before they meet scale and shift. Modulation, gates and the
gated sums are float32 and rounded once at the end. Tables of modulation are float32 parameters, and a product of a
bfloat16 tensor with a float32 one is float32, so these casts need no autocast. In a float32 run nothing is rounded.

Linear layers are called, never read: they may have been replaced by 8-bit ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infinitalk_cli.models.attention import attention
from infinitalk_cli.models.audio_attention import AudioCrossAttention, SpeakerMasks, map_speakers
from infinitalk_cli.models.config import DiTConfig
from infinitalk_cli.models.rotary import Rotation, rotate


@dataclass(frozen=True)
class Context:
    """Embedded text `(1, text_len, dim)` and image `(1, 257, dim)`: what every block attends to, whatever the step."""

    text: Tensor
    image: Tensor


@dataclass(frozen=True)
class BlockInputs:
    """What all blocks of one pass share.

    time: `(1, 6, dim)` float32. audio_tokens: `(1, T, tokens, audio_token_dim)`. speaker_masks: None for one speaker.
    """

    time: Tensor
    rotation: Rotation
    context: Context
    audio_tokens: Tensor
    speaker_masks: SpeakerMasks | None


class RMSNorm(nn.Module):
    """Root mean square norm over the full width; the quotient is rounded before it meets the weight."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), eps=self.eps) * self.weight


def plain_layer_norm(dim: int, eps: float) -> nn.LayerNorm:
    """A layer norm without parameters; modulation follows it."""
    return nn.LayerNorm(dim, eps=eps, elementwise_affine=False)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """`x * (1 + scale) + shift` in the dtype of `shift` and `scale` (float32)."""
    return (x * (1 + scale)).add_(shift)


def gated_sum(x: Tensor, gate: Tensor, change: Tensor) -> Tensor:
    """`x + gate * change`, summed in float32 and rounded once to the dtype of `x`."""
    return (change * gate).add_(x).to(x.dtype)


class SelfAttention(nn.Module):
    """Attention of all video tokens to each other."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.q, self.k, self.v, self.o = (nn.Linear(config.dim, config.dim) for _ in range(4))
        self.norm_q, self.norm_k = (RMSNorm(config.dim, config.eps) for _ in range(2))

    def forward(self, x: Tensor, rotation: Rotation, masks: SpeakerMasks | None) -> tuple[Tensor, Tensor | None]:
        """Attend; with masks, also say to which speaker each token attends.

        Args: x: `(1, N, dim)`. Returns: `(1, N, dim)` and the speaker map `(3, N)` or None.
        """
        q = rotate(_split_heads(self.norm_q(self.q(x)), self.num_heads), rotation)
        k = rotate(_split_heads(self.norm_k(self.k(x)), self.num_heads), rotation)
        v = _split_heads(self.v(x), self.num_heads)
        speaker_map = None if masks is None else map_speakers(q, k, masks)
        return self.o(attention(q, k, v).flatten(2)), speaker_map


class CrossAttention(nn.Module):
    """Attention to text and image: one query, two separate softmaxes, their sum through one output layer."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.q, self.k, self.v, self.o = (nn.Linear(config.dim, config.dim) for _ in range(4))
        self.k_img, self.v_img = (nn.Linear(config.dim, config.dim) for _ in range(2))
        self.norm_q, self.norm_k, self.norm_k_img = (RMSNorm(config.dim, config.eps) for _ in range(3))

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """`(1, N, dim)` to `(1, N, dim)`."""
        q = _split_heads(self.norm_q(self.q(x)), self.num_heads)
        text = attention(q, *self.text_keys_values(context))
        return self.o((text + attention(q, *self.image_keys_values(context))).flatten(2))

    def text_keys_values(self, context: Context) -> tuple[Tensor, Tensor]:
        """Keys and values of the text `(1, text_len, H, D)`; padding takes part, as it did in training."""
        k, v = self.norm_k(self.k(context.text)), self.v(context.text)
        return _split_heads(k, self.num_heads), _split_heads(v, self.num_heads)

    def image_keys_values(self, context: Context) -> tuple[Tensor, Tensor]:
        """Keys and values of the image `(1, 257, H, D)`."""
        k, v = self.norm_k_img(self.k_img(context.image)), self.v_img(context.image)
        return _split_heads(k, self.num_heads), _split_heads(v, self.num_heads)


class Block(nn.Module):
    """Self-attention, text and image, audio, feed-forward; the first and the last are modulated by the time."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.modulation = nn.Parameter(torch.randn(1, 6, config.dim) / config.dim**0.5)
        self.norm1 = plain_layer_norm(config.dim, config.eps)
        self.self_attn = SelfAttention(config)
        self.norm3 = nn.LayerNorm(config.dim, eps=config.eps)
        self.cross_attn = CrossAttention(config)
        self.norm_x = nn.LayerNorm(config.dim, eps=config.eps)
        self.audio_cross_attn = AudioCrossAttention(config)
        self.norm2 = plain_layer_norm(config.dim, config.eps)
        self.ffn = nn.Sequential(
            nn.Linear(config.dim, config.ffn_dim), nn.GELU(approximate="tanh"), nn.Linear(config.ffn_dim, config.dim)
        )

    def forward(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        """`(1, N, dim)` to `(1, N, dim)`, both in the compute dtype."""
        modulation = self.modulation + inputs.time
        x, speaker_map = self._attend_to_video(x, modulation[:, :3], inputs)
        x = x + self.cross_attn(self.norm3(x), inputs.context)
        x = x + self.audio_cross_attn(self.norm_x(x), inputs.audio_tokens, speaker_map)
        return self._feed_forward(x, modulation[:, 3:])

    def _attend_to_video(self, x: Tensor, modulation: Tensor, inputs: BlockInputs) -> tuple[Tensor, Tensor | None]:
        shift, scale, gate = modulation.chunk(3, dim=1)
        z = modulate(self.norm1(x), shift, scale).to(x.dtype)
        change, speaker_map = self.self_attn(z, inputs.rotation, inputs.speaker_masks)
        return gated_sum(x, gate, change), speaker_map

    def _feed_forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        shift, scale, gate = modulation.chunk(3, dim=1)
        return gated_sum(x, gate, self.ffn(modulate(self.norm2(x), shift, scale).to(x.dtype)))


def _split_heads(x: Tensor, num_heads: int) -> Tensor:
    """`(B, L, H * D)` to `(B, L, H, D)`."""
    return x.unflatten(-1, (num_heads, -1))
