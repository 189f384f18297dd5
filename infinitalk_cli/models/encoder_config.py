"""Sizes of the four networks around the transformer: text, image and audio encoder, and the video VAE.

Of these only wav2vec2 is published with a `config.json`; the sizes of the others are read off the shapes of their
tensors under the published names, so that a smaller tree in the same layout loads without being told its sizes.

This module imports no torch: sizes are needed before anything is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any

Shapes = Mapping[str, Sequence[int]]

CLIP_HEADS = 16  # the published image encoder; no tensor shape tells it


def shape_of(shapes: Shapes, name: str) -> tuple[int, ...]:
    """The shape of a tensor. Raises: ValueError: if there is no such tensor."""
    if name not in shapes:
        raise ValueError(f"no tensor {name!r}, from which the size of the network is read")
    return tuple(shapes[name])


def count_indices(shapes: Shapes, prefix: str) -> int:
    """The number of different numbers N of the names `prefix` + `N.` + anything."""
    return len({name[len(prefix) :].split(".", 1)[0] for name in shapes if name.startswith(prefix)})


@dataclass(frozen=True)
class TextEncoderConfig:
    """Sizes of UMT5's encoder; the defaults of the last fields hold for every published form."""

    vocab_size: int
    dim: int
    ffn_dim: int
    num_heads: int
    head_dim: int
    num_layers: int
    num_buckets: int = 32
    max_distance: int = 128
    text_len: int = 512  # tokens, with the end token
    eps: float = 1e-6

    @classmethod
    def from_shapes(cls, shapes: Shapes) -> TextEncoderConfig:
        """Read the sizes off the shapes of a `models_t5_*` file. Raises: ValueError: if a tensor is missing."""
        vocab_size, dim = shape_of(shapes, "token_embedding.weight")
        num_buckets, num_heads = shape_of(shapes, "blocks.0.pos_embedding.embedding.weight")
        return cls(
            vocab_size=vocab_size,
            dim=dim,
            ffn_dim=shape_of(shapes, "blocks.0.ffn.fc1.weight")[0],
            num_heads=num_heads,
            head_dim=shape_of(shapes, "blocks.0.attn.q.weight")[0] // num_heads,
            num_layers=count_indices(shapes, "blocks."),
            num_buckets=num_buckets,
        )


@dataclass(frozen=True)
class ImageEncoderConfig:
    """Sizes of the CLIP vision tower as published; `num_layers` counts the last layer, which is not used."""

    dim: int
    ffn_dim: int
    num_layers: int
    patch_size: int
    image_size: int
    num_heads: int = CLIP_HEADS
    eps: float = 1e-5

    @classmethod
    def from_shapes(cls, shapes: Shapes) -> ImageEncoderConfig:
        """Read the sizes off the shapes of a `models_clip_*` file. Raises: ValueError: if a tensor is missing."""
        dim, _, patch_size, _ = shape_of(shapes, "visual.patch_embedding.weight")
        num_tokens = shape_of(shapes, "visual.pos_embedding")[1]
        return cls(
            dim=dim,
            ffn_dim=shape_of(shapes, "visual.transformer.0.mlp.0.weight")[0],
            num_layers=count_indices(shapes, "visual.transformer."),
            patch_size=patch_size,
            image_size=patch_size * isqrt(num_tokens - 1),
        )


@dataclass(frozen=True)
class AudioEncoderConfig:
    """Sizes of wav2vec2 with one group norm in its convolutions and post-norm layers (the "base" form)."""

    dim: int
    ffn_dim: int
    num_layers: int
    num_heads: int
    conv_dim: tuple[int, ...]
    position_kernel: int
    position_groups: int
    conv_kernel: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_stride: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    conv_bias: bool = False
    eps: float = 1e-5

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> AudioEncoderConfig:
        """Read the fields of wav2vec2's `config.json`.

        Raises: ValueError: if it describes the layer-norm form, which has another order of operations.
        """
        if config.get("feat_extract_norm", "group") != "group" or config.get("do_stable_layer_norm", False):
            raise ValueError("only the base form of wav2vec2 (group norm, post-norm layers) is known")
        return cls(
            dim=config["hidden_size"],
            ffn_dim=config["intermediate_size"],
            num_layers=config["num_hidden_layers"],
            num_heads=config["num_attention_heads"],
            conv_dim=tuple(config["conv_dim"]),
            conv_kernel=tuple(config["conv_kernel"]),
            conv_stride=tuple(config["conv_stride"]),
            conv_bias=config.get("conv_bias", False),
            position_kernel=config["num_conv_pos_embeddings"],
            position_groups=config["num_conv_pos_embedding_groups"],
            eps=config.get("layer_norm_eps", 1e-5),
        )


@dataclass(frozen=True)
class VAEConfig:
    """Sizes of the video VAE. One entry per stage, from full resolution to the smallest."""

    dim: int
    z_dim: int
    stage_dims: tuple[int, ...]
    halves_time: tuple[bool, ...]  # one fewer than stages: between two stages the picture is halved, and perhaps time
    num_res_blocks: int

    @classmethod
    def from_shapes(cls, shapes: Shapes) -> VAEConfig:
        """Read the sizes off the shapes of `Wan2.1_VAE.pth`. Raises: ValueError: if a tensor is missing."""
        stage_dims: list[int] = []
        halves_time: list[bool] = []
        widths: list[int] = []  # of the residual blocks of the stage at hand
        for index in range(count_indices(shapes, "encoder.downsamples.")):
            prefix = f"encoder.downsamples.{index}."
            if f"{prefix}resample.1.weight" in shapes:
                stage_dims.append(widths[-1])
                halves_time.append(f"{prefix}time_conv.weight" in shapes)
                widths = []
            else:
                widths.append(shape_of(shapes, f"{prefix}residual.2.weight")[0])
        if not widths:
            raise ValueError("no tensors 'encoder.downsamples.N.*', from which the size of the network is read")
        return cls(
            dim=shape_of(shapes, "encoder.conv1.weight")[0],
            z_dim=shape_of(shapes, "conv2.weight")[0],
            stage_dims=(*stage_dims, widths[-1]),
            halves_time=tuple(halves_time),
            num_res_blocks=len(widths),
        )
