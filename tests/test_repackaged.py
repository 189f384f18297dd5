"""Encoders and VAE in other programs' names compute what the published files do, and are found under any name.

Each form is made here from the tiny published files of the reference set, in the names and dtypes that ComfyUI, its
Wan wrapper and Wan2GP give to theirs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from typer.testing import CliRunner

from infinitalk_cli import repackaged
from infinitalk_cli.errors import WeightsError
from infinitalk_cli.main import app
from infinitalk_cli.memory.quant import quantize_rows
from infinitalk_cli.memory.tensor_files import open_tensors
from infinitalk_cli.networks import build_image_encoder, build_text_encoder, build_vae, make_image_encoder
from infinitalk_cli.repackaged import KNOWN_NAMES, Kind, kind_of
from infinitalk_cli.weights import BASE, Quant, WeightFiles, all_paths, locate
from tests.published_tree import write_published
from tests.test_weights import lay

Tensors = dict[str, Tensor]

TEXT = f"{BASE}/models_t5_umt5-xxl-enc-bf16.pth"
IMAGE = f"{BASE}/models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
VAE = f"{BASE}/Wan2.1_VAE.pth"
SINGLE = "InfiniteTalk/single/infinitetalk.safetensors"
E4M3 = torch.float8_e4m3fn

UMT5_NAMES = (
    (r"token_embedding\.", "shared."),
    (r"norm\.weight", "encoder.final_layer_norm.weight"),
    (r"blocks\.(\d+)\.norm1\.", r"encoder.block.\1.layer.0.layer_norm."),
    (r"blocks\.(\d+)\.attn\.", r"encoder.block.\1.layer.0.SelfAttention."),
    (r"blocks\.(\d+)\.pos_embedding\.embedding\.", r"encoder.block.\1.layer.0.SelfAttention.relative_attention_bias."),
    (r"blocks\.(\d+)\.norm2\.", r"encoder.block.\1.layer.1.layer_norm."),
    (r"blocks\.(\d+)\.ffn\.gate\.0\.", r"encoder.block.\1.layer.1.DenseReluDense.wi_0."),
    (r"blocks\.(\d+)\.ffn\.fc1\.", r"encoder.block.\1.layer.1.DenseReluDense.wi_1."),
    (r"blocks\.(\d+)\.ffn\.fc2\.", r"encoder.block.\1.layer.1.DenseReluDense.wo."),
)
CLIP_NAMES = (
    (r"visual\.cls_embedding", "vision_model.embeddings.class_embedding"),
    (r"visual\.pos_embedding", "vision_model.embeddings.position_embedding.weight"),
    (r"visual\.patch_embedding\.", "vision_model.embeddings.patch_embedding."),
    (r"visual\.pre_norm\.", "vision_model.pre_layrnorm."),
    (r"visual\.post_norm\.", "vision_model.post_layernorm."),
    (r"visual\.transformer\.(\d+)\.norm(\d)\.", r"vision_model.encoder.layers.\1.layer_norm\2."),
    (r"visual\.transformer\.(\d+)\.attn\.proj\.", r"vision_model.encoder.layers.\1.self_attn.out_proj."),
    (r"visual\.transformer\.(\d+)\.mlp\.0\.", r"vision_model.encoder.layers.\1.mlp.fc1."),
    (r"visual\.transformer\.(\d+)\.mlp\.2\.", r"vision_model.encoder.layers.\1.mlp.fc2."),
)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree for one speaker as it is published."""
    return write_published(tmp_path_factory.mktemp("published"))


def tensors_of(published: Path, place: str) -> Tensors:
    return {name: ref.load().clone() for name, ref in open_tensors(published / place).items()}


def renamed(name: str, table: tuple[tuple[str, str], ...]) -> str:
    found = [re.sub(f"^{ours}", theirs, name) for ours, theirs in table if re.match(ours, name)]
    return found[0] if found else name


def umt5(tensors: Tensors, dtype: torch.dtype) -> Tensors:
    """ComfyUI's 16-bit file: the library's names, with the tokenizer in it."""
    made = {renamed(name, UMT5_NAMES): tensor.to(dtype) for name, tensor in tensors.items()}
    return made | {"spiece_model": torch.zeros(7, dtype=torch.uint8)}


