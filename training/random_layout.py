"""What the random weights hold: every file and tensor of a small tree in the published layout, as a manifest.

Names, file names and forms are the published ones; the sizes are `RandomSizes`, small where that does no harm: CLIP is
1280 wide with 16 heads and 257 tokens, wav2vec2 has 12 layers of 768, latents have 16 channels. Those two networks make
up most of the bytes, so they and the adapters are 16-bit floats. The scales are about 1/sqrt(fan in),
so that signals neither vanish nor grow, with larger gains where text, picture and speech enter.
"""

from __future__ import annotations

import math
import string
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

Manifest = Mapping[str, Any]
"""`files`: name -> format ("safetensors" or "pth"), seed, tensors (name -> shape, dtype, scale, offset);
`derived_files`: quantised forms of them; `json_files`: name -> content; `copied_dirs`: folder -> source folder."""

Tensors = dict[str, dict[str, Any]]
"""Name -> shape, scale and offset of a tensor."""


@dataclass(frozen=True)
class RandomSizes:
    """The sizes of the random networks that the network code leaves free."""

    dit_dim: int = 128
    dit_heads: int = 4  # of 32
    dit_ffn_dim: int = 256
    dit_layers: int = 2
    time_dim: int = 64
    audio_hidden_dim: int = 16
    audio_token_dim: int = 48
    audio_tokens: int = 8
    text_dim: int = 64
    text_heads: int = 4
    text_ffn_dim: int = 128
    text_layers: int = 2
    image_mlp_dim: int = 128
    image_layers: int = 2  # the last one is in the file and not used, as in the published one
    vae_dim: int = 4
    speech_conv_dim: int = 32
    speech_ffn_dim: int = 64
    speech_position_kernel: int = 16


SIZES = RandomSizes()
LATENT_CHANNELS = 16
IMAGE_DIM = 1280
SPEECH_DIM = 768
SPEECH_LAYERS = 12

BASE = "Wan2.1-I2V-14B-480P"
MULTITALK = "MeiGen-MultiTalk"
SPEECH = "chinese-wav2vec2-base"
TOKENIZER = f"{BASE}/google/umt5-xxl"
INDEX = "diffusion_pytorch_model.safetensors.index.json"
NUM_SHARDS = 7


@cache
def random_manifest() -> Manifest:
    """The manifest of the random weights: base model, encoders, adapters for one and two speakers and MultiTalk's."""
    base, adapter, adapter_file = _dit_base(), _dit_adapter(), "multitalk.safetensors"
    shards = _shards(base)
    shard_of = {name: Path(shard).name for shard, tensors in shards.items() for name in tensors}
    files = {shard: _file(shard, 1, tensors) for shard, tensors in shards.items()}
    for name, seed, tensors, dtype in (
        ("InfiniteTalk/single/infinitetalk.safetensors", 2, adapter, "F16"),
        ("InfiniteTalk/multi/infinitetalk.safetensors", 3, adapter, "F16"),
        (f"{MULTITALK}/{adapter_file}", 4, adapter, "F16"),
        (f"{BASE}/models_t5_umt5-xxl-enc-bf16.pth", 5, _text_encoder(), "BF16"),
        (f"{BASE}/models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth", 6, _image_encoder(), "F16"),
        (f"{BASE}/Wan2.1_VAE.pth", 7, _vae(), "F32"),
        (f"{SPEECH}/model.safetensors", 8, _speech_encoder(), "F16"),
    ):
        files[name] = _file(name, seed, tensors, dtype)
    json_files = {
        f"{BASE}/config.json": _dit_config(),
        f"{BASE}/{INDEX}": _index(base, shard_of),
        f"{MULTITALK}/{INDEX}": _index({**base, **adapter}, {**shard_of, **dict.fromkeys(adapter, adapter_file)}),
        f"{TOKENIZER}/tokenizer_config.json": {**_SPECIAL_TOKENS, "tokenizer_class": "T5TokenizerFast"},
        f"{TOKENIZER}/special_tokens_map.json": _SPECIAL_TOKENS,
        f"{SPEECH}/config.json": _speech_config(),
        f"{SPEECH}/preprocessor_config.json": _PREPROCESSOR,
    }
    return {"files": files, "json_files": json_files}


