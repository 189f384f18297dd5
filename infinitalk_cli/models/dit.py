"""The video transformer with its audio adapter: noisy latents and everything that steers them in, velocity out.

Parameters bear the names of the published files, base and adapter alike, so loading needs no map of keys. The compute
dtype is that of the patch convolution, the one layer that no 8-bit form replaces. `keeps_float32` names the parameters
that stay float32 whatever the compute dtype: the path of the time, the modulation tables and the head; the picture
shows it when they are rounded. All casts are explicit; nothing relies on autocast.

What does not depend on the step is embedded once by the caller (`embed_context`, `embed_audio`) and passed to every
pass of a chunk. `divide_tokens` may be replaced from outside, to compute a part of each pass's tokens here and the
others elsewhere; every device then returns the whole velocity.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from infinitalk_cli.models.audio_attention import AudioProjection, EmptyMask, SpeakerMasks
from infinitalk_cli.models.config import DiTConfig
from infinitalk_cli.models.dit_layers import Block, BlockInputs, Context, plain_layer_norm
from infinitalk_cli.models.rotary import Rotation, grid_rotation
from infinitalk_cli.models.tokens import DivideTokens, Portions, TokenShare, all_tokens

_FLOAT32_PREFIXES = ("time_embedding.", "time_projection.", "head.")
_TIME_BASE = 10000.0


@dataclass
class BlockResidual:
    """What the blocks added to the tokens in one kind of pass; with `reuse` the next pass adds it again instead."""

    reuse: bool = False
    value: Tensor | None = None


class ImageEmbedding(nn.Module):
    """CLIP features to context tokens."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            nn.LayerNorm(config.image_dim),
            nn.Linear(config.image_dim, config.image_dim),
            nn.GELU(),
            nn.Linear(config.image_dim, config.dim),
            nn.LayerNorm(config.dim),
        )

    def forward(self, image: Tensor) -> Tensor:
        """`(1, 257, image_dim)` to `(1, 257, dim)`."""
        return self.proj(image)


class Head(nn.Module):
    """Tokens to the values of their patches, in float32 throughout."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        depth, rows, columns = config.patch
        self.modulation = nn.Parameter(torch.randn(1, 2, config.dim) / config.dim**0.5)
        self.norm = plain_layer_norm(config.dim, config.eps)
        self.head = nn.Linear(config.dim, depth * rows * columns * config.out_dim)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Tokens `(1, N, dim)` and time `(1, dim)` to `(1, N, patch volume * out_dim)`, channel fastest."""
        shift, scale = (self.modulation + time.unsqueeze(1)).chunk(2, dim=1)
        return self.head((self.norm(x) * (1 + scale)).add_(shift))


