"""Networks built from files: layouts that lead to the same transformer, and files that are not what they should be."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from infinitalk_cli.errors import WeightsError
from infinitalk_cli.memory.lora import LoraReport, read_lora
from infinitalk_cli.memory.quant import QuantizedLinear
from infinitalk_cli.models.dit import DiT
from infinitalk_cli.networks import build_audio_encoder, build_dit, build_image_encoder, build_text_encoder, build_vae
from infinitalk_cli.weights import WeightFiles
from tests.parity.reference import manifest, reference_dir
from training.random_tree import write_tree

BASE = "Wan2.1-I2V-14B-480P"
ABSENT = Path("absent")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The transformer's files of the reference set, its LoRAs and the tokenizer."""
    folder = tmp_path_factory.mktemp("weights")
    listed = manifest()
    wanted = [name for name in listed["files"] if name.startswith((f"{BASE}/diffusion", "InfiniteTalk/", "lora/"))]
    configs = [name for name, content in listed["json_files"].items() if "ffn_dim" in content]
    write_tree(listed, folder, source=reference_dir(), only=[*wanted, *configs, *listed["copied_dirs"]])
    return folder


@pytest.fixture
def files(root: Path) -> WeightFiles:
    return WeightFiles(
        dit_config=root / BASE / "config.json",
        dit_shards=tuple(sorted((root / BASE).glob("*.safetensors"))),
        adapter=root / "InfiniteTalk/single/infinitetalk.safetensors",
        quant="none",
        engine="infinitetalk",
        text_encoder=ABSENT,
        text_encoder_quant="none",
        tokenizer=root / BASE / "google/umt5-xxl/tokenizer.json",
        image_encoder=ABSENT,
        vae=ABSENT,
        audio_encoder=ABSENT,
        audio_encoder_config=ABSENT,
        audio_preprocessor_config=ABSENT,
    )


def dit_of(files: WeightFiles) -> DiT:
    return build_dit(files, dtype=torch.bfloat16)


