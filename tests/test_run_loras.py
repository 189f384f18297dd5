"""Which LoRAs a run adds: the named ones, the preset's, and none that the weights hold already."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from infinitalk_cli import compact
from infinitalk_cli.errors import InputError, WeightsError
from infinitalk_cli.manifest import LORAS
from infinitalk_cli.profiles import find_profile
from infinitalk_cli.request import LoraFile, parse_lora
from infinitalk_cli.run_loras import loras_of_run, named_lora, parameters_beside
from tests.lone_transformer import lone_transformer

PRESETS = LORAS["lightx2v"].place
WITH_PRESET = replace(find_profile("rtx-4090"), lora="lightx2v", lora_scale=1.0)
PUBLISHED = "InfiniteTalk/quant_models/infinitetalk_multi_fp8_lora.safetensors"


def merged_with(root: Path, lora: Path) -> Path:
    """A compact transformer whose header says that this LoRA is in it."""
    path = root / "compact/infinitetalk_single_fp8_lora.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = compact.header_metadata([compact.describe_source(lora, root)], {str(lora): 0.8})
    header = json.dumps({"__metadata__": metadata, "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"x")
    return path


def test_lora_that_is_in_the_compact_file_is_refused_under_any_name(tmp_path: Path) -> None:
    lora, copy, other = (tmp_path / f"{name}.safetensors" for name in ("lora", "copy", "other"))
    lora.write_bytes(b"one LoRA")
    copy.write_bytes(b"one LoRA")
    other.write_bytes(b"a second")
    files = lone_transformer(merged_with(tmp_path, lora), quant="fp8")
    for twice in (lora, copy):
        with pytest.raises(InputError, match="would be applied twice") as caught:
            loras_of_run((LoraFile(twice),), WITH_PRESET, files, tmp_path)
        assert "talk weights rm compact/infinitetalk_single_fp8_lora.safetensors" in caught.value.hint
    assert loras_of_run((LoraFile(other),), WITH_PRESET, files, tmp_path) == (LoraFile(other),)


def test_preset_brings_its_lora_unless_the_compact_file_has_it(tmp_path: Path) -> None:
    preset, other = tmp_path / PRESETS, tmp_path / "other.safetensors"
    preset.write_bytes(b"the preset's")
    other.write_bytes(b"another")
    with_other = lone_transformer(merged_with(tmp_path, other), quant="fp8")
    assert loras_of_run((), WITH_PRESET, with_other, tmp_path) == (LoraFile(preset),)
    with_preset = lone_transformer(merged_with(tmp_path, preset), quant="fp8")
    assert loras_of_run((), WITH_PRESET, with_preset, tmp_path) == ()
    preset.unlink()
    assert loras_of_run((), WITH_PRESET, with_preset, tmp_path) == ()
    with pytest.raises(WeightsError, match="preset's LoRA is missing"):
        loras_of_run((), WITH_PRESET, lone_transformer(merged_with(tmp_path, other), quant="fp8"), tmp_path)


@pytest.mark.parametrize("name", [PUBLISHED, "MeiGen-MultiTalk/quant_models/quant_model_fp8_FusionX.safetensors"])
def test_published_file_with_a_speed_lora_takes_no_second_one(tmp_path: Path, name: str) -> None:
    files, mine = lone_transformer(tmp_path / name, quant="fp8"), LoraFile(tmp_path / "my_style.safetensors")
    assert loras_of_run((), WITH_PRESET, files, tmp_path) == ()
    assert loras_of_run((mine,), WITH_PRESET, files, tmp_path) == (mine,)
    with pytest.raises(InputError, match="has a speed LoRA in it already"):
        loras_of_run((LoraFile(tmp_path / PRESETS),), WITH_PRESET, files, tmp_path)


def test_matrices_to_be_kept_beside_are_counted_by_the_files_headers(tmp_path: Path) -> None:
    tensors = {
        "diffusion_model.blocks.0.self_attn.q.lora_down.weight": torch.zeros(4, 64),
        "diffusion_model.blocks.0.self_attn.q.lora_up.weight": torch.zeros(64, 4),
        "diffusion_model.blocks.0.self_attn.q.alpha": torch.zeros(()),
        "transformer.blocks.0.attn1.to_k.lora_A.default.weight": torch.zeros(2, 64),
        "diffusion_model.blocks.0.norm3.diff": torch.zeros(64),
    }
    save_file(tensors, tmp_path / "lora.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"not a LoRA")
    (tmp_path / "old.pt").write_bytes(bytes(200))
    files = [LoraFile(tmp_path / name) for name in ("lora.safetensors", "broken.safetensors", "old.pt", "gone.pt")]
    assert parameters_beside(files) == 2 * 4 * 64 + 2 * 64 + 100


def test_name_of_a_fetched_lora_means_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    find = named_lora(tmp_path / "weights")
    with pytest.raises(WeightsError, match="the LoRA lightx2v is not there") as caught:
        parse_lora("lightx2v:0.8", find)
    assert "talk download --only lora --lora lightx2v" in caught.value.hint
    fetched = tmp_path / "weights" / PRESETS
    fetched.parent.mkdir()
    fetched.touch()
    assert parse_lora("lightx2v:0.8", find) == LoraFile(fetched, 0.8)
    with pytest.raises(InputError, match="no such file: nothing"):
        parse_lora("nothing", find)
    (tmp_path / "lightx2v").touch()  # a file of that name is meant first
    assert parse_lora("lightx2v", find) == LoraFile(Path("lightx2v"))
