"""Text encoder, image encoder and VAE as other programs name their tensors -> the published names.

    text encoder   the `transformers` names of UMT5 (`encoder.block.0.layer.0.SelfAttention.q.weight`), as ComfyUI has
                   them, plain or in scaled float8; or the published names in one safetensors file
    image encoder  the `transformers` names of CLIP's vision tower (`vision_model.encoder.layers.0...`), where query,
                   key and value are apart; or the published names, with or without `visual.`
    VAE            the published names, with or without `model.`

What is recognised are names alone, so that a renamed file is read as well. Suffixes of 8-bit forms stay as they are:
`quant.py` knows them. Everything that is known to have no part in a run is left out; any other name passes through, so
that the strict check of the loader can complain about it. Nothing is read here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from infinitalk_cli.memory.keymaps import IMAGE_LAYER, IMAGE_OUTER, TEXT_BLOCK, TEXT_OUTER, replace_start
from infinitalk_cli.memory.tensor_files import TensorRef

TEXT_UNUSED = ("encoder.embed_tokens.weight", "spiece_model")
"""A second name of the token table, and the tokenizer that ComfyUI packs into its file."""

IMAGE_UNUSED = (
    "visual_projection.",
    "text_projection.",
    "text_model.",
    "logit_scale",
    "vision_model.embeddings.position_ids",
)
"""What follows the tokens, the other tower, and numbers that are computed."""

VISION_MODEL = "vision_model."

_TEXT_OUTER = {theirs: ours for ours, theirs in TEXT_OUTER.items()}
_TEXT_BLOCK = {theirs: ours for ours, theirs in TEXT_BLOCK.items()}
_IMAGE_OUTER = {theirs: ours for ours, theirs in IMAGE_OUTER.items()}
_IMAGE_LAYER = {theirs: ours for ours, theirs in IMAGE_LAYER.items()}


def published_text_encoder(tensors: Mapping[str, TensorRef]) -> dict[str, TensorRef]:
    """UMT5 under its published names."""
    used = {name: ref for name, ref in tensors.items() if name not in TEXT_UNUSED}
    if "shared.weight" not in used:
        return used
    return {_text_name(name): ref for name, ref in used.items()}


def published_image_encoder(tensors: Mapping[str, TensorRef]) -> dict[str, TensorRef]:
    """CLIP's vision tower under its published names."""
    if f"{VISION_MODEL}embeddings.class_embedding" in tensors:
        used = {name: ref for name, ref in tensors.items() if not name.startswith(IMAGE_UNUSED)}
        return dict(_image_tensors({name.removeprefix(VISION_MODEL): ref for name, ref in used.items()}))
    if "cls_embedding" in tensors:
        return {f"visual.{name}": ref for name, ref in tensors.items()}
    return dict(tensors)


def published_vae(tensors: Mapping[str, TensorRef]) -> dict[str, TensorRef]:
    """The video VAE under its published names."""
    prefix = "model." if all(name.startswith("model.") for name in tensors) else ""
    return {name.removeprefix(prefix): ref for name, ref in tensors.items()}


def _text_name(name: str) -> str:
    if block := re.fullmatch(r"encoder\.block\.(\d+)\.(.+)", name):
        return f"blocks.{block[1]}.{replace_start(block[2], _TEXT_BLOCK)}"
    return replace_start(name, _TEXT_OUTER)


def _image_tensors(named: Mapping[str, TensorRef]) -> Iterator[tuple[str, TensorRef]]:
    for name, ref in named.items():
        layer = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)", name)
        if layer and (part := re.fullmatch(r"self_attn\.([qkv])_proj\.(weight|bias)", layer[2])):
            if part[1] == "q":
                ours = f"visual.transformer.{layer[1]}.attn.to_qkv.{part[2]}"
                yield ours, _joined(name, named)
        elif layer:
            yield f"visual.transformer.{layer[1]}.{replace_start(layer[2], _IMAGE_LAYER)}", ref
        elif name in ("embeddings.class_embedding", "embeddings.position_embedding.weight"):
            yield _IMAGE_OUTER[name], ref.reshaped(*(1,) * (3 - len(ref.shape)), *ref.shape)
        else:
            yield _IMAGE_OUTER.get(name, name), ref


def _joined(query: str, named: Mapping[str, TensorRef]) -> TensorRef:
    """The joint matrix of query, key and value; a missing one is left out, which the check of shapes then tells."""
    names = [query.replace(".q_proj.", f".{part}_proj.") for part in "qkv"]
    refs = [named[name] for name in names if name in named]
    first = refs[0]
    shape = (sum(ref.shape[0] for ref in refs), *first.shape[1:])
    return replace(first, shape=shape, read=partial(_read_joined, refs))


def _read_joined(refs: list[TensorRef]) -> Tensor:
    return torch.cat([ref.load() for ref in refs])
