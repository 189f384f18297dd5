"""The transformer's pass on a batch of clips, for training.

`DiT.forward` takes one clip and writes over tensors to save memory, which gradients forbid. Here the same layers are
called on `(B, N, dim)` and nothing is overwritten; a test compares the two. Casting is left to autocast.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from infinitalk_cli.models.attention import attention
from infinitalk_cli.models.audio_attention import AudioCrossAttention
from infinitalk_cli.models.dit import DiT
from infinitalk_cli.models.dit_layers import Block, CrossAttention, SelfAttention
from infinitalk_cli.models.fused import plain_rms_norm
from infinitalk_cli.models.rotary import Rotation, grid_rotation, position_rotation, rotate

TIME_BASE = 10000.0
STRENGTH_EPS = 1e-8

BlockPass = Callable[..., tuple[Tensor, Tensor | None]]
"""The form of `run_block`."""


@dataclass(frozen=True)
class Clips:
    """What the transformer is told about B clips.

    Args:
        latents: `(B, 16, T, H, W)`. condition: `(B, 20, T, H, W)`. t: `(B,)` in 0..1000.
        text: `(512, text_dim)`, one prompt for all, padded. image: `(B, n, image_dim)`.
        windows: `(B, S, F, 5, layers, width)`. members: `(B, H * W / 4, 3)` of two speakers, None for one.
    """

    latents: Tensor
    condition: Tensor
    t: Tensor
    text: Tensor
    image: Tensor
    windows: Tensor
    members: Tensor | None


def predict(dit: DiT, clips: Clips, run: BlockPass | None = None) -> tuple[Tensor, list[Tensor]]:
    """The velocity `(B, 16, T, H, W)`, float32, and each block's speaker map `(B, 3, N)`; none for one speaker.

    run: `run_block` or a compiled form of it, which takes half the time on a GPU.
    """
    run = run or run_block
    frames, rows, columns = (size // part for size, part in zip(clips.latents.shape[2:], dit.config.patch, strict=True))
    time, block_time = embed_time(dit, clips.t)
    text, image = dit.text_embedding(clips.text)[None], dit.img_emb(clips.image)
    audio = rearrange(dit.audio_proj(clips.windows.flatten(0, 1)), "(b s) t n c -> b t (s n) c", b=len(clips.t))
    x = dit.patch_embedding(torch.cat((clips.latents, clips.condition), dim=1)).flatten(2).transpose(1, 2)
    rotation = grid_rotation((frames, rows, columns), dit.config.head_dim, x.device)
    maps: list[Tensor] = []
    for block in dit.blocks:
        assert isinstance(block, Block)
        x, speaker_map = run(block, x, block_time, rotation, text, image, audio, clips.members)
        maps += [] if speaker_map is None else [speaker_map]
    with torch.autocast(x.device.type, enabled=False):  # the head is float32 in a run too
        shift, scale = (dit.head.modulation + time.unsqueeze(1)).chunk(2, dim=1)
        values = dit.head.head(normed(x) * (1 + scale) + shift)
    shape = {"t": frames, "h": rows, "w": columns, "ph": 2, "pw": 2}
    return rearrange(values, "b (t h w) (ph pw c) -> b c t (h ph) (w pw)", **shape), maps


def embed_time(dit: DiT, t: Tensor) -> tuple[Tensor, Tensor]:
    """As `DiT.embed_time`, for `(B,)` times."""
    half = dit.config.freq_dim // 2
    exponents = torch.arange(half, dtype=torch.float64, device=t.device) / half
    angles = t.double()[:, None] * TIME_BASE**-exponents
    with torch.autocast(t.device.type, enabled=False):
        time = dit.time_embedding(torch.cat((angles.cos(), angles.sin()), dim=1).float())
        return time, dit.time_projection(time).unflatten(1, (6, -1))


def run_block(
    block: Block,
    x: Tensor,
    time: Tensor,
    rotation: Rotation,
    text: Tensor,
    image: Tensor,
    audio: Tensor,
    members: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """One block, and its speaker map if there are two speakers."""
    shift1, scale1, gate1, shift2, scale2, gate2 = (block.modulation + time).unsqueeze(2).unbind(1)
    change, speaker_map = attend_self(block.self_attn, normed(x) * (1 + scale1) + shift1, rotation, members)
    x = x + gate1 * change
    x = x + attend_context(block.cross_attn, block.norm3(x), text, image)
    x = x + attend_audio(block.audio_cross_attn, block.norm_x(x), audio, speaker_map)
    return x + gate2 * block.ffn(normed(x) * (1 + scale2) + shift2), speaker_map


def normed(x: Tensor) -> Tensor:
    """Layer norm without weights, in float32."""
    return F.layer_norm(x.float(), x.shape[-1:], eps=1e-6)


def heads(x: Tensor, num_heads: int) -> Tensor:
    return x.unflatten(-1, (num_heads, -1))


def attend_self(
    layer: SelfAttention, x: Tensor, rotation: Rotation, members: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Self-attention, and to whom each token attends."""
    q, k = (
        rotate(heads(plain_rms_norm(project(x), norm.weight, norm.eps), layer.num_heads), rotation)
        for project, norm in ((layer.q, layer.norm_q), (layer.k, layer.norm_k))
    )
    v = heads(layer.v(x), layer.num_heads)
    q, k = q.to(v.dtype), k.to(v.dtype)
    speaker_map = None if members is None else map_speakers(q, k, members)
    return layer.o(attention(q, k, v).flatten(2)), speaker_map