class DiT(nn.Module):
    """The transformer of InfiniteTalk and MultiTalk. Batch is always 1."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        dim = config.dim
        self.config = config
        self.divide_tokens: DivideTokens = all_tokens
        self.portions = Portions()
        self.patch_embedding = nn.Conv3d(config.in_dim, dim, kernel_size=config.patch, stride=config.patch)
        self.text_embedding = nn.Sequential(
            nn.Linear(config.text_dim, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim)
        )
        self.time_embedding = nn.Sequential(nn.Linear(config.freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.img_emb = ImageEmbedding(config)
        self.audio_proj = AudioProjection(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.head = Head(config)

    @staticmethod
    def keeps_float32(name: str) -> bool:
        """Whether the parameter of this name is float32 in a run of lower precision."""
        return name.startswith(_FLOAT32_PREFIXES) or name.endswith(".modulation")

    @property
    def dtype(self) -> torch.dtype:
        """The compute dtype."""
        return self.patch_embedding.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the embeddings and the head compute."""
        return self.patch_embedding.weight.device

    def embed_time(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Embed a time in 0..1000, which need not be whole.

        Args: t: a scalar. Returns: `(1, dim)` for the head and `(1, 6, dim)` for the blocks, float32.
        """
        half = self.config.freq_dim // 2
        exponents = torch.arange(half, dtype=torch.float64, device=self.device) / half
        angles = t.to(self.device, torch.float64).reshape(1, 1) * _TIME_BASE**-exponents
        time = self.time_embedding(torch.cat((angles.cos(), angles.sin()), dim=1).float())
        return time, self.time_projection(time).unflatten(1, (6, -1))

    def embed_context(self, text: Tensor, image: Tensor) -> Context:
        """Embed what does not depend on the step.

        Text is padded with zero rows before its embedding; the padding becomes a constant vector and is attended to.
        Args: text: `(L, text_dim)`, L at most `text_len`. image: `(1, 257, image_dim)`.
        Raises: ValueError: if the text is too long.
        """
        missing = self.config.text_len - text.shape[0]
        if missing < 0:
            raise ValueError(f"{text.shape[0]} text tokens, at most {self.config.text_len} fit")
        padded = F.pad(text.to(self.device, self.dtype), (0, 0, 0, missing))
        return Context(self.text_embedding(padded.unsqueeze(0)), self.img_emb(image.to(self.device, self.dtype)))

    def embed_audio(self, windows: Tensor) -> Tensor:
        """Project windowed speech features; silence gives tokens too, so it must pass through here as well.

        Args: windows: `(S, F, audio_window, audio_layers, audio_dim)` for S speakers, F = `vae_scale * n + 1` frames.
        Returns: `(1, n + 1, S * audio_tokens, audio_token_dim)`, speaker 1 first.
        """
        return rearrange(self.audio_proj(windows.to(self.device, self.dtype)), "s t n c -> 1 t (s n) c")

    def forward(
        self,
        latents: Tensor,
        condition: Tensor,
        t: Tensor,
        context: Context,
        audio_tokens: Tensor,
        *,
        speaker_masks: Tensor | None = None,
        residual: BlockResidual | None = None,
        empty_mask: EmptyMask = "zero",
    ) -> Tensor:
        """Predict the velocity, noise minus clean, at time `t`.

        Args: latents: `(1, 16, T, H, W)`. condition: `(1, 20, T, H, W)`, 4 mask then 16 latent channels.
            audio_tokens: of one speaker or two, `(1, T, S * audio_tokens, audio_token_dim)`.
            speaker_masks: `(3, H, W)`: speaker 1, speaker 2, background; used for two speakers only.
            residual: filled by this pass, or used in place of the blocks.
            empty_mask: "nan" gives what the reference program gives when a mask has no token.
        Returns: `(1, 16, T, H, W)` float32.
        Raises: ValueError: if the number of speakers is not 1 or 2, or masks are needed and missing.
        """
        frames, rows, columns = (size // part for size, part in zip(latents.shape[2:], self.config.patch, strict=True))
        grid = (frames, rows, columns)
        time, block_time = self.embed_time(t)
        x = self._embed_patches(latents, condition)
        own = self.divide_tokens(x.shape[1])
        inputs = BlockInputs(
            time=block_time,
            rotation=self._rotation(grid, own),
            context=context,
            audio_tokens=audio_tokens,
            speaker_masks=self._token_masks(speaker_masks, audio_tokens.shape[2], empty_mask),
            own=own,
            portions=self.portions,
        )
        x = self._run_blocks(x[:, own.part], inputs, residual)
        return self._unpatchify(own.gather(self.head(x, time)), grid)

    def _embed_patches(self, latents: Tensor, condition: Tensor) -> Tensor:
        stacked = torch.cat((latents.to(self.dtype), condition.to(self.dtype)), dim=1)
        return self.patch_embedding(stacked).flatten(2).transpose(1, 2)

    def _rotation(self, grid: tuple[int, int, int], own: TokenShare) -> Rotation:
        table = grid_rotation(grid, self.config.head_dim, self.device)
        return Rotation(table.cos[own.part], table.sin[own.part])

    def _token_masks(self, masks: Tensor | None, num_tokens: int, empty_mask: EmptyMask) -> SpeakerMasks | None:
        """Who is where, None for one speaker. `num_tokens`: of the speech of all, in a frame of the latents."""
        num_speakers = num_tokens // self.config.audio_tokens
        if num_speakers == 1:
            return None
        if num_speakers != 2:
            raise ValueError(f"{num_speakers} speakers; the model knows 1 or 2")
        if masks is None:
            raise ValueError("two speakers, but no masks that say where they are")
        return SpeakerMasks.from_latent_grid(masks.to(self.device), self.config.patch, empty_mask)

    def _run_blocks(self, x: Tensor, inputs: BlockInputs, residual: BlockResidual | None) -> Tensor:
        if residual is not None and residual.reuse:
            assert residual.value is not None, "a residual can be reused only after a pass that filled it"
            return x + residual.value
        before = None if residual is None else x  # else the first tokens would stay in memory for nothing
        for block in self.blocks:
            x = block(x, inputs)
        if residual is not None and before is not None:
            residual.value = x - before
        return x

    def _unpatchify(self, values: Tensor, grid: tuple[int, int, int]) -> Tensor:
        (frames, rows, columns), (pt, ph, pw) = grid, self.config.patch
        return rearrange(
            values,
            "1 (t h w) (pt ph pw c) -> 1 c (t pt) (h ph) (w pw)",
            **{"t": frames, "h": rows, "w": columns, "pt": pt, "ph": ph, "pw": pw},
        )
