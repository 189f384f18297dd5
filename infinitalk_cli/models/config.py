"""Sizes of the video transformer. Free of torch, so that the shell may read them too.

The published `config.json` stores only what differs between members of the Wan family; the sizes of the audio adapter
and of the text and image features are fixed by the published weights and are defaults here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

_STORED_NAMES = {
    "audio_hidden_dim": "intermediate_dim",
    "audio_token_dim": "output_dim",
    "audio_tokens": "context_tokens",
}
"""Fields whose name in `config.json` is not ours."""

_REQUIRED = ("dim", "ffn_dim", "freq_dim", "num_heads", "num_layers")


@dataclass(frozen=True)
class DiTConfig:
    """Sizes of the transformer and its audio adapter; the defaults are those of the published 14B model."""

    dim: int
    ffn_dim: int
    freq_dim: int  # width of the sinusoidal time features
    num_heads: int
    num_layers: int
    in_dim: int = 36  # 16 latent + 4 mask + 16 condition channels
    out_dim: int = 16
    text_len: int = 512  # tokens after zero-padding
    text_dim: int = 4096
    image_dim: int = 1280
    eps: float = 1e-6
    patch: tuple[int, int, int] = (1, 2, 2)  # latent frames, rows, columns
    audio_window: int = 5  # audio vectors around one video frame
    vae_scale: int = 4  # video frames in one latent frame
    audio_layers: int = 12
    audio_dim: int = 768
    audio_hidden_dim: int = 512
    audio_token_dim: int = 768
    audio_tokens: int = 32  # per latent frame and speaker
    class_range: int = 24  # speaker positions lie in [0, class_range]
    class_interval: int = 4  # length of one speaker's part of that range

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.dim // self.num_heads

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> DiTConfig:
        """Read the fields of a parsed `config.json`; fields that are not sizes are ignored.

        Raises: ValueError: if a size without a default is missing, or the heads do not divide the width.
        """
        missing = [name for name in _REQUIRED if name not in stored]
        if missing:
            raise ValueError(f"the transformer's config.json lacks {', '.join(missing)}")
        found: dict[str, Any] = {}
        for field in fields(cls):
            name = _STORED_NAMES.get(field.name, field.name)
            if name in stored:
                found[field.name] = stored[name]
        config = cls(**found)
        if config.dim % config.num_heads or config.head_dim % 2:
            raise ValueError(f"{config.num_heads} heads do not divide width {config.dim} into even parts")
        return config