def _file(name: str, seed: int, tensors: Tensors, dtype: str = "F32") -> dict[str, Any]:
    return {
        "format": "pth" if name.endswith(".pth") else "safetensors",
        "seed": seed,
        "tensors": {tensor: {**form, "dtype": dtype} for tensor, form in tensors.items()},
    }


def _shards(tensors: Tensors) -> dict[str, Tensors]:
    """The base model's tensors in seven files of equally many, in order."""
    names = list(tensors)
    each = math.ceil(len(names) / NUM_SHARDS)
    return {
        f"{BASE}/diffusion_pytorch_model-{shard + 1:05d}-of-{NUM_SHARDS:05d}.safetensors": {
            name: tensors[name] for name in names[shard * each : (shard + 1) * each]
        }
        for shard in range(NUM_SHARDS)
    }


def _index(tensors: Tensors, file_of: Mapping[str, str]) -> dict[str, Any]:
    """The index beside the shards; its total counts four bytes a number, as the published one does."""
    total = 4 * sum(math.prod(form["shape"]) for form in tensors.values())
    return {"metadata": {"total_size": total}, "weight_map": dict(file_of)}


def _weight(name: str, *shape: int, gain: float = 1.0, bias: bool = True) -> Tensors:
    """A linear layer or convolution (out, in, ...); `gain` 1 keeps the variance of independent inputs."""
    layer = {f"{name}.weight": {"shape": list(shape), "scale": gain / math.sqrt(math.prod(shape[1:])), "offset": 0.0}}
    return {**layer, f"{name}.bias": {"shape": [shape[0]], "scale": 0.05, "offset": 0.0}} if bias else layer


def _norm(name: str, width: int, *, bias: bool = True, weight: float = 1.0) -> Tensors:
    """A norm whose weights lie about `weight`."""
    layer = {f"{name}.weight": {"shape": [width], "scale": 0.1, "offset": weight}}
    return {**layer, f"{name}.bias": {"shape": [width], "scale": 0.05, "offset": 0.0}} if bias else layer


def _table(name: str, *shape: int, scale: float, offset: float = 0.0) -> Tensors:
    return {name: {"shape": list(shape), "scale": scale, "offset": offset}}


def _dit_config() -> dict[str, Any]:
    """The transformer's `config.json`, with the fields of ours that the published one leaves at their defaults."""
    return {
        "_class_name": "WanModel",
        "_diffusers_version": "0.30.0",
        "dim": SIZES.dit_dim,
        "eps": 1e-06,
        "ffn_dim": SIZES.dit_ffn_dim,
        "freq_dim": SIZES.time_dim,
        "in_dim": 2 * LATENT_CHANNELS + 4,
        "model_type": "i2v",
        "num_heads": SIZES.dit_heads,
        "num_layers": SIZES.dit_layers,
        "out_dim": LATENT_CHANNELS,
        "text_len": 512,
        "text_dim": SIZES.text_dim,
        "intermediate_dim": SIZES.audio_hidden_dim,
        "output_dim": SIZES.audio_token_dim,
        "context_tokens": SIZES.audio_tokens,
    }


