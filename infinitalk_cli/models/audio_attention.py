"""How speech steers the picture: audio tokens, cross-attention to them, and who of two speakers is heard where.

Speech features come as windows of neighbouring vectors around every video frame. The video VAE turns the first frame
into one latent frame and every further four frames into one more, so the projection groups the windows in the same way
and makes a fixed number of tokens per latent frame and speaker. Each latent frame attends to its own tokens only.

With one speaker that is all. With two, every video token needs to know whose speech to hear. The block's own
self-attention tells: how strongly does a token look at each speaker's region of the first latent frame? The strongest
class (speaker 1, speaker 2, background) and that strength give the token a position on a line; the speakers' audio
tokens sit at fixed positions on it, and rotary embedding makes near ones attract each other.

The published code builds the whole query x key matrix for that map. Only three weighted sums of it are needed, so the
class masks become the value columns of an ordinary attention, which a fused kernel evaluates in a stream.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from infinitalk_cli.models.attention import attention
from infinitalk_cli.models.config import DiTConfig
from infinitalk_cli.models.fused import rotate_heads
from infinitalk_cli.models.rotary import position_rotation, rotate
from infinitalk_cli.models.tokens import FrameRange, TokenShare

EmptyMask = Literal["zero", "nan"]
"""What a class without a token does: its map is zero, or NaN as in the reference program, which divides by its size."""

_NORMALISATION_EPS = 1e-8  # keeps a constant map from dividing by zero


def group_windows(windows: Tensor, vae_scale: int) -> tuple[Tensor, Tensor]:
    """Pick the audio vectors that feed each latent frame.

    The first latent frame takes the whole window of the first video frame. Each later one takes, of its `vae_scale`
    video frames, the past half of the first's window, the middle of the inner ones', and the coming half of the last's.

    Args: windows: `(S, F, W, L, D)`: speakers, video frames, window (odd), layers, width; F is `1 + vae_scale * n`.
    Returns: `(S, 1, W, L, D)` and `(S, n, W + vae_scale - 1, L, D)`.
    Raises: ValueError: if the number of frames is not `1 + vae_scale * n`.
    """
    if windows.shape[1] % vae_scale != 1:
        raise ValueError(f"audio windows for {windows.shape[1]} frames, expected {vae_scale}n + 1")
    middle = windows.shape[2] // 2
    later = windows[:, 1:].unflatten(1, (-1, vae_scale))  # (S, n, vae_scale, W, L, D)
    picked = later[:, :, 0, : middle + 1], later[:, :, 1:-1, middle], later[:, :, -1, middle:]
    return windows[:, :1], torch.cat(picked, dim=2)


class AudioProjection(nn.Module):
    """Windowed speech features to audio tokens. They depend neither on the step nor on the block."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        vector, hidden = config.audio_layers * config.audio_dim, config.audio_hidden_dim
        self.vae_scale, self.num_tokens = config.vae_scale, config.audio_tokens
        self.proj1 = nn.Linear(config.audio_window * vector, hidden)
        self.proj1_vf = nn.Linear((config.audio_window + config.vae_scale - 1) * vector, hidden)
        self.proj2 = nn.Linear(hidden, hidden)
        self.proj3 = nn.Linear(hidden, config.audio_tokens * config.audio_token_dim)
        self.norm = nn.LayerNorm(config.audio_token_dim)

    def forward(self, windows: Tensor) -> Tensor:
        """`(S, F, W, L, D)` to tokens `(S, T, audio_tokens, audio_token_dim)`."""
        first, later = group_windows(windows, self.vae_scale)
        hidden = torch.cat((self.proj1(first.flatten(2)), self.proj1_vf(later.flatten(2))), dim=1)
        hidden = F.relu(self.proj2(F.relu(hidden)))
        return self.norm(self.proj3(hidden).unflatten(-1, (self.num_tokens, -1)))


@dataclass(frozen=True)
class SpeakerMasks:
    """The speakers' regions on the token grid of one latent frame.

    members: `(S, 3)`, 1 where a token belongs to speaker 1, speaker 2, the background, else 0; classes may overlap.
    weights: `(3,)` float32, one over the number of tokens of each class.
    """

    members: Tensor
    weights: Tensor

    @classmethod
    def from_latent_grid(cls, masks: Tensor, patch: tuple[int, int, int], empty_mask: EmptyMask) -> SpeakerMasks:
        """Reduce `(3, H, W)` masks on the latent grid to tokens: nearest neighbour, then anything above zero counts."""
        members = (masks[:, :: patch[1], :: patch[2]].flatten(1) > 0).T.float()
        weights = 1 / members.sum(dim=0)
        if empty_mask == "zero":
            weights = weights.masked_fill(weights.isinf(), 0)
        return cls(members, weights)


