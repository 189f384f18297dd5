"""The parts of one transformer block.

Numbers: linear layers and attention run in the compute dtype (that of the weights); the residual stream is kept in it.
Statistics of norms are float32, their results are rounded before they meet scale and shift. Modulation, gates and the
gated sums are float32 and rounded once at the end. Tables of modulation are float32 parameters, and a product of a
bfloat16 tensor with a float32 one is float32, so these casts need no autocast. In a float32 run nothing is rounded.

What lies between linear layers and attention is done by `fused.py`, several operations at a time. Linear layers are
called, never read: they may have been replaced by 8-bit ones. A tensor of all tokens is 350 MB at 480 sizes, so each is
let go of as soon as it is used up, and the hidden layer of the feed-forward exists for some of the tokens at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from infinitalk_cli.models.attention import attention
from infinitalk_cli.models.audio_attention import AudioCrossAttention, SpeakerMasks, map_speakers
from infinitalk_cli.models.config import DiTConfig
from infinitalk_cli.models.fused import (
    add_norm,
    add_norm_modulate,
    gated_sum,
    linear_gelu,
    norm_modulate,
    rms_norm,
    rms_rotate,
)
from infinitalk_cli.models.rotary import Rotation
from infinitalk_cli.models.tokens import Portions, TokenShare


@dataclass(frozen=True)
class Context:
    """Embedded text `(1, text_len, dim)` and image `(1, 257, dim)`: what every block attends to, whatever the step."""

    text: Tensor
    image: Tensor


@dataclass(frozen=True)
class BlockInputs:
    """What all blocks of one pass share.

    time: `(1, 6, dim)` float32. rotation: of the tokens computed here, which are `own`. audio_tokens:
    `(1, T, tokens, audio_token_dim)`. speaker_masks: None for one speaker.
    """

    time: Tensor
    rotation: Rotation
    context: Context
    audio_tokens: Tensor
    speaker_masks: SpeakerMasks | None
    own: TokenShare
    portions: Portions


class RMSNorm(nn.Module):
    """Root mean square norm over the full width; the quotient is rounded before it meets the weight.

    On a GPU it may write over its input.
    """

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


def plain_layer_norm(dim: int, eps: float) -> nn.LayerNorm:
    """A layer norm without parameters; modulation follows it."""
    return nn.LayerNorm(dim, eps=eps, elementwise_affine=False)


class SelfAttention(nn.Module):
    """Attention of all video tokens to each other."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.q, self.k, self.v, self.o = (nn.Linear(config.dim, config.dim) for _ in range(4))
        self.norm_q, self.norm_k = (RMSNorm(config.dim, config.eps) for _ in range(2))

    def project(self, x: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens `(1, N, dim)` to queries, keys and values `(1, N, H, D)`; the caller may then let go of the tokens."""
        return self.queries(x, rotation), self.keys(x, rotation), _split_heads(self.v(x), self.num_heads)

    def queries(self, x: Tensor, rotation: Rotation) -> Tensor:
        """Tokens `(1, N, dim)` to queries `(1, N, H, D)`."""
        return rms_rotate(self.q(x), self.norm_q.weight, self.norm_q.eps, rotation, self.num_heads)

    def keys(self, x: Tensor, rotation: Rotation) -> Tensor:
        """Tokens `(1, N, dim)` to keys `(1, N, H, D)`."""
        return rms_rotate(self.k(x), self.norm_k.weight, self.norm_k.eps, rotation, self.num_heads)

    def in_parts(
        self, spent_x: Tensor, rotation: Rotation, masks: SpeakerMasks | None, parts: Sequence[slice]
    ) -> tuple[Tensor, Tensor | None]:
        """What `project` and `forward` give for all tokens, with the queries of one part at a time.

        Args: spent_x: `(1, N, dim)`, written over.
        """
        k, v = self.keys(spent_x, rotation), _split_heads(self.v(spent_x), self.num_heads)
        maps: list[Tensor] = []
        for part in parts:
            some = spent_x[:, part]
            q = self.queries(some, Rotation(rotation.cos[part], rotation.sin[part]))
            if masks is not None:
                maps.append(map_speakers(q, k, masks))
            some.copy_(self.o(attention(q, k, v).flatten(2)))
        return spent_x, torch.cat(maps, dim=1) if maps else None

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, masks: SpeakerMasks | None, own: TokenShare
    ) -> tuple[Tensor, Tensor | None]:
        """Attend; with masks, also say to which speaker each token attends.

        Args: q, k, v: of `project`. Returns: `(1, n, dim)` and the speaker map of all tokens, `(3, N)`, or None.
        """
        q, k, v = own.to_heads(q, k, v)
        speaker_map = None if masks is None else own.mean_over_heads(map_speakers(q, k, masks))
        return self.o(own.to_tokens(attention(q, k, v)).flatten(2)), speaker_map


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
        """`(1, n, dim)` to `(1, n, dim)`, both in the compute dtype, for the `n` tokens that are computed here."""
        modulation = (self.modulation + inputs.time).unbind(1)
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation

        parts = inputs.portions.attention_parts(inputs.own)
        whole = len(parts) == 1
        z = norm_modulate(x, shift1, scale1, self.norm1.eps)
        if whole:
            q, k, v = self.self_attn.project(z, inputs.rotation)
            del z
            change, speaker_map = self.self_attn(q, k, v, inputs.speaker_masks, inputs.own)
            del q, k, v
        else:
            change, speaker_map = self.self_attn.in_parts(z, inputs.rotation, inputs.speaker_masks, parts)
        x, z = add_norm(x, change, gate1, self.norm3)
        del change
        for part in parts:
            z = _put(self.cross_attn(z if whole else z[:, part], inputs.context), z, part)
        x, z = add_norm(x, z, None, self.norm_x)
        for part in parts:
            own, some = inputs.own.some(part), z if whole else z[:, part]
            z = _put(self.audio_cross_attn(some, inputs.audio_tokens, speaker_map, own), z, part)
        x, z = add_norm_modulate(x, z, shift2, scale2, self.norm2.eps)
        for some_x, some_z in zip(slices(x, inputs.portions.ffn), slices(z, inputs.portions.ffn), strict=True):
            gated_sum(some_x, gate2, self.feed_forward(some_z), out=some_z)
        return z

    def feed_forward(self, x: Tensor) -> Tensor:
        """`(1, N, dim)` to `(1, N, dim)`. A second layer that can take the GELU upon itself does."""
        after_gelu = getattr(self.ffn[2], "after_gelu", None)
        if after_gelu is not None:
            return after_gelu(self.ffn[0](x))
        return self.ffn[2](linear_gelu(self.ffn[0], x))


def slices(x: Tensor, num_tokens: int = Portions.ffn) -> tuple[Tensor, ...]:
    """`(1, N, dim)` in the fewest parts of about equal size that have at most so many tokens."""
    return x.tensor_split(-(-x.shape[1] // num_tokens), dim=1)


def _put(made: Tensor, whole: Tensor, part: slice) -> Tensor:
    """`whole` with `made` for its part `(1, n, dim)`; `made` itself if that is all of it."""
    if made.shape == whole.shape:
        return made
    whole[:, part] = made
    return whole


def _split_heads(x: Tensor, num_heads: int) -> Tensor:
    """`(B, L, H * D)` to `(B, L, H, D)`."""
    return x.unflatten(-1, (num_heads, -1))