def is_linear(name: str, tensor: Tensor) -> bool:
    return tensor.dim() == 2 and not any(word in name for word in ("embedding", "shared", "relative"))


def scaled_umt5(tensors: Tensors) -> Tensors:
    """ComfyUI's scaled float8: one scale per matrix, and the marker."""
    made = umt5(tensors, torch.float16)
    for name in [name for name, tensor in made.items() if is_linear(name, tensor)]:
        weight = made[name].float()
        scale = weight.abs().amax() / 448
        made[name] = (weight / scale).to(E4M3)
        made[name.replace(".weight", ".scale_weight")] = scale
    return made | {"scaled_fp8": torch.zeros(2, dtype=E4M3)}


def cast_umt5(tensors: Tensors) -> Tensors:
    """The wrapper's float8: the published names, linear layers cast without a scale."""
    return {name: tensor.to(E4M3) if is_linear(name, tensor) else tensor for name, tensor in tensors.items()}


def quanto_umt5(tensors: Tensors) -> Tensors:
    """Wan2GP's int8: the published names, quanto's suffixes."""
    made = dict(tensors)
    for name in [name for name, tensor in tensors.items() if is_linear(name, tensor)]:
        made[f"{name}._data"], made[f"{name}._scale"] = quantize_rows(made.pop(name), torch.int8)
    return made


def clip_h(tensors: Tensors) -> Tensors:
    """ComfyUI's vision tower: the library's names, query, key and value apart, the projection with it."""
    made: Tensors = {"visual_projection.weight": tensors["visual.head"].T}
    for name, tensor in tensors.items():
        if qkv := re.match(r"visual\.transformer\.(\d+)\.attn\.to_qkv\.(\w+)", name):
            layer = f"vision_model.encoder.layers.{qkv[1]}.self_attn"
            parts = zip("qkv", tensor.chunk(3), strict=True)
            made |= {f"{layer}.{part}_proj.{qkv[2]}": values for part, values in parts}
        elif name not in ("log_scale", "visual.head"):
            made[renamed(name, CLIP_NAMES)] = tensor.squeeze() if name.endswith("s_embedding") else tensor
    return made


def visual(tensors: Tensors) -> Tensors:
    """The wrapper's vision tower: the published names without the text tower."""
    return {name: tensor for name, tensor in tensors.items() if name.startswith("visual.")}


def write(path: Path, tensors: Tensors) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path)
    return path


@dataclass(frozen=True)
class Form:
    """A form of a published file: where that is, the name of the other one, how it is made, how far off it may be."""

    place: str
    name: str
    make: Callable[[Tensors], Tensors]
    kind: Kind
    tolerance: float = 0.0


FORMS = [
    Form(TEXT, "umt5_xxl_fp16.safetensors", lambda t: umt5(t, torch.float16), "text_none", 1e-3),
    Form(TEXT, "umt5_xxl_fp8_e4m3fn_scaled.safetensors", scaled_umt5, "text_fp8", 0.06),
    Form(TEXT, "umt5-xxl-enc-bf16.safetensors", dict, "text_none"),
    Form(TEXT, "umt5-xxl-enc-fp8_e4m3fn.safetensors", cast_umt5, "text_fp8", 0.06),
    Form(TEXT, "models_t5_umt5-xxl-enc-quanto_int8.safetensors", quanto_umt5, "text_int8", 0.02),
    Form(IMAGE, "clip_vision_h.safetensors", clip_h, "image"),
    Form(IMAGE, "open-clip-xlm-roberta-large-vit-huge-14_visual_fp16.safetensors", visual, "image"),
    Form(IMAGE, "clip.safetensors", lambda t: {n.removeprefix("visual."): x for n, x in visual(t).items()}, "image"),
    Form(VAE, "wan_2.1_vae.safetensors", dict, "vae"),
    Form(VAE, "Wan2_1_VAE_bf16.safetensors", lambda t: {n: x.bfloat16() for n, x in t.items()}, "vae", 0.05),
    Form(VAE, "mine.safetensors", lambda t: {f"model.{name}": tensor for name, tensor in t.items()}, "vae"),
]