def _dit_base() -> Tensors:
    """The transformer without its audio parts; sharp query and key norms, so that attention is not flat."""
    dim, ffn_dim = SIZES.dit_dim, SIZES.dit_ffn_dim
    tensors = {
        **_weight("patch_embedding", dim, 2 * LATENT_CHANNELS + 4, 1, 2, 2),
        **_weight("text_embedding.0", dim, SIZES.text_dim),
        **_weight("text_embedding.2", dim, dim),
        **_weight("time_embedding.0", dim, SIZES.time_dim),
        **_weight("time_embedding.2", dim, dim, gain=0.5),
        **_weight("time_projection.1", 6 * dim, dim),
    }
    for block in (f"blocks.{index}" for index in range(SIZES.dit_layers)):
        tensors |= _table(f"{block}.modulation", 1, 6, dim, scale=1 / math.sqrt(dim))
        for part in ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o"):
            tensors |= _weight(f"{block}.{part}", dim, dim)
        for part in ("self_attn.norm_q", "self_attn.norm_k"):
            tensors |= _norm(f"{block}.{part}", dim, bias=False, weight=1.7)
        tensors |= _norm(f"{block}.norm3", dim)
        for part in ("q", "k", "v", "k_img", "v_img"):
            tensors |= _weight(f"{block}.cross_attn.{part}", dim, dim)
        tensors |= _weight(f"{block}.cross_attn.o", dim, dim, gain=2.0)
        for part in ("norm_q", "norm_k", "norm_k_img"):
            tensors |= _norm(f"{block}.cross_attn.{part}", dim, bias=False, weight=1.7)
        tensors |= _weight(f"{block}.ffn.0", ffn_dim, dim) | _weight(f"{block}.ffn.2", dim, ffn_dim)
    return {
        **tensors,
        **_table("head.modulation", 1, 2, dim, scale=1 / math.sqrt(dim)),
        **_weight("head.head", 4 * LATENT_CHANNELS, dim),
        **_norm("img_emb.proj.0", IMAGE_DIM),
        **_weight("img_emb.proj.1", IMAGE_DIM, IMAGE_DIM),
        **_weight("img_emb.proj.3", dim, IMAGE_DIM),
        **_norm("img_emb.proj.4", dim),
    }


def _dit_adapter() -> Tensors:
    """The transformer's audio parts: 5 speech vectors (first frame) or 8 (four frames) become a few tokens."""
    dim, hidden, token_dim = SIZES.dit_dim, SIZES.audio_hidden_dim, SIZES.audio_token_dim
    tensors: Tensors = {}
    for block in (f"blocks.{index}" for index in range(SIZES.dit_layers)):
        tensors |= _weight(f"{block}.audio_cross_attn.q_linear", dim, dim)
        tensors |= _weight(f"{block}.audio_cross_attn.proj", dim, dim, gain=2.5)
        tensors |= _weight(f"{block}.audio_cross_attn.kv_linear", 2 * dim, token_dim)
        tensors |= _norm(f"{block}.norm_x", dim)
    return {
        **tensors,
        **_weight("audio_proj.proj1", hidden, 5 * SPEECH_LAYERS * SPEECH_DIM, gain=1.4),
        **_weight("audio_proj.proj1_vf", hidden, 8 * SPEECH_LAYERS * SPEECH_DIM, gain=1.4),
        **_weight("audio_proj.proj2", hidden, hidden, gain=1.4),
        **_weight("audio_proj.proj3", SIZES.audio_tokens * token_dim, hidden, gain=1.4),
        **_norm("audio_proj.norm", token_dim),
    }