def map_speakers(q: Tensor, k: Tensor, members: Tensor) -> Tensor:
    """As `audio_attention.map_speakers`, `(B, 3, N)`."""
    num_keys, num_classes = members.shape[1:]
    columns = F.pad(members.to(q.dtype), (0, q.shape[-1] - num_classes))
    values = columns[:, :, None].expand(-1, -1, q.shape[2], -1).contiguous()
    shares = attention(q, k[:, :num_keys], values)[..., :num_classes].float().mean(dim=2)
    return (shares / members.sum(dim=1, keepdim=True).clamp_min(1)).transpose(1, 2)


def attend_context(layer: CrossAttention, x: Tensor, text: Tensor, image: Tensor) -> Tensor:
    """Attention to the text, which is the same for all clips, and to each clip's picture."""
    q = heads(plain_rms_norm(layer.q(x), layer.norm_q.weight, layer.norm_q.eps), layer.num_heads)
    total: Tensor | None = None
    for source, key, value, norm in (
        (text, layer.k, layer.v, layer.norm_k),
        (image, layer.k_img, layer.v_img, layer.norm_k_img),
    ):
        k = heads(plain_rms_norm(key(source), norm.weight, norm.eps), layer.num_heads)
        v = heads(value(source), layer.num_heads)
        k, v = (part.to(v.dtype).expand(len(x), -1, -1, -1).contiguous() for part in (k, v))
        found = attention(q.to(v.dtype), k, v)
        total = found if total is None else total + found
    assert total is not None
    return layer.o(total.flatten(2))


def attend_audio(layer: AudioCrossAttention, x: Tensor, audio: Tensor, speaker_map: Tensor | None) -> Tensor:
    """Each latent frame's tokens attend to that frame's audio tokens `(B, T, n, c)`."""
    batch, frames = audio.shape[:2]
    q = rearrange(layer.q_linear(x), "b (t s) (h c) -> (b t) s h c", t=frames, h=layer.num_heads)
    k, v = rearrange(layer.kv_linear(audio), "b t n (kv h c) -> kv (b t) n h c", kv=2, h=layer.num_heads)
    if speaker_map is not None:
        positions = speaker_positions(speaker_map, layer.class_range, layer.class_interval)
        q = rotate(q, position_rotation(positions.unflatten(1, (frames, -1)).flatten(0, 1), layer.head_dim))
        half = layer.class_interval / 2
        centres = torch.tensor([half, layer.class_range - half], device=k.device)
        k = rotate(k, position_rotation(centres.repeat_interleave(k.shape[1] // 2), layer.head_dim))
    found = attention(q.to(v.dtype), k.to(v.dtype), v)
    return layer.proj(rearrange(found, "(b t) s h c -> b (t s) (h c)", b=batch))


def speaker_positions(speaker_map: Tensor, class_range: int, class_interval: int) -> Tensor:
    """As `audio_attention.speaker_positions`, `(B, 3, N)` to `(B, N)`."""
    low, high = speaker_map.amin(dim=2, keepdim=True), speaker_map.amax(dim=2, keepdim=True)
    strength = (speaker_map - low) / (high - low + STRENGTH_EPS) * class_interval
    background = torch.full_like(strength[:, 0], class_range / 2)
    placed = torch.stack((strength[:, 0], strength[:, 1] + (class_range - class_interval), background), dim=1)
    return placed.gather(1, speaker_map.argmax(dim=1, keepdim=True))[:, 0]


def routing_loss(maps: list[Tensor], members: Tensor, frames: int) -> Tensor:
    """How far the tokens are from attending to their own speaker's region: cross-entropy, each class counting alike.

    The real pass takes the greatest of the three classes, which has no gradient, so this is learned beside.
    """
    owner = members.argmax(dim=2).repeat(1, frames)  # (B, N)
    weight = 1 / members.sum(dim=1).clamp_min(1).gather(1, owner)
    total = torch.zeros((), device=members.device)
    for speaker_map in maps:
        shares = speaker_map / speaker_map.sum(dim=1, keepdim=True).clamp_min(1e-9)
        right = shares.gather(1, owner[:, None])[:, 0].clamp_min(1e-6)
        total = total - ((right.log() * weight).sum() / weight.sum())
    return total / max(1, len(maps))
