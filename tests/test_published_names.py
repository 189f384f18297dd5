"""The networks at their real size, on the meta device: every tensor of the published files finds its place.

The strict check of the loader does the work: it fails for a name that no parameter takes, for a parameter that no name
fills, and for another shape. Nothing is read and nothing allocated.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from torch import nn

from infinitalk_cli.errors import WeightsError
from infinitalk_cli.memory.keymaps import transformer_tensors
from infinitalk_cli.memory.quant import QuantizedLinear
from infinitalk_cli.memory.tensor_files import SAFETENSORS_DTYPES, TensorRef, merge_tensors
from infinitalk_cli.models.config import DiTConfig
from infinitalk_cli.models.dit import DiT
from infinitalk_cli.models.encoder_config import AudioEncoderConfig
from infinitalk_cli.networks import make_audio_encoder, make_dit, make_image_encoder, make_text_encoder, make_vae
from tests.parity.reference import full_manifest

WAV2VEC2_CONFIG = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "conv_dim": [512] * 7,
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
    "conv_bias": False,
    "feat_extract_norm": "group",
    "do_stable_layer_norm": False,
    "num_conv_pos_embeddings": 128,
    "num_conv_pos_embedding_groups": 16,
    "layer_norm_eps": 1e-5,
}


def expanded(name: str) -> Iterator[str]:
    """The names that one with `{a..b}` in it stands for."""
    spread = re.search(r"\{(\d+)\.\.(\d+)\}", name)
    if spread is None:
        yield name
        return
    for number in range(int(spread[1]), int(spread[2]) + 1):
        yield from expanded(name[: spread.start()] + str(number) + name[spread.end() :])


def published(pattern: str) -> dict[str, TensorRef]:
    """The tensors of the one published file whose name matches."""
    entries: Mapping[str, Any] = full_manifest()["files"]
    file, entry = next((file, entry) for file, entry in entries.items() if re.search(pattern, file))
    refs: dict[str, TensorRef] = {}
    for compact, (dtype, shape) in entry["tensors"].items():
        for name in expanded(compact):
            refs[name] = meta_ref(name, tuple(shape), SAFETENSORS_DTYPES[dtype], Path(file))
    assert len(refs) == entry["num_tensors"]
    return refs


def meta_ref(name: str, shape: tuple[int, ...], dtype: torch.dtype, path: Path) -> TensorRef:
    return TensorRef(name, shape, dtype, path, lambda: torch.empty(shape, dtype=dtype, device="meta"))


def dit_config() -> DiTConfig:
    return DiTConfig.from_json(next(iter(full_manifest()["configs"].values())))


def load_dit(tensors: Mapping[str, TensorRef]) -> DiT:
    return make_dit(dit_config(), transformer_tensors(tensors), dtype=torch.bfloat16, device="meta")


def base_and_adapter(adapter: str = "InfiniteTalk/single/infinitetalk") -> dict[str, TensorRef]:
    return merge_tensors(published("diffusion_pytorch_model"), published(adapter))


def num_parameters(module: nn.Module) -> int:
    """The numbers that a network holds, the scales of 8-bit weights not counted."""
    return sum(parameter.numel() for name, parameter in module.named_parameters() if not name.endswith(".scale"))


def num_published(tensors: Mapping[str, TensorRef], unused: str = "nothing") -> int:
    """The same of a file, without the tensors whose names match."""
    return sum(
        prod(ref.shape) for name, ref in tensors.items() if not name.endswith("_scale") and not re.match(unused, name)
    )


def eight_bit_layers(module: nn.Module) -> list[QuantizedLinear]:
    return [part for part in module.modules() if isinstance(part, QuantizedLinear)]


@pytest.mark.parametrize(
    "adapter", ["InfiniteTalk/single/infinitetalk", "InfiniteTalk/multi/infinitetalk", "multitalk\\.safetensors"]
)
def test_base_and_adapter_fill_the_transformer(adapter: str) -> None:
    tensors = base_and_adapter(adapter)
    dit = load_dit(tensors)
    assert num_parameters(dit) == num_published(tensors)
    kept = {name for name, parameter in dit.named_parameters() if parameter.dtype == torch.float32}
    assert kept == {name for name, _ in dit.named_parameters() if DiT.keeps_float32(name)}
    assert "blocks.39.modulation" in kept
    assert "blocks.39.self_attn.q.weight" not in kept


@pytest.mark.parametrize(("form", "dtype"), [("fp8", torch.float8_e4m3fn), ("int8", torch.int8)])
def test_8_bit_file_fills_the_transformer(form: str, dtype: torch.dtype) -> None:
    tensors = published(f"infinitetalk_single_{form}\\.")
    dit = load_dit(tensors)
    assert num_parameters(dit) == num_published(tensors)
    assert {layer.data.dtype for layer in eight_bit_layers(dit)} == {dtype}
    assert len(eight_bit_layers(dit)) == sum(name.endswith("._data") for name in tensors)


def only_listed_layers(tensors: Mapping[str, TensorRef], keep: re.Pattern[str]) -> dict[str, TensorRef]:
    """The same file with only the matching layers in 8 bits, the others plain in bfloat16."""
    refs: dict[str, TensorRef] = {}
    for name, ref in tensors.items():
        layer, _, ending = name.partition(".weight._")
        if ending and not keep.fullmatch(layer):
            if ending == "data":
                refs[f"{layer}.weight"] = meta_ref(f"{layer}.weight", ref.shape, torch.bfloat16, ref.path)
        elif not (name.endswith(("input_scale", "output_scale")) and not keep.fullmatch(name.rpartition(".")[0])):
            refs[name] = ref
    return refs


def test_file_that_leaves_layers_out_of_8_bits_fills_the_transformer() -> None:
    """The layers that the sizes of the public files speak for: blocks, text and audio projection."""
    believed = re.compile(r"blocks\..*|text_embedding\..*|audio_proj\..*")
    tensors = only_listed_layers(published("infinitetalk_single_fp8"), believed)
    dit = load_dit(tensors)
    assert len(eight_bit_layers(dit)) == 15 * dit_config().num_layers + 2 + 4
    assert num_parameters(dit) == num_published(tensors)


def test_missing_tensor_of_an_8_bit_file_is_an_error() -> None:
    tensors = published("infinitetalk_single_int8")
    del tensors["blocks.17.norm_x.bias"]
    with pytest.raises(WeightsError, match=r"1 missing: blocks\.17\.norm_x\.bias"):
        load_dit(tensors)


@pytest.mark.parametrize("pattern", ["models_t5_umt5", "t5_fp8\\.", "t5_int8\\."])
def test_text_encoder_takes_every_tensor(pattern: str) -> None:
    tensors = published(pattern)
    tokenizer = Tokenizer(models.Unigram([("a", 0.0)]))
    encoder = make_text_encoder(tensors, tokenizer, dtype=torch.bfloat16, device="meta")
    assert num_parameters(encoder) == num_published(tensors)
    assert len(eight_bit_layers(encoder)) == sum(name.endswith("._data") for name in tensors)


def test_image_encoder_takes_the_vision_part_without_its_last_layer() -> None:
    tensors = published("models_clip")
    encoder = make_image_encoder(tensors, dtype=torch.float16, device="meta")
    last = max(int(found[1]) for name in tensors if (found := re.match(r"visual\.transformer\.(\d+)\.", name)))
    unused = rf"textual\.|log_scale|visual\.(head|post_norm\.|transformer\.{last}\.)"
    assert num_parameters(encoder) == num_published(tensors, unused)


def test_vae_takes_every_tensor() -> None:
    tensors = published("Wan2.1_VAE")
    assert num_parameters(make_vae(tensors, dtype=torch.float32, device="meta")) == num_published(tensors)


def test_audio_encoder_takes_every_tensor_but_those_of_training() -> None:
    tensors = published("wav2vec2")
    config = AudioEncoderConfig.from_json(WAV2VEC2_CONFIG)
    encoder = make_audio_encoder(config, tensors, do_normalize=False, dtype=torch.float32, device="meta")
    unused = r"quantizer\.|project_"
    if not any("masked_spec_embed" in name for name, _ in encoder.named_parameters()):
        unused += r"|wav2vec2\.masked_spec_embed"
    assert num_parameters(encoder) == num_published(tensors, unused)