def _text_encoder() -> Tensors:
    """UMT5's encoder: a table of relative positions in every layer, no biases, small queries in place of a scale."""
    dim, ffn_dim = SIZES.text_dim, SIZES.text_ffn_dim
    tensors = _table("token_embedding.weight", len(vocabulary()), dim, scale=1.0)
    for block in (f"blocks.{index}" for index in range(SIZES.text_layers)):
        tensors |= _norm(f"{block}.norm1", dim, bias=False)
        tensors |= _weight(f"{block}.attn.q", dim, dim, gain=1 / math.sqrt(dim // SIZES.text_heads), bias=False)
        for part in ("attn.k", "attn.v", "attn.o"):
            tensors |= _weight(f"{block}.{part}", dim, dim, bias=False)
        tensors |= _norm(f"{block}.norm2", dim, bias=False)
        tensors |= _weight(f"{block}.ffn.gate.0", ffn_dim, dim, bias=False)
        tensors |= _weight(f"{block}.ffn.fc1", ffn_dim, dim, bias=False)
        tensors |= _weight(f"{block}.ffn.fc2", dim, ffn_dim, bias=False)
        tensors |= _table(f"{block}.pos_embedding.embedding.weight", 32, SIZES.text_heads, scale=0.7)
    return tensors | _norm("norm", dim, bias=False)


def _image_encoder() -> Tensors:
    """CLIP's picture tower with 257 tokens, and two tensors that nobody reads but every published file has."""
    dim, mlp_dim = IMAGE_DIM, SIZES.image_mlp_dim
    tensors = {
        **_table("log_scale", scale=0.0, offset=2.6592),
        **_table("visual.cls_embedding", 1, 1, dim, scale=0.5),
        **_table("visual.pos_embedding", 1, 257, dim, scale=0.2),
        **_table("visual.head", dim, 16, scale=1 / math.sqrt(dim)),
        **_weight("visual.patch_embedding", dim, 3, 14, 14, bias=False),
        **_norm("visual.pre_norm", dim),
    }
    for block in (f"visual.transformer.{index}" for index in range(SIZES.image_layers)):
        tensors |= _norm(f"{block}.norm1", dim) | _norm(f"{block}.norm2", dim)
        tensors |= _weight(f"{block}.attn.to_qkv", 3 * dim, dim) | _weight(f"{block}.attn.proj", dim, dim)
        tensors |= _weight(f"{block}.mlp.0", mlp_dim, dim) | _weight(f"{block}.mlp.2", dim, mlp_dim)
    return tensors | _norm("visual.post_norm", dim)


def _vae() -> Tensors:
    """The video VAE: four stages 1, 2, 4, 4 times as wide as `vae_dim`, two blocks each down and three each up."""
    dim = SIZES.vae_dim
    top = 4 * dim
    tensors = _weight("encoder.conv1", dim, 3, 3, 3, 3)
    down = ((dim, dim), (dim, 2 * dim), (2 * dim, top), (top, top))
    for stage, (width_in, width) in enumerate(down):
        names = [f"encoder.downsamples.{3 * stage + part}" for part in range(3)]
        tensors |= _residual(names[0], width_in, width) | _residual(names[1], width, width)
        if stage < 3:
            tensors |= _weight(f"{names[2]}.resample.1", width, width, 3, 3)
        if stage in (1, 2):
            tensors |= _weight(f"{names[2]}.time_conv", width, width, 3, 1, 1)
    tensors |= _middle("encoder", top) | _head("encoder", 2 * LATENT_CHANNELS, top)
    tensors |= _weight("conv1", 2 * LATENT_CHANNELS, 2 * LATENT_CHANNELS, 1, 1, 1)
    tensors |= _weight("conv2", LATENT_CHANNELS, LATENT_CHANNELS, 1, 1, 1)
    tensors |= _weight("decoder.conv1", top, LATENT_CHANNELS, 3, 3, 3) | _middle("decoder", top)
    up = ((top, top), (top // 2, top), (top // 2, 2 * dim), (dim, dim))
    for stage, (width_in, width) in enumerate(up):
        names = [f"decoder.upsamples.{4 * stage + part}" for part in range(4)]
        tensors |= _residual(names[0], width_in, width)
        tensors |= _residual(names[1], width, width) | _residual(names[2], width, width)
        if stage < 3:
            tensors |= _weight(f"{names[3]}.resample.1", width // 2, width, 3, 3)
        if stage < 2:
            tensors |= _weight(f"{names[3]}.time_conv", 2 * width, width, 3, 1, 1)
    return tensors | _head("decoder", 3, dim, gain=0.6)


def _residual(name: str, width_in: int, width: int) -> Tensors:
    """Two causal convolutions; a 1x1x1 convolution beside them where the width changes."""
    shortcut = _weight(f"{name}.shortcut", width, width_in, 1, 1, 1) if width_in != width else {}
    return {
        **_table(f"{name}.residual.0.gamma", width_in, 1, 1, 1, scale=0.1, offset=1.0),
        **_weight(f"{name}.residual.2", width, width_in, 3, 3, 3),
        **_table(f"{name}.residual.3.gamma", width, 1, 1, 1, scale=0.1, offset=1.0),
        **_weight(f"{name}.residual.6", width, width, 3, 3, 3),
        **shortcut,
    }


def _middle(side: str, width: int) -> Tensors:
    """Residual block, attention within a frame, residual block."""
    return {
        **_residual(f"{side}.middle.0", width, width),
        **_table(f"{side}.middle.1.norm.gamma", width, 1, 1, scale=0.1, offset=1.0),
        **_weight(f"{side}.middle.1.to_qkv", 3 * width, width, 1, 1),
        **_weight(f"{side}.middle.1.proj", width, width, 1, 1),
        **_residual(f"{side}.middle.2", width, width),
    }


def _head(side: str, width_out: int, width: int, gain: float = 1.0) -> Tensors:
    return {
        **_table(f"{side}.head.0.gamma", width, 1, 1, 1, scale=0.1, offset=1.0),
        **_weight(f"{side}.head.2", width_out, width, 3, 3, 3, gain=gain),
    }


_CONV_KERNELS = (10, 3, 3, 3, 3, 2, 2)
_CONV_STRIDES = (5, 2, 2, 2, 2, 2, 2)

_PREPROCESSOR: dict[str, Any] = {
    "do_normalize": False,
    "feature_size": 1,
    "padding_side": "right",
    "padding_value": 0.0,
    "return_attention_mask": False,
    "sampling_rate": 16000,
}


def _speech_config() -> dict[str, Any]:
    """wav2vec2's `config.json`: the fields that shape the network."""
    return {
        "architectures": ["Wav2Vec2ForPreTraining"],
        "model_type": "wav2vec2",
        "conv_bias": False,
        "conv_dim": [SIZES.speech_conv_dim] * len(_CONV_KERNELS),
        "conv_kernel": list(_CONV_KERNELS),
        "conv_stride": list(_CONV_STRIDES),
        "do_stable_layer_norm": False,
        "feat_extract_activation": "gelu",
        "feat_extract_norm": "group",
        "hidden_act": "gelu",
        "hidden_size": SPEECH_DIM,
        "intermediate_size": SIZES.speech_ffn_dim,
        "layer_norm_eps": 1e-05,
        "num_attention_heads": 12,
        "num_conv_pos_embedding_groups": 16,
        "num_conv_pos_embeddings": SIZES.speech_position_kernel,
        "num_feat_extract_layers": len(_CONV_KERNELS),
        "num_hidden_layers": SPEECH_LAYERS,
        "vocab_size": 32,
    }


def _speech_encoder() -> Tensors:
    """wav2vec2 under the names of a pre-training checkpoint, without that checkpoint's training heads."""
    conv_dim, dim, ffn_dim, kernel = (
        SIZES.speech_conv_dim,
        SPEECH_DIM,
        SIZES.speech_ffn_dim,
        SIZES.speech_position_kernel,
    )
    tensors = _table("wav2vec2.masked_spec_embed", dim, scale=0.5)
    for index, width in enumerate(_CONV_KERNELS):
        name = f"wav2vec2.feature_extractor.conv_layers.{index}"
        tensors |= _weight(f"{name}.conv", conv_dim, conv_dim if index else 1, width, gain=1.6, bias=False)
        tensors |= {} if index else _norm(f"{name}.layer_norm", conv_dim)
    tensors |= {
        **_norm("wav2vec2.feature_projection.layer_norm", conv_dim),
        **_weight("wav2vec2.feature_projection.projection", dim, conv_dim),
        **_table("wav2vec2.encoder.pos_conv_embed.conv.bias", dim, scale=0.05),
        **_table("wav2vec2.encoder.pos_conv_embed.conv.weight_g", 1, 1, kernel, scale=0.2, offset=2.0),
        **_table("wav2vec2.encoder.pos_conv_embed.conv.weight_v", dim, dim // 16, kernel, scale=1 / math.sqrt(dim)),
        **_norm("wav2vec2.encoder.layer_norm", dim),
    }
    for layer in (f"wav2vec2.encoder.layers.{index}" for index in range(SPEECH_LAYERS)):
        for part in ("k_proj", "v_proj", "q_proj", "out_proj"):
            tensors |= _weight(f"{layer}.attention.{part}", dim, dim)
        tensors |= _norm(f"{layer}.layer_norm", dim) | _norm(f"{layer}.final_layer_norm", dim)
        tensors |= _weight(f"{layer}.feed_forward.intermediate_dense", ffn_dim, dim)
        tensors |= _weight(f"{layer}.feed_forward.output_dense", dim, ffn_dim)
    return tensors


_SPECIAL_TOKENS = {"pad_token": "<pad>", "eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>"}


def vocabulary() -> list[str]:
    """The tokens by id: special ones, all bytes (for every script), the blank, the characters of ASCII."""
    special = ["<pad>", "</s>", "<s>", "<unk>"]
    characters = [*string.ascii_letters, *string.digits, *string.punctuation]
    return [*special, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *characters]