def same(first: DiT, second: DiT) -> bool:
    pairs = zip(first.named_parameters(), second.named_parameters(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def test_transformer_has_the_compute_dtype_but_for_what_stays_float32(files: WeightFiles) -> None:
    for name, parameter in dit_of(files).named_parameters():
        assert parameter.dtype == (torch.float32 if DiT.keeps_float32(name) else torch.bfloat16), name


def test_adapter_among_the_shards_is_the_same_as_beside_them(files: WeightFiles) -> None:
    assert files.adapter is not None
    joined = replace(files, dit_shards=(files.adapter, *files.dit_shards), adapter=None)
    assert same(dit_of(files), dit_of(joined))


def test_base_in_one_file_with_a_prefix_is_the_same_as_in_shards(files: WeightFiles, tmp_path: Path) -> None:
    shards = [load_file(path) for path in files.dit_shards]
    whole = {f"model.diffusion_model.{name}": tensor for shard in shards for name, tensor in shard.items()}
    save_file(whole, tmp_path / "whole.safetensors")
    assert same(dit_of(files), dit_of(replace(files, dit_shards=(tmp_path / "whole.safetensors",))))


def test_base_tensors_of_an_adapter_win(files: WeightFiles, root: Path) -> None:
    adapter = root / "InfiniteTalk/override/infinitetalk.safetensors"
    overridden = {
        name: tensor for name, tensor in load_file(adapter).items() if "audio" not in name and "norm_x" not in name
    }
    assert overridden
    dit = dit_of(replace(files, adapter=adapter))
    for name, tensor in overridden.items():
        assert torch.equal(dit.get_parameter(name), tensor.to(dit.get_parameter(name).dtype))


def test_adapter_in_comfyui_form_keeps_its_8_bits_beside_a_plain_base(files: WeightFiles, tmp_path: Path) -> None:
    """As published by others: attention weights in float8 with one scale each, a marker, the rest float32."""
    assert files.adapter is not None
    plain = load_file(files.adapter)
    attention = [name for name in plain if "audio_cross_attn" in name and name.endswith(".weight")]
    scales = {name: plain[name].abs().amax() / 448 for name in attention}
    scaled = {name: (plain[name] / scale).to(torch.float8_e4m3fn) for name, scale in scales.items()}
    marked = {name.replace(".weight", ".scale_weight"): scale for name, scale in scales.items()}
    save_file({**plain, **scaled, **marked, "scaled_fp8": torch.zeros(2)}, tmp_path / "comfyui.safetensors")
    dit = dit_of(replace(files, adapter=tmp_path / "comfyui.safetensors"))
    layers = {name: part for name, part in dit.named_modules() if isinstance(part, QuantizedLinear)}
    assert {f"{name}.weight" for name in layers} == set(attention)
    for name, layer in layers.items():
        torch.testing.assert_close(layer.dequantized(), plain[f"{name}.weight"], rtol=2**-4, atol=1e-3)


def test_eight_bit_layers_outside_the_blocks_multiply_exactly(files: WeightFiles, root: Path) -> None:
    quantised = "InfiniteTalk/quant_models/infinitetalk_single_fp8.safetensors"
    write_tree(manifest(), root, source=reference_dir(), only=[quantised])
    dit = build_dit(
        replace(files, dit_shards=(root / quantised,), adapter=None, quant="fp8"), dtype=torch.bfloat16, device="cpu"
    )
    exact = {name: part.is_exact for name, part in dit.named_modules() if isinstance(part, QuantizedLinear)}
    assert exact["audio_proj.proj1"]
    assert not exact["blocks.0.self_attn.q"]
    assert all(is_exact != name.startswith("blocks.") for name, is_exact in exact.items())


def test_missing_adapter_is_told_by_its_tensors(files: WeightFiles) -> None:
    with pytest.raises(WeightsError, match=r"do not fit the video transformer; tensors \d+ missing: audio_proj\."):
        dit_of(replace(files, adapter=None))


def test_reports_of_loras_are_passed_on(files: WeightFiles, root: Path) -> None:
    reports: list[LoraReport] = []
    paths = sorted((root / "lora").glob("*.safetensors"))
    loras = [read_lora(path, 0.5) for path in paths]
    dit = build_dit(files, dtype=torch.bfloat16, loras=loras, on_lora=reports.append)
    assert [report.path for report in reports] == paths
    assert not same(dit, dit_of(files))


@pytest.mark.parametrize("content", ["", "[1]", "{}", '{"dim": "wide"}', '{"dim": 7, "num_heads": 2}'])
def test_useless_config_is_named(files: WeightFiles, tmp_path: Path, content: str) -> None:
    config = tmp_path / "config.json"
    config.write_text(content, encoding="utf-8")
    with pytest.raises(WeightsError, match=r"config\.json"):
        dit_of(replace(files, dit_config=config))
    with pytest.raises(WeightsError, match=r"config\.json"):
        build_audio_encoder(replace(files, audio_encoder_config=config))


def test_sizes_that_differ_from_the_files_are_an_error(files: WeightFiles, tmp_path: Path) -> None:
    config = json.loads(files.dit_config.read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(config | {"ffn_dim": 2 * config["ffn_dim"]}), encoding="utf-8")
    with pytest.raises(WeightsError, match=r"of another shape: blocks\.0\.ffn\.0\.weight \(file: "):
        dit_of(replace(files, dit_config=tmp_path / "config.json"))


BUILDERS: list[Callable[[WeightFiles], object]] = [
    lambda files: build_text_encoder(files, dtype=torch.float32),
    lambda files: build_image_encoder(files, dtype=torch.float32),
    build_vae,
]


@pytest.mark.parametrize("build", BUILDERS, ids=["text", "image", "vae"])
def test_file_of_another_network_is_named(
    files: WeightFiles, tmp_path: Path, build: Callable[[WeightFiles], object]
) -> None:
    other = tmp_path / "other.safetensors"
    save_file({"cat": torch.ones(2)}, other)
    with pytest.raises(WeightsError, match=r"other\.safetensors: "):
        build(replace(files, text_encoder=other, image_encoder=other, vae=other))


def test_damaged_tokenizer_is_named(files: WeightFiles, tmp_path: Path) -> None:
    tokenizer, text = tmp_path / "tokenizer.json", tmp_path / "t5.pth"
    tokenizer.write_text("{", encoding="utf-8")
    torch.save({"x": torch.ones(1)}, text)
    with pytest.raises(WeightsError, match=r"cannot read the tokenizer .*tokenizer\.json"):
        build_text_encoder(replace(files, tokenizer=tokenizer, text_encoder=text), dtype=torch.float32)