def output_of(files: WeightFiles, place: str) -> Tensor:
    """What the network of the file at a place makes of the same input."""
    torch.manual_seed(0)
    if place == TEXT:
        return build_text_encoder(files, dtype=torch.float32).encode("A person talks to the camera.")
    if place == IMAGE:
        return build_image_encoder(files, dtype=torch.float32).encode(torch.rand(1, 3, 32, 48) * 2 - 1)
    vae = build_vae(files)
    with torch.no_grad():
        return vae.encode(torch.rand(1, 3, 1, 16, 16) * 2 - 1)


def tree_without(published: Path, folder: Path, place: str) -> Path:
    """The published tree but for one file."""
    for path in (path for path in published.rglob("*") if path.is_file()):
        there = folder / path.relative_to(published)
        there.parent.mkdir(parents=True, exist_ok=True)
        if path != published / place:
            there.hardlink_to(path)
    return folder


def talk_json(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


USUAL = ("umt5_xxl_fp8_e4m3fn_scaled.safetensors", "clip_vision_h.safetensors", "wan_2.1_vae.safetensors")


@pytest.mark.parametrize(
    "form",
    [pytest.param(form, id=form.name, marks=() if form.name in USUAL else pytest.mark.slow) for form in FORMS],
)
def test_imported_file_is_found_by_a_run_and_computes_the_same(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: Form
) -> None:
    made = write(tmp_path / "ComfyUI/models" / form.name, form.make(tensors_of(published, form.place)))
    assert kind_of(made) == form.kind
    monkeypatch.setattr(repackaged, "PUBLISHED_SHAPES", tiny_shapes(published))
    tree = tree_without(published, tmp_path / "weights", form.place)
    with pytest.raises(WeightsError, match=re.escape(Path(form.place).name)):
        locate(tree, num_speakers=1)
    report = talk_json("weights", "import", str(tmp_path / "ComfyUI"), "--offline", "--weights-dir", str(tree))
    assert [(file["place"], file["verified"]) for file in report["files"]] == [(f"repackaged/{form.name}", False)]
    files = locate(tree, num_speakers=1)
    taken = tree / "repackaged" / form.name
    assert taken in all_paths(files)
    assert taken.samefile(made)
    wanted, got = output_of(locate(published, num_speakers=1), form.place), output_of(files, form.place)
    assert got.shape == wanted.shape
    assert (got - wanted).norm() <= form.tolerance * wanted.norm() + 1e-5


def tiny_shapes(published: Path) -> dict[str, tuple[tuple[str, tuple[int, ...]], ...]]:
    """The shapes by which networks are told apart, of the tiny ones."""
    text, image, vae = (tensors_of(published, place) for place in (TEXT, IMAGE, VAE))
    table = tuple(text["token_embedding.weight"].shape)
    patches = tuple(image["visual.patch_embedding.weight"].shape)
    return {
        "text": (("shared.weight", table), ("token_embedding.weight", table)),
        "image": (("embeddings.patch_embedding.weight", patches), ("patch_embedding.weight", patches)),
        "vae": (("encoder.conv1.weight", tuple(vae["encoder.conv1.weight"].shape)),),
    }


def test_networks_of_other_sizes_and_models_are_not_taken(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    comfy = tmp_path / "ComfyUI"
    write(comfy / "smaller.safetensors", tensors_of(published, VAE))  # not of the published size
    arguments = ("weights", "import", str(comfy), "--offline", "--weights-dir", str(tmp_path / "weights"))
    assert talk_json(*arguments)["files"] == []
    monkeypatch.setattr(repackaged, "PUBLISHED_SHAPES", tiny_shapes(published))
    (comfy / "smaller.safetensors").rename(comfy / "qwen_image_vae.safetensors")
    assert talk_json(*arguments)["files"] == []
    (comfy / "qwen_image_vae.safetensors").rename(comfy / "of_any_name.safetensors")
    assert [file["place"] for file in talk_json(*arguments)["files"]] == ["repackaged/of_any_name.safetensors"]


def test_of_several_forms_one_is_taken_and_none_where_the_tree_has_one(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repackaged, "PUBLISHED_SHAPES", tiny_shapes(published))
    comfy, vae = tmp_path / "ComfyUI", tensors_of(published, VAE)
    for name in ("a.safetensors", "Wan2_1_VAE_bf16.safetensors", "wan_2.1_vae.safetensors"):
        write(comfy / name, {n: tensor.bfloat16() for n, tensor in vae.items()})
    write(comfy / "clip_vision_h.safetensors", clip_h(tensors_of(published, IMAGE)))
    tree = tree_without(published, tmp_path / "weights", VAE)
    arguments = ("weights", "import", str(comfy), "--offline", "--weights-dir", str(tree))
    assert [file["place"] for file in talk_json(*arguments)["files"]] == ["repackaged/wan_2.1_vae.safetensors"]
    assert talk_json(*arguments)["files"] == []


@pytest.mark.parametrize(
    ("quant", "present", "taken", "form"),
    [
        ("none", ("umt5_xxl_fp16.safetensors", "umt5_xxl_fp8_e4m3fn_scaled.safetensors"), 0, "none"),
        ("none", ("umt5_xxl_fp8_e4m3fn_scaled.safetensors",), 0, "fp8"),
        ("fp8", ("umt5_xxl_fp8_e4m3fn_scaled.safetensors", "umt5_xxl_fp16.safetensors"), 0, "fp8"),
        ("fp8", ("umt5-xxl-enc-bf16.safetensors",), 0, "none"),
        (
            "int8",
            ("models_t5_umt5-xxl-enc-quanto_int8.safetensors", "umt5_xxl_fp8_e4m3fn_scaled.safetensors"),
            0,
            "int8",
        ),
    ],
)
def test_text_encoder_of_the_wanted_form_is_preferred(
    tmp_path: Path, quant: Quant, present: tuple[str, ...], taken: int, form: Quant
) -> None:
    transformers = (
        *(f"{BASE}/diffusion_pytorch_model-0000{number}-of-00007.safetensors" for number in range(1, 8)),
        SINGLE,
        *(f"InfiniteTalk/quant_models/infinitetalk_single_{form}.safetensors" for form in ("fp8", "int8")),
    )
    others = ("config.json", "google/umt5-xxl/tokenizer.json", Path(IMAGE).name, "Wan2.1_VAE.pth")
    speech = ("config.json", "preprocessor_config.json", "model.safetensors")
    lay(tmp_path, *transformers, *(f"{BASE}/{name}" for name in others))
    lay(tmp_path, *(f"chinese-wav2vec2-base/{name}" for name in speech), *(f"repackaged/{name}" for name in present))
    files = locate(tmp_path, num_speakers=1, quant=quant)
    assert (files.text_encoder, files.text_encoder_quant) == (tmp_path / "repackaged" / present[taken], form)


def test_base_and_adapter_of_another_program_make_an_8_bit_run(published: Path, tmp_path: Path) -> None:
    lay(tmp_path, *(path.relative_to(published).as_posix() for path in published.rglob("*") if path.is_file()))
    for path in (tmp_path / BASE).glob("diffusion*"):
        path.unlink()
    base, adapter = KNOWN_NAMES["base_fp8"][0], KNOWN_NAMES["adapter_single"][0]
    lay(tmp_path, f"repackaged/{base}")
    (tmp_path / SINGLE).unlink()
    with pytest.raises(WeightsError, match="infinitetalk_single_fp8"):
        locate(tmp_path, num_speakers=1, quant="fp8")
    lay(tmp_path, f"repackaged/{adapter}")
    files = locate(tmp_path, num_speakers=1, quant="fp8")
    assert (files.dit_shards, files.adapter) == ((tmp_path / "repackaged" / base,), tmp_path / "repackaged" / adapter)


def test_missing_or_strange_tensors_of_another_programs_file_are_named(published: Path, tmp_path: Path) -> None:
    tensors = clip_h(tensors_of(published, IMAGE))
    lost = "vision_model.encoder.layers.0.self_attn.k_proj.weight"
    cut = write(tmp_path / "cut.safetensors", {name: x for name, x in tensors.items() if name != lost})
    with pytest.raises(WeightsError, match=r"layers\.0\.self_attn"):
        make_image_encoder(open_tensors(cut), dtype=torch.float32, device="cpu")
    odd = write(tmp_path / "odd.safetensors", tensors | {"vision_model.adapter": torch.ones(3)})
    with pytest.raises(WeightsError, match=r"unexpected: .*adapter"):
        make_image_encoder(open_tensors(odd), dtype=torch.float32, device="cpu")


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, b"\x02\0\0\0\0\0\0\0[]"])
def test_damaged_files_are_of_no_kind(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(content)
    assert kind_of(path) is None
