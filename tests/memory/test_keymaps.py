"""Published names to the names of the modules that take them."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch

from infinitalk_cli.memory.keymaps import (
    audio_encoder_tensors,
    has_diffusers_names,
    image_encoder_tensors,
    original_name,
    text_encoder_tensors,
    transformer_tensors,
)
from infinitalk_cli.memory.tensor_files import TensorRef
from tests.memory.refs import ref_of, unreadable

DIFFUSERS_NAMES = {
    "condition_embedder.time_embedder.linear_1.weight": "time_embedding.0.weight",
    "condition_embedder.time_embedder.linear_2.bias": "time_embedding.2.bias",
    "condition_embedder.text_embedder.linear_1.bias": "text_embedding.0.bias",
    "condition_embedder.text_embedder.linear_2.weight": "text_embedding.2.weight",
    "condition_embedder.time_proj.weight": "time_projection.1.weight",
    "condition_embedder.image_embedder.norm1.bias": "img_emb.proj.0.bias",
    "condition_embedder.image_embedder.ff.net.0.proj.weight": "img_emb.proj.1.weight",
    "condition_embedder.image_embedder.ff.net.2.weight": "img_emb.proj.3.weight",
    "condition_embedder.image_embedder.norm2.weight": "img_emb.proj.4.weight",
    "patch_embedding.weight": "patch_embedding.weight",
    "scale_shift_table": "head.modulation",
    "proj_out.weight": "head.head.weight",
    "blocks.7.scale_shift_table": "blocks.7.modulation",
    "blocks.7.attn1.to_q.weight": "blocks.7.self_attn.q.weight",
    "blocks.7.attn1.to_out.0.bias": "blocks.7.self_attn.o.bias",
    "blocks.7.attn1.norm_k.weight": "blocks.7.self_attn.norm_k.weight",
    "blocks.7.attn2.to_v.weight": "blocks.7.cross_attn.v.weight",
    "blocks.7.attn2.add_k_proj.weight": "blocks.7.cross_attn.k_img.weight",
    "blocks.7.attn2.add_v_proj.bias": "blocks.7.cross_attn.v_img.bias",
    "blocks.7.attn2.norm_added_k.weight": "blocks.7.cross_attn.norm_k_img.weight",
    "blocks.7.norm2.weight": "blocks.7.norm3.weight",
    "blocks.7.ffn.net.0.proj.weight": "blocks.7.ffn.0.weight",
    "blocks.7.ffn.net.2.bias": "blocks.7.ffn.2.bias",
}


def refs(*names: str) -> dict[str, TensorRef]:
    return {name: unreadable(name, (6, 2)) for name in names}


@pytest.mark.parametrize(("theirs", "original"), DIFFUSERS_NAMES.items())
def test_diffusers_name_becomes_the_original_one(theirs: str, original: str) -> None:
    assert original_name(theirs) == original


@pytest.mark.slow
def test_every_name_of_the_diffusers_transformer_has_an_original() -> None:
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

    from infinitalk_cli.models.config import DiTConfig
    from infinitalk_cli.models.dit import DiT

    with torch.device("meta"):
        theirs = WanTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=32,
            in_channels=36,
            out_channels=16,
            text_dim=8,
            freq_dim=8,
            ffn_dim=16,
            num_layers=2,
            image_dim=1280,
            added_kv_proj_dim=64,
        )
        ours = DiT(DiTConfig(dim=64, ffn_dim=16, freq_dim=8, num_heads=2, num_layers=2, text_dim=8))
    base = {
        name for name in ours.state_dict() if not {"audio_proj", "audio_cross_attn", "norm_x"} & set(name.split("."))
    }
    assert {original_name(name) for name in theirs.state_dict()} == base


def test_prefix_of_all_tensors_is_cut_and_of_some_is_kept() -> None:
    for prefix in ("model.diffusion_model.", "diffusion_model."):
        assert list(transformer_tensors(refs(prefix + "head.modulation", "scaled_fp8"))) == [
            "head.modulation",
            "scaled_fp8",
        ]
    mixed = refs("diffusion_model.head.modulation", "head.head.weight")
    assert list(transformer_tensors(mixed)) == list(mixed)


def test_original_norm3_is_not_taken_for_that_of_diffusers() -> None:
    assert list(transformer_tensors(refs("blocks.0.norm3.weight"))) == ["blocks.0.norm3.weight"]
    assert list(transformer_tensors(refs("blocks.0.norm2.weight", "blocks.0.attn1.to_q.weight"))) == [
        "blocks.0.norm3.weight",
        "blocks.0.self_attn.q.weight",
    ]
    assert not has_diffusers_names(["blocks.0.audio_cross_attn.proj.weight", "blocks.0.cross_attn.q.weight"])


@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize("suffix", ["weight", "weight._data", "weight._scale", "input_scale"])
def test_text_encoder_names_keep_the_suffix_of_an_8_bit_form(prefix: str, suffix: str) -> None:
    target = [f"{prefix}shared.weight", f"{prefix}encoder.final_layer_norm.weight"]
    published = {
        f"blocks.3.attn.k.{suffix}": f"{prefix}encoder.block.3.layer.0.SelfAttention.k.{suffix}",
        f"blocks.3.ffn.gate.0.{suffix}": f"{prefix}encoder.block.3.layer.1.DenseReluDense.wi_0.{suffix}",
        f"blocks.3.ffn.fc1.{suffix}": f"{prefix}encoder.block.3.layer.1.DenseReluDense.wi_1.{suffix}",
        f"blocks.3.ffn.fc2.{suffix}": f"{prefix}encoder.block.3.layer.1.DenseReluDense.wo.{suffix}",
        "token_embedding.weight": f"{prefix}shared.weight",
        "norm.weight": f"{prefix}encoder.final_layer_norm.weight",
        "blocks.3.norm1.weight": f"{prefix}encoder.block.3.layer.0.layer_norm.weight",
        "blocks.3.norm2.weight": f"{prefix}encoder.block.3.layer.1.layer_norm.weight",
        "blocks.3.pos_embedding.embedding.weight": (
            f"{prefix}encoder.block.3.layer.0.SelfAttention.relative_attention_bias.weight"
        ),
        "unheard.of": f"{prefix}unheard.of",
    }
    assert list(text_encoder_tensors(refs(*published), target)) == list(published.values())


def image_target(prefix: str, extra: Iterable[str] = ()) -> list[str]:
    return [f"{prefix}{name}" for name in ("embeddings.class_embedding", "encoder.layers.0.mlp.fc1.weight", *extra)]


@pytest.mark.parametrize("prefix", ["", "vision_model.", "model.vision_model."])
def test_image_encoder_names_follow_the_prefix_of_the_target(prefix: str) -> None:
    published = refs("visual.patch_embedding.weight", "visual.pre_norm.bias", "visual.transformer.0.mlp.2.bias")
    published |= refs("visual.transformer.1.mlp.2.bias", "visual.transformer.0.attn.proj.weight")
    assert list(image_encoder_tensors(published, image_target(prefix))) == [
        f"{prefix}embeddings.patch_embedding.weight",
        f"{prefix}pre_layrnorm.bias",
        f"{prefix}encoder.layers.0.mlp.fc2.bias",
        f"{prefix}encoder.layers.0.self_attn.out_proj.weight",
    ]


def test_joint_query_key_value_matrix_is_split_without_being_read() -> None:
    joint = torch.arange(24.0).reshape(12, 2)
    name = "visual.transformer.0.attn.to_qkv.weight"
    published = {name: ref_of(name, joint), "visual.transformer.1.norm1.bias": unreadable("", (2,))}
    parts = image_encoder_tensors(published, image_target(""))
    names = [f"encoder.layers.0.self_attn.{part}_proj.weight" for part in "qkv"]
    assert list(parts) == names
    assert all(parts[name].shape == (4, 2) for name in names)
    assert torch.equal(torch.cat([parts[name].load() for name in names]), joint)
    image_encoder_tensors({name: unreadable(name, (12, 2))}, image_target(""))


def test_class_and_position_embeddings_lose_their_empty_axes() -> None:
    published = {
        "visual.cls_embedding": unreadable("", (1, 1, 8)),
        "visual.pos_embedding": unreadable("", (1, 257, 8)),
    }
    shapes = [ref.shape for ref in image_encoder_tensors(published, image_target("")).values()]
    assert shapes == [(8,), (257, 8)]


def test_image_encoder_drops_only_what_the_target_has_no_place_for() -> None:
    unused = refs("log_scale", "visual.head", "textual.norm.weight", "visual.post_norm.weight")
    layers = refs(*(f"visual.transformer.{index}.norm1.weight" for index in range(3)))
    kept = image_encoder_tensors({**unused, **layers}, image_target(""))
    assert list(kept) == [f"encoder.layers.{index}.layer_norm1.weight" for index in range(2)]
    full = image_target("", ["post_layernorm.weight", "encoder.layers.2.layer_norm1.weight"])
    assert set(image_encoder_tensors({**unused, **layers}, full)) >= set(full[2:])


@pytest.mark.parametrize("published_prefix", ["wav2vec2.", ""])
@pytest.mark.parametrize("spelling", ["weight_g", "parametrizations.weight.original0"])
@pytest.mark.parametrize("known", ["weight_g", "parametrizations.weight.original0"])
def test_audio_encoder_takes_both_spellings_of_weight_norm(published_prefix: str, spelling: str, known: str) -> None:
    conv = "encoder.pos_conv_embed.conv"
    target = ["model.feature_projection.projection.weight", f"model.{conv}.{known}"]
    published = refs(f"{published_prefix}{conv}.{spelling}")
    assert list(audio_encoder_tensors(published, target)) == [f"model.{conv}.{known}"]


def test_audio_encoder_drops_what_only_training_needs() -> None:
    target = ["feature_projection.projection.weight"]
    training = refs("wav2vec2.masked_spec_embed", "quantizer.codevectors", "project_q.weight", "project_hid.bias")
    assert audio_encoder_tensors(training, target) == {}
    assert list(audio_encoder_tensors(training, [*target, "masked_spec_embed"])) == ["masked_spec_embed"]
    assert list(audio_encoder_tensors(refs("lm_head.weight"), target)) == ["lm_head.weight"]
