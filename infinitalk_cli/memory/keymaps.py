"""Published tensor names <-> the names of the modules that take them.

The transformer and the video VAE use the published names themselves. The three encoders come from the `transformers`
library, whose names differ from the published ones and between its own versions: CLIP lost its `vision_model.` prefix,
weight normalisation went from `weight_g` to `parametrizations.weight.original0`. So every map asks the target module
what its names are (`target`, the keys of its state dict) and needs to know neither the version nor how deep the
library's module lies in ours.

Tensors that the target rightly has no place for (CLIP's text tower and last block, training heads of wav2vec2) are
dropped here. Any other name passes through unchanged, so that the strict check of the loader can complain about it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping

from infinitalk_cli.memory.quant import SCALED_FP8_MARKER
from infinitalk_cli.memory.tensor_files import TensorRef

TRANSFORMER_PREFIXES = ("model.diffusion_model.", "diffusion_model.")

TEXT_OUTER = {"token_embedding": "shared", "norm": "encoder.final_layer_norm"}
TEXT_BLOCK = {
    "norm1": "layer.0.layer_norm",
    **{f"attn.{part}": f"layer.0.SelfAttention.{part}" for part in "qkvo"},
    "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
    "norm2": "layer.1.layer_norm",
    "ffn.gate.0": "layer.1.DenseReluDense.wi_0",
    "ffn.fc1": "layer.1.DenseReluDense.wi_1",
    "ffn.fc2": "layer.1.DenseReluDense.wo",
}
IMAGE_OUTER = {
    "visual.cls_embedding": "embeddings.class_embedding",
    "visual.pos_embedding": "embeddings.position_embedding.weight",
    "visual.patch_embedding.weight": "embeddings.patch_embedding.weight",
    "visual.pre_norm.weight": "pre_layrnorm.weight",  # spelled so
    "visual.pre_norm.bias": "pre_layrnorm.bias",
    "visual.post_norm.weight": "post_layernorm.weight",
    "visual.post_norm.bias": "post_layernorm.bias",
}
IMAGE_LAYER = {
    "norm1": "layer_norm1",
    "attn.proj": "self_attn.out_proj",
    "norm2": "layer_norm2",
    "mlp.0": "mlp.fc1",
    "mlp.2": "mlp.fc2",
}
_WEIGHT_NORM = (
    ("weight_g", "parametrizations.weight.original0"),
    ("weight_v", "parametrizations.weight.original1"),
)
_DIFFUSERS_OUTER = {
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "condition_embedder.image_embedder.norm1": "img_emb.proj.0",
    "condition_embedder.image_embedder.ff.net.0.proj": "img_emb.proj.1",
    "condition_embedder.image_embedder.ff.net.2": "img_emb.proj.3",
    "condition_embedder.image_embedder.norm2": "img_emb.proj.4",
    "scale_shift_table": "head.modulation",
    "proj_out": "head.head",
}
_DIFFUSERS_ATTENTION = {
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "o",
    "add_k_proj": "k_img",
    "add_v_proj": "v_img",
    "norm_added_k": "norm_k_img",
}
_DIFFUSERS_BLOCK = {
    **{f"attn1.{theirs}": f"self_attn.{ours}" for theirs, ours in _DIFFUSERS_ATTENTION.items()},
    **{f"attn2.{theirs}": f"cross_attn.{ours}" for theirs, ours in _DIFFUSERS_ATTENTION.items()},
    "attn1": "self_attn",
    "attn2": "cross_attn",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
    "norm2": "norm3",
    "norm3": "norm2",
    "scale_shift_table": "modulation",
}


def transformer_tensors(tensors: Mapping[str, TensorRef]) -> dict[str, TensorRef]:
    """The video transformer's tensors under its original names, without prefix and translated from diffusers names."""
    prefix = next((p for p in TRANSFORMER_PREFIXES if _all_carry(p, tensors)), "")
    named = {name.removeprefix(prefix): ref for name, ref in tensors.items()}
    if has_diffusers_names(named):
        return {original_name(name): ref for name, ref in named.items()}
    return named


def has_diffusers_names(names: Iterable[str]) -> bool:
    """Whether transformer names are those of the diffusers library. Only the whole set tells: `norm3` is in both."""
    return any(name.startswith("condition_embedder.") or {"attn1", "attn2"} & set(name.split(".")) for name in names)


def original_name(name: str) -> str:
    """The original name for a diffusers one, whatever follows the part that names the layer."""
    if block := re.fullmatch(r"(blocks\.\d+)\.(.+)", name):
        return f"{block[1]}.{replace_start(block[2], _DIFFUSERS_BLOCK)}"
    return replace_start(name, _DIFFUSERS_OUTER)


