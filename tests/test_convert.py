"""`talk weights convert`: compact files say what their sources say, replace them, and are passed over when stale."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from infinitalk_cli import convert
from infinitalk_cli.compact import is_current, sample_digest
from infinitalk_cli.errors import DoesNotFitError, WeightsError
from infinitalk_cli.main import app
from infinitalk_cli.memory.lora import read_lora
from infinitalk_cli.memory.quant import LARGEST, QuantizedLinear, quantize_rows
from infinitalk_cli.models.dit import DiT
from infinitalk_cli.networks import build_dit, build_image_encoder, build_text_encoder
from infinitalk_cli.weights import Quant, WeightFiles, locate
from tests.published_tree import write_published

BASE = "Wan2.1-I2V-14B-480P"
SINGLE = "InfiniteTalk/single/infinitetalk.safetensors"
T5 = f"{BASE}/models_t5_umt5-xxl-enc-bf16.pth"
CLIP = f"{BASE}/models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
FORMS: dict[str, Quant] = {"bf16": "none", "fp8": "fp8", "int8": "int8"}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a plain run for one speaker, as published."""
    return write_published(tmp_path_factory.mktemp("published"), with_loras=True)


@pytest.fixture(scope="module")
def converted(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with compact files in every form."""
    folder = tmp_path_factory.mktemp("converted") / "weights"
    shutil.copytree(published, folder, copy_function=os.link)
    for form in FORMS:
        assert run(folder, "--quant", form).exit_code == 0
    return folder


@pytest.fixture
def tree(converted: Path, tmp_path: Path) -> Path:
    """A copy with compact files, to be changed: all but links into the others."""
    shutil.copytree(converted, tmp_path / "weights", copy_function=os.link)
    return tmp_path / "weights"


def run(folder: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["weights", "convert", "--weights-dir", str(folder), *options])


def found(folder: Path, quant: Quant = "none") -> WeightFiles:
    return locate(folder, num_speakers=1, quant=quant)


def replace_file(path: Path, content: bytes) -> None:
    """Another file in its place, so that files linked to the old one stay."""
    path.unlink()
    path.write_bytes(content)


def dit_of(files: WeightFiles, dtype: torch.dtype = torch.bfloat16) -> DiT:
    return build_dit(files, dtype=dtype)


def test_bf16_file_loads_to_the_very_weights_of_its_sources(published: Path, converted: Path) -> None:
    files = found(converted)
    assert [path.name for path in files.dit_shards] == ["infinitetalk_single_bf16.safetensors"]
    assert files.adapter is None
    plain, compact = dit_of(found(published)), dit_of(files)
    for (name, want), (_, got) in zip(plain.named_parameters(), compact.named_parameters(), strict=True):
        assert got.dtype == want.dtype
        assert torch.equal(got, want), name


@pytest.mark.parametrize("form", ["fp8", "int8"])
def test_8_bit_file_holds_the_published_layers_rounded_from_float32(
    published: Path, converted: Path, form: Quant
) -> None:
    files = found(converted, form)
    assert [path.name for path in files.dit_shards] == [f"infinitetalk_single_{form}.safetensors"]
    plain, compact = dit_of(found(published), torch.float32), dit_of(files)
    layers = {name: part for name, part in compact.named_modules() if isinstance(part, QuantizedLinear)}
    linears = {name for name, part in plain.named_modules() if isinstance(part, torch.nn.Linear)}
    left_plain = ("head.", "img_emb.", "time_embedding.", "time_projection.")
    assert layers.keys() == {name for name in linears if not name.startswith(left_plain)}
    for name, layer in layers.items():
        data, scale = quantize_rows(plain.get_parameter(f"{name}.weight"), layer.data.dtype)
        assert torch.equal(layer.data.float(), data.float()), name
        assert torch.equal(layer.scale, scale), name
    rest = {name: p for name, p in compact.named_parameters() if name.rpartition(".")[0] not in layers}
    for name, got in rest.items():
        assert torch.equal(got, plain.get_parameter(name).to(got.dtype)), name


def test_wide_tensors_in_slices_give_the_same_bytes(
    tree: Path, converted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert, "SLICE_ELEMENTS", 200_000)
    shutil.rmtree(tree / "compact")
    assert run(tree, "--quant", "int8").exit_code == 0
    for name in ("infinitetalk_single_int8", "t5_int8", "clip_vision_fp16"):
        again, before = (folder / "compact" / f"{name}.safetensors" for folder in (tree, converted))
        assert load_file(again).keys() == load_file(before).keys()
        for key, tensor in load_file(before).items():
            assert torch.equal(load_file(again)[key].float(), tensor.float()), key


@pytest.mark.parametrize("form", FORMS)
def test_text_encoder_is_rounded_by_its_form_alone(published: Path, converted: Path, form: str) -> None:
    files = found(converted, FORMS[form])
    assert files.text_encoder.name == f"t5_{form}.safetensors"
    assert files.text_encoder_quant == FORMS[form]
    plain = build_text_encoder(found(published), dtype=torch.float32)
    compact = build_text_encoder(files, dtype=torch.bfloat16)
    layers = {name: part for name, part in compact.named_modules() if isinstance(part, QuantizedLinear)}
    assert bool(layers) == (form != "bf16")
    wanted = dict(plain.named_parameters())
    for name, layer in layers.items():
        want = wanted.pop(f"{name}.weight")
        step = want.abs().amax(dim=1, keepdim=True) / LARGEST[layer.data.dtype] * (0.5 if form == "int8" else 16)
        assert ((layer.dequantized() - want).abs() <= step * 1.01).all(), name
    for name, want in wanted.items():
        assert torch.equal(compact.get_parameter(name), want.to(torch.bfloat16)), name


def test_clip_keeps_its_vision_tower_in_float16(published: Path, converted: Path) -> None:
    files = found(converted)
    assert files.image_encoder.name == "clip_vision_fp16.safetensors"
    stored = load_file(files.image_encoder)
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    assert all(name.startswith("visual.") for name in stored)
    plain = build_image_encoder(found(published), dtype=torch.float16)
    compact = build_image_encoder(files, dtype=torch.float16)
    for (name, want), (_, got) in zip(plain.named_parameters(), compact.named_parameters(), strict=True):
        assert torch.equal(got, want), name


def test_runs_need_no_source_any_more(tree: Path) -> None:
    before = found(tree)
    for path in (*(tree / BASE).glob("diffusion_pytorch_model*"), tree / SINGLE, tree / T5, tree / CLIP):
        path.unlink()
    assert found(tree) == before
    assert found(tree, "fp8").quant == "fp8"
    assert dit_of(found(tree, "int8"))


def test_second_conversion_writes_nothing(tree: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (tree / "compact").iterdir()}
    result = run(tree, "--quant", "fp8", "--json")
    assert [file["state"] for file in json.loads(result.stdout)["files"]] == ["have"] * 3
    assert before == {path: path.stat().st_mtime_ns for path in (tree / "compact").iterdir()}


def test_dry_run_tells_lengths_and_writes_nothing(published: Path, converted: Path) -> None:
    told = json.loads(run(published, "--quant", "fp8", "--dry-run", "--json").stdout)["files"]
    assert [file["state"] for file in told] == ["need"] * 3
    for file in told:
        assert abs(file["bytes"] - (converted / file["file"]).stat().st_size) < 1024  # digests in the header differ
    assert not (published / "compact").exists()


def test_source_that_was_only_touched_is_the_same(tree: Path) -> None:
    content = (tree / SINGLE).read_bytes()
    replace_file(tree / SINGLE, content)
    assert is_current(tree / "compact/infinitetalk_single_fp8.safetensors", tree)


def changed_value(path: Path) -> None:
    tensors = load_file(path)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, f"{path}.new")
    Path(f"{path}.new").replace(path)


def cut(path: Path) -> None:
    replace_file(path, path.read_bytes()[:-1])


@pytest.mark.parametrize("change", [changed_value, cut])
def test_changed_source_makes_its_compact_files_stale_and_no_others(tree: Path, change: Callable[[Path], None]) -> None:
    change(tree / SINGLE)
    files = found(tree)
    assert files.adapter == tree / SINGLE
    assert len(files.dit_shards) > 1
    assert files.image_encoder.parent.name == files.text_encoder.parent.name == "compact"
    stale = r"compact/infinitetalk_single_fp8\.safetensors is there, but what it was made of has changed"
    with pytest.raises(WeightsError, match=stale):
        found(tree, "fp8")


def test_stale_file_is_made_again(tree: Path) -> None:
    changed_value(tree / SINGLE)
    told = json.loads(run(tree, "--quant", "bf16", "--json").stdout)["files"]
    assert [file["state"] for file in told] == ["made", "have", "have"]
    assert found(tree).adapter is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-7],
        lambda content: content[:4],
        lambda content: content[:8] + b"[" + content[9:],
        lambda content: (2**60).to_bytes(8, "little") + content[8:],
        lambda content: content.replace(b'\\"size\\": ', b'\\"size\\":"', 1),
    ],
    ids=["cut", "stump", "no table", "hostile length", "no sources"],
)
def test_damaged_compact_file_is_named_with_what_to_do(tree: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tree / "compact/infinitetalk_single_fp8.safetensors"
    replace_file(path, damage(path.read_bytes()))
    with pytest.raises(WeightsError, match=r"infinitetalk_single_fp8\.safetensors is damaged") as raised:
        found(tree, "fp8")
    assert "talk weights rm compact/infinitetalk_single_fp8.safetensors" in raised.value.hint
    assert run(tree, "--quant", "fp8").exit_code == 4


def test_tampered_values_are_found_by_a_full_check(tree: Path) -> None:
    path = tree / "compact/t5_fp8.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    replace_file(path, bytes(content))
    result = CliRunner().invoke(app, ["weights", "verify", "--full", "compact", "--weights-dir", str(tree)])
    assert result.exit_code == 4
    assert "compact/t5_fp8.safetensors" in result.output


def test_loras_are_summed_and_rounded_once(published: Path, tree: Path) -> None:
    loras = sorted((published / "lora").glob("*pairs*")) + sorted((published / "lora").glob("*mixed*"))
    options = [part for path in loras for part in ("--lora", f"{path}:0.5")]
    result = run(tree, "--quant", "fp8", *options, "--json")
    told = json.loads(result.stdout)["files"][0]
    assert [lora["file"] for lora in told["loras"]] == [str(path) for path in loras]
    assert all(lora["matched"] > 0 for lora in told["loras"])
    merged = load_file(tree / told["file"])
    plain = build_dit(found(published), dtype=torch.float32, loras=[read_lora(path, 0.5) for path in loras])
    for name, parameter in plain.named_parameters():
        if f"{name}._data" in merged:
            data, scale = quantize_rows(parameter, torch.float8_e4m3fn)
            assert torch.equal(merged[f"{name}._scale"], scale), name
            assert torch.equal(merged[f"{name}._data"].float(), data.float()), name
        else:
            assert torch.equal(merged[name], parameter.to(merged[name].dtype)), name


def test_file_with_loras_serves_only_where_no_other_does(published: Path, tree: Path) -> None:
    lora = published / "lora/lora_pairs.safetensors"
    assert run(tree, "--quant", "fp8", "--lora", str(lora)).exit_code == 0
    assert found(tree, "fp8").dit_shards[0].name == "infinitetalk_single_fp8.safetensors"
    (tree / "compact/infinitetalk_single_fp8.safetensors").unlink()
    assert found(tree, "fp8").dit_shards[0].name == "infinitetalk_single_fp8_lora.safetensors"
    told = json.loads(run(tree, "--quant", "fp8", "--lora", f"{lora}:0.7", "--json").stdout)["files"][0]
    assert told["state"] == "made"  # another strength is another file


def test_lora_without_effect_is_refused(tree: Path, tmp_path: Path) -> None:
    save_file({"lora_te_x.lora_down.weight": torch.ones(2, 2)}, tmp_path / "other.safetensors")
    result = run(tree, "--lora", str(tmp_path / "other.safetensors"))
    assert result.exit_code == 4
    assert "none of its 1 tensors fits" in result.output


def test_8_bit_base_is_converted_too(published: Path, tree: Path) -> None:
    """Layers that are in the wanted form already are copied; others are rounded from what they mean."""
    base = {name: t for shard in found(published).dit_shards for name, t in load_file(shard).items()}
    layers = [name for name, tensor in base.items() if name.endswith(".weight") and tensor.dim() == 2]
    for name in layers:
        base[name], base[f"{name}_scale"] = quantize_rows(base[name], torch.float8_e4m3fn)
    for path in (tree / BASE).glob("diffusion_pytorch_model*"):
        path.unlink()
    save_file(base, tree / BASE / "diffusion_pytorch_model.safetensors")
    shutil.rmtree(tree / "compact")
    assert run(tree, "--quant", "fp8").exit_code == 0
    made = load_file(tree / "compact/infinitetalk_single_fp8.safetensors")
    name = "blocks.0.ffn.0.weight"
    assert torch.equal(made[f"{name}._data"].float(), base[name].float())
    assert torch.equal(made[f"{name}._scale"], base[f"{name}_scale"])
    head = base["head.head.weight"].float() * base["head.head.weight_scale"]
    assert torch.equal(made["head.head.weight"], head)


def test_full_disk_is_told_before_anything_is_written(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage: Any = shutil.disk_usage(published)._replace(free=10**6)
    monkeypatch.setattr("infinitalk_cli.convert.shutil.disk_usage", lambda path: usage)
    result = run(published, "--quant", "fp8")
    assert result.exit_code == DoesNotFitError.exit_code
    assert "are free" in result.output
    assert not (published / "compact").exists()


def test_nothing_to_convert_is_an_error(tmp_path: Path) -> None:
    result = run(tmp_path)
    assert result.exit_code == 4
    assert "nothing to convert" in result.output


def test_samples_see_the_length_the_beginning_and_the_end(tmp_path: Path) -> None:
    digests = set[str]()
    for content in (b"", b"\0" * 10**6, b"\0" * (10**6 + 1), b"\1" + b"\0" * (10**6 - 1), b"\0" * (10**6 - 1) + b"\1"):
        (tmp_path / "file").write_bytes(content)
        digests.add(sample_digest(tmp_path / "file"))
    assert len(digests) == 5


@pytest.mark.slow
def test_two_conversions_at_once_make_each_file_once(published: Path, tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    shutil.copytree(published, folder, copy_function=os.link)
    with ThreadPoolExecutor(2) as pool:
        forms = list(pool.map(lambda _: json_of(folder), range(2)))
    made = sorted(file["state"] for told in forms for file in told)
    assert made == ["have"] * 3 + ["made"] * 3


def json_of(folder: Path) -> list[dict[str, Any]]:
    """What a conversion of its own process tells."""
    command = [sys.executable, "-m", "infinitalk_cli", "weights", "convert", "--quant", "fp8", "--json"]
    told = subprocess.run([*command, "--weights-dir", str(folder)], capture_output=True, check=True, text=True)
    return json.loads(told.stdout)["files"]