def map_speakers(q: Tensor, k: Tensor, masks: SpeakerMasks) -> Tensor:
    """How much each token attends to each class of the first latent frame, averaged over heads.

    Args: q: `(1, N, H, D)` and k: `(1, N, H, D)`, the block's self-attention inputs after norm and rotation.
    Returns: `(3, N)` float32.
    """
    num_keys, num_classes = masks.members.shape
    # Columns of ones and zeros are exact in any dtype. Fused kernels want values as wide as keys.
    columns = F.pad(masks.members.to(q.dtype), (0, q.shape[-1] - num_classes))
    values = columns[None, :, None].expand(-1, -1, q.shape[2], -1).contiguous()  # kernels may not take a stride of 0
    shares = attention(q, k[:, :num_keys], values)[0, ..., :num_classes].float().mean(dim=1)
    return (shares * masks.weights).T


def speaker_positions(speaker_map: Tensor, class_range: int, class_interval: int) -> Tensor:
    """Place every token on the line of speaker positions.

    Speaker 1 owns `[0, class_interval]`, speaker 2 `[class_range - class_interval, class_range]`; within them a token
    sits by its attention, scaled by the least and greatest of its class. The background sits in the middle.

    Args: speaker_map: `(3, N)`. Returns: `(N,)` float32.
    """
    low, high = speaker_map.amin(dim=1, keepdim=True), speaker_map.amax(dim=1, keepdim=True)
    strength = (speaker_map - low) / (high - low + _NORMALISATION_EPS) * class_interval
    background = torch.full_like(strength[0], class_range / 2)
    placed = torch.stack((strength[0], strength[1] + (class_range - class_interval), background))
    return placed.gather(0, speaker_map.argmax(dim=0, keepdim=True))[0]


class AudioCrossAttention(nn.Module):
    """Attention of each latent frame's tokens to that frame's audio tokens. Neither queries nor keys are normalised."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.num_heads, self.head_dim = config.num_heads, config.head_dim
        self.class_range, self.class_interval = config.class_range, config.class_interval
        self.q_linear = nn.Linear(config.dim, config.dim)
        self.kv_linear = nn.Linear(config.audio_token_dim, 2 * config.dim)
        self.proj = nn.Linear(config.dim, config.dim)

    def forward(self, x: Tensor, audio_tokens: Tensor, speaker_map: Tensor | None, own: TokenShare) -> Tensor:
        """Attend. Where the tokens begin or end within a frame, the missing ones are made up and thrown away.

        Args: x: the `own` of all tokens, `(1, n, dim)`. audio_tokens: `(1, T, tokens of all speakers,
            audio_token_dim)`, speaker 1 first. speaker_map: `(3, N)`, of all tokens, for two speakers, None for one.
        Returns: `(1, n, dim)`.
        """
        around = own.around(audio_tokens.shape[1])
        k, v = self.keys_values(audio_tokens[:, around.frames], two_speakers=speaker_map is not None)
        q = _pad_tokens(self.q_linear(x), around)
        q = rearrange(q, "1 (t s) (h c) -> t s h c", t=around.num_frames, h=self.num_heads)
        if speaker_map is not None:
            positions = speaker_positions(speaker_map, self.class_range, self.class_interval)
            some = positions.unflatten(0, (audio_tokens.shape[1], -1))[around.frames]
            q = rotate_heads(q, position_rotation(some, self.head_dim))
        heard = rearrange(attention(q, k, v), "t s h c -> 1 (t s) (h c)")
        return self.proj(heard[:, around.before : around.before + x.shape[1]])

    def keys_values(self, audio_tokens: Tensor, *, two_speakers: bool) -> tuple[Tensor, Tensor]:
        """Keys and values `(T, tokens, H, D)`; they depend on the block but not on the step."""
        k, v = rearrange(self.kv_linear(audio_tokens), "1 t n (kv h c) -> kv t n h c", kv=2, h=self.num_heads)
        if two_speakers:
            half = self.class_interval / 2
            centres = torch.tensor([half, self.class_range - half], device=k.device)
            k = rotate(k, position_rotation(centres.repeat_interleave(k.shape[1] // 2), self.head_dim))
        return k, v


def _pad_tokens(x: Tensor, around: FrameRange) -> Tensor:
    """Zeros for the tokens of the frames that are missing in `(1, n, dim)`."""
    if not around.before and not around.after:
        return x
    return F.pad(x, (0, 0, around.before, around.after))