def text_encoder_tensors(tensors: Mapping[str, TensorRef], target: Collection[str]) -> dict[str, TensorRef]:
    """Published UMT5 names, plain or with the suffixes of an 8-bit form, to those of `UMT5EncoderModel`."""
    prefix = _prefix_of("shared.weight", target)
    return {prefix + _text_encoder_name(name): ref for name, ref in tensors.items()}


def _text_encoder_name(name: str) -> str:
    if block := re.fullmatch(r"blocks\.(\d+)\.(.+)", name):
        return f"encoder.block.{block[1]}.{replace_start(block[2], TEXT_BLOCK)}"
    return replace_start(name, TEXT_OUTER)


def image_encoder_tensors(tensors: Mapping[str, TensorRef], target: Collection[str]) -> dict[str, TensorRef]:
    """The visual tower of the published CLIP file under the names of `CLIPVisionModel`.

    The joint query-key-value matrix of a layer becomes three unread slices. What follows the last block that the
    target has is dropped, as are the projection head, the logit scale and the text tower.
    """
    prefix = _prefix_of("embeddings.class_embedding", target)
    named: dict[str, TensorRef] = {}
    for name, ref in tensors.items():
        if name == "log_scale" or name == "visual.head" or name.startswith("textual."):
            continue
        named.update((prefix + theirs, part) for theirs, part in _image_encoder_parts(name, ref))
    last_layer = prefix + f"encoder.layers.{_num_image_layers(tensors) - 1}."
    unused = [n for n in named if n not in target and n.startswith((last_layer, prefix + "post_layernorm."))]
    return {name: ref for name, ref in named.items() if name not in unused}


def _image_encoder_parts(name: str, ref: TensorRef) -> Iterator[tuple[str, TensorRef]]:
    layer = re.fullmatch(r"visual\.transformer\.(\d+)\.(.+)", name)
    if layer and (qkv := re.fullmatch(r"attn\.to_qkv\.(weight|bias)", layer[2])):
        width = ref.shape[0] // 3
        for index, part in enumerate("qkv"):
            slice_name = f"encoder.layers.{layer[1]}.self_attn.{part}_proj.{qkv[1]}"
            yield slice_name, ref.rows(index * width, (index + 1) * width)
    elif layer:
        yield f"encoder.layers.{layer[1]}.{replace_start(layer[2], IMAGE_LAYER)}", ref
    elif name == "visual.cls_embedding":
        yield IMAGE_OUTER[name], ref.reshaped(*ref.shape[-1:])
    elif name == "visual.pos_embedding":
        yield IMAGE_OUTER[name], ref.reshaped(*ref.shape[-2:])
    else:
        yield IMAGE_OUTER.get(name, name), ref


def _num_image_layers(tensors: Iterable[str]) -> int:
    layers = [re.match(r"visual\.transformer\.(\d+)\.", name) for name in tensors]
    return 1 + max((int(layer[1]) for layer in layers if layer), default=-1)


def audio_encoder_tensors(tensors: Mapping[str, TensorRef], target: Collection[str]) -> dict[str, TensorRef]:
    """A wav2vec2 checkpoint, bare or from pre-training, under the names of `Wav2Vec2Model`.

    Weight normalisation is taken in its old and its new spelling; what only training needs is dropped.
    """
    prefix = _prefix_of("feature_projection.projection.weight", target)
    named = {prefix + name.removeprefix("wav2vec2."): ref for name, ref in tensors.items()}
    named = {_weight_norm_name(name, target): ref for name, ref in named.items()}
    training_only = tuple(prefix + start for start in ("masked_spec_embed", "quantizer.", "project_q.", "project_hid."))
    return {name: ref for name, ref in named.items() if name in target or not name.startswith(training_only)}


def _weight_norm_name(name: str, target: Collection[str]) -> str:
    """The spelling of a weight-normalised tensor that the target knows."""
    for spellings in _WEIGHT_NORM:
        for spelling in spellings:
            if name.endswith("." + spelling):
                stem = name.removesuffix(spelling)
                return next((stem + known for known in spellings if stem + known in target), name)
    return name


def replace_start(name: str, table: Mapping[str, str]) -> str:
    """Replace the leading components of a dotted name by the table's longest entry for them, if there is one."""
    components = name.split(".")
    for end in range(len(components), 0, -1):
        replacement = table.get(".".join(components[:end]))
        if replacement is not None:
            return ".".join([replacement, *components[end:]])
    return name


def _all_carry(prefix: str, names: Iterable[str]) -> bool:
    return all(name.startswith(prefix) for name in names if name != SCALED_FP8_MARKER)


def _prefix_of(anchor: str, target: Collection[str]) -> str:
    """What stands before `anchor`, a name that the library's module is known to have, in the target's names."""
    found = [name for name in target if name == anchor or name.endswith("." + anchor)]
    assert found, f"the target module has no {anchor}"
    return found[0].removesuffix(anchor)
