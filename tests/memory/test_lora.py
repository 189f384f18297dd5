"""LoRA files in every spelling, on plain and on 8-bit weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from infinitalk_cli.errors import WeightsError
from infinitalk_cli.memory.lora import Lora, LoraReport, merge_loras, plan_loras, read_lora
from infinitalk_cli.memory.quant import QuantizedLinear, quantize_rows
from tests.memory.refs import NOWHERE, refs_of

RANK, WIDTH = 2, 6
GENERATOR = torch.Generator().manual_seed(1)
DOWN, UP = torch.randn(RANK, WIDTH, generator=GENERATOR), torch.randn(WIDTH, RANK, generator=GENERATOR)
PRODUCT = UP @ DOWN


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k_img = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.norm_q = nn.RMSNorm(WIDTH)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.modulation = nn.Parameter(torch.zeros(1, 6, WIDTH))
        self.self_attn, self.cross_attn = Attention(), Attention()
        self.norm3 = nn.LayerNorm(WIDTH)


class Net(nn.Module):
    """Named like the transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embedding = nn.Conv3d(4, WIDTH, (1, 2, 2))
        self.blocks = nn.ModuleList([Block(), Block()])


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


def lora(tensors: dict[str, Tensor], scale: float = 1.0) -> Lora:
    return Lora(NOWHERE, scale, refs_of(tensors))


def merge(net: Net, *loras: Lora, only_reference_keys: bool = False) -> list[LoraReport]:
    plan = plan_loras(net, loras, only_reference_keys=only_reference_keys)
    merge_loras(net, plan)
    return list(plan.reports)


def changes(net: Net, *loras: Lora, only_reference_keys: bool = False) -> tuple[dict[str, Tensor], list[LoraReport]]:
    """What the LoRAs added to each parameter that they changed."""
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    reports = merge(net, *loras, only_reference_keys=only_reference_keys)
    added = {name: parameter.detach() - before[name] for name, parameter in net.named_parameters()}
    return {name: delta for name, delta in added.items() if delta.any()}, reports


def pair(layer: str, down: str = "lora_down.weight", up: str = "lora_up.weight") -> dict[str, Tensor]:
    return {f"{layer}.{down}": DOWN, f"{layer}.{up}": UP}


SPELLINGS = {
    "the layer alone": pair("blocks.1.self_attn.q"),
    "diffusion_model": pair("diffusion_model.blocks.1.self_attn.q"),
    "model.diffusion_model": pair("model.diffusion_model.blocks.1.self_attn.q"),
    "transformer": pair("transformer.blocks.1.self_attn.q"),
    "pipe.dit": pair("pipe.dit.blocks.1.self_attn.q"),
    "underscores": pair("lora_unet_blocks_1_self_attn_q"),
    "two underscores": pair("lora_unet__blocks_1_self_attn_q"),
    "A and B": pair("diffusion_model.blocks.1.self_attn.q", "lora_A.weight", "lora_B.weight"),
    "default": pair("blocks.1.self_attn.q", "lora_A.default.weight", "lora_B.default.weight"),
    "no weight": pair("blocks.1.self_attn.q", "lora_down", "lora_up"),
    "default alone": pair("blocks.1.self_attn.q", "lora_A.default", "lora_B.default"),
    "diffusers": pair("transformer.blocks.1.attn1.to_q", "lora_A.weight", "lora_B.weight"),
}


@pytest.mark.parametrize("tensors", SPELLINGS.values(), ids=SPELLINGS)
def test_every_spelling_of_a_pair_is_applied(net: Net, tensors: dict[str, Tensor]) -> None:
    added, reports = changes(net, lora(tensors, scale=0.5))
    assert list(added) == ["blocks.1.self_attn.q.weight"]
    torch.testing.assert_close(added["blocks.1.self_attn.q.weight"], 0.5 * PRODUCT, atol=1e-6, rtol=1e-5)
    assert reports == [LoraReport(NOWHERE, num_matched=2, num_parameters=1, skipped=())]


@pytest.mark.parametrize("shape", [(), (1,)])
def test_alpha_scales_by_alpha_over_rank(net: Net, shape: tuple[int, ...]) -> None:
    tensors = {**pair("blocks.0.cross_attn.k_img"), "blocks.0.cross_attn.k_img.alpha": torch.full(shape, 8.0)}
    added, reports = changes(net, lora(tensors))
    torch.testing.assert_close(added["blocks.0.cross_attn.k_img.weight"], 4 * PRODUCT, atol=1e-5, rtol=1e-5)
    assert reports[0].num_matched == 3


@pytest.mark.parametrize(
    ("key", "parameter"),
    [
        ("blocks.0.self_attn.norm_q.diff", "blocks.0.self_attn.norm_q.weight"),
        ("blocks.0.norm3.diff", "blocks.0.norm3.weight"),
        ("blocks.0.norm3.diff_b", "blocks.0.norm3.bias"),
        ("blocks.0.self_attn.q.diff_b", "blocks.0.self_attn.q.bias"),
        ("blocks.0.diff_m", "blocks.0.modulation"),
        ("blocks.0.modulation.diff", "blocks.0.modulation"),
        ("patch_embedding.diff", "patch_embedding.weight"),
    ],
)
def test_differences_are_added(net: Net, key: str, parameter: str) -> None:
    difference = torch.full(net.get_parameter(parameter).shape, 0.25)
    added, _ = changes(net, lora({f"diffusion_model.{key}": difference}, scale=2))
    assert list(added) == [parameter]
    torch.testing.assert_close(added[parameter], 2 * difference)


def test_norm3_of_a_diffusers_file_is_no_parameter_and_norm2_is_norm3(net: Net) -> None:
    tensors = {**pair("blocks.0.attn2.to_q"), "blocks.0.norm2.diff": torch.ones(WIDTH)}
    added, _ = changes(net, lora(tensors))
    assert list(added) == ["blocks.0.cross_attn.q.weight", "blocks.0.norm3.weight"]


def test_pair_on_a_convolution_has_its_shape(net: Net) -> None:
    down, up = torch.randn(RANK, 4, 1, 2, 2), torch.randn(WIDTH, RANK, 1, 1, 1)
    tensors = {"patch_embedding.lora_down.weight": down, "patch_embedding.lora_up.weight": up}
    added, _ = changes(net, lora(tensors))
    expected = torch.einsum("or,rcthw->octhw", up[..., 0, 0, 0], down)
    torch.testing.assert_close(added["patch_embedding.weight"], expected, atol=1e-5, rtol=1e-5)


def test_what_had_no_effect_is_reported_with_the_reason(net: Net) -> None:
    tensors = {
        **pair("blocks.0.self_attn.q"),
        **pair("blocks.9.self_attn.q"),
        "patch_embedding.diff": torch.ones(WIDTH, 2, 1, 2, 2),
        "blocks.1.self_attn.q.lora_down.weight": DOWN,
        "blocks.1.cross_attn.q.alpha": torch.ones(()),
        "blocks.0.self_attn.q.lora_A.weight": DOWN,
        "blocks.0.self_attn.q.dora_scale": torch.ones(WIDTH),
        "blocks.1.k.lora_down.weight": DOWN,
        "blocks.1.k.lora_up.weight": torch.ones(WIDTH, RANK + 1),
    }
    added, (report,) = changes(net, lora(tensors))
    assert list(added) == ["blocks.0.self_attn.q.weight"]
    assert (report.num_matched, report.num_parameters) == (2, 1)
    assert {tensor.name: tensor.reason for tensor in report.skipped} == {
        "blocks.9.self_attn.q.lora_down.weight": "the network has no blocks.9.self_attn.q.weight",
        "blocks.9.self_attn.q.lora_up.weight": "the network has no blocks.9.self_attn.q.weight",
        "patch_embedding.diff": "shape [6, 2, 1, 2, 2], patch_embedding.weight has [6, 4, 1, 2, 2]",
        "blocks.1.self_attn.q.lora_down.weight": "the rest of the pair is not in the file",
        "blocks.1.cross_attn.q.alpha": "the rest of the pair is not in the file",
        "blocks.0.self_attn.q.lora_A.weight": "a second lora_down of blocks.0.self_attn.q",
        "blocks.0.self_attn.q.dora_scale": "in no known form of LoRA",
        "blocks.1.k.lora_down.weight": "up [6, 3] and down [2, 6] do not multiply",
        "blocks.1.k.lora_up.weight": "up [6, 3] and down [2, 6] do not multiply",
    }


def test_file_without_effect_is_an_error_and_nothing_is_changed(net: Net) -> None:
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    useless = Lora(Path("other.safetensors"), 1.0, refs_of(pair("down_blocks.0.attn.to_q")))
    with pytest.raises(WeightsError, match=r"other\.safetensors: none of its 2 tensors fits .*no down_blocks\.0"):
        merge(net, lora(pair("blocks.0.self_attn.q")), useless)
    assert all(torch.equal(parameter, before[name]) for name, parameter in net.named_parameters())


def test_several_files_are_summed_in_float32_and_rounded_once(net: Net) -> None:
    net.to(torch.bfloat16)
    name = "blocks.0.self_attn.q.weight"
    weight = net.get_parameter(name).detach().clone()
    small = {"blocks.0.self_attn.q.diff": torch.full((WIDTH, WIDTH), 2.0**-10)}  # alone lost beside 0.5 in bfloat16
    net.get_parameter(name).data.fill_(0.5)
    merge(net, *[lora(small)] * 4)
    assert weight.dtype == torch.bfloat16
    assert torch.equal(net.get_parameter(name), torch.full_like(weight, 0.5 + 4 * 2.0**-10))


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_8_bit_weights_are_quantised_again_row_by_row(net: Net, dtype: torch.dtype, scale_dtype: torch.dtype) -> None:
    plain = net.get_parameter("blocks.0.self_attn.q.weight").detach()
    layer = QuantizedLinear(WIDTH, WIDTH, data_dtype=dtype, scale_dtype=scale_dtype)
    layer.requantize(plain)
    before = layer.dequantized()
    net.blocks[0].get_submodule("self_attn").q = layer
    tensors = {**pair("diffusion_model.blocks.0.self_attn.q"), "blocks.0.self_attn.q.diff_b": torch.ones(WIDTH)}
    bias = layer.bias
    assert bias is not None
    bias.data.zero_()
    (report,) = merge(net, lora(tensors, 0.7))
    assert report.num_matched == 3
    data, scale = quantize_rows(before + 0.7 * PRODUCT, dtype, scale_dtype=scale_dtype)
    assert torch.equal(layer.data.float(), data.float())
    assert torch.equal(layer.scale, scale)
    assert (layer.data.dtype, layer.scale.dtype) == (dtype, scale_dtype)
    step = scale.float() * (0.51 if dtype == torch.int8 else 0.0) + (before + PRODUCT).abs() * 2**-4 + 1e-3
    assert ((layer.dequantized() - before - 0.7 * PRODUCT).abs() <= step).all()
    torch.testing.assert_close(bias.detach(), torch.full((WIDTH,), 0.7))


def test_reference_keys_alone(net: Net) -> None:
    tensors = {
        **pair("diffusion_model.blocks.0.self_attn.q"),
        "diffusion_model.blocks.0.self_attn.q.alpha": torch.full((), 8.0),
        "diffusion_model.blocks.0.norm3.diff": torch.ones(WIDTH),
        "diffusion_model.blocks.0.norm3.diff_b": torch.ones(WIDTH),
        **pair("diffusion_model.blocks.0.self_attn.k_img", "lora_A.weight", "lora_B.weight"),
        **pair("blocks.0.cross_attn.q"),
        "diffusion_model.blocks.0.diff_m": torch.ones(1, 6, WIDTH),
        "diffusion_model.blocks.1.modulation.diff": torch.ones(1, 6, WIDTH),
    }
    added, (report,) = changes(net, lora(tensors), only_reference_keys=True)
    assert list(added) == ["blocks.0.self_attn.q.weight", "blocks.0.norm3.weight", "blocks.0.norm3.bias"]
    torch.testing.assert_close(added["blocks.0.self_attn.q.weight"], PRODUCT, atol=1e-6, rtol=1e-5)
    assert (report.num_matched, len(report.skipped)) == (4, 7)


def test_file_is_read_from_disk(net: Net, tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    save_file({name: tensor.to(torch.bfloat16) for name, tensor in pair("blocks.0.self_attn.q").items()}, path)
    added, (report,) = changes(net, read_lora(path, scale=2.0))
    expected = 2 * (UP.to(torch.bfloat16).float() @ DOWN.to(torch.bfloat16).float())
    torch.testing.assert_close(added["blocks.0.self_attn.q.weight"], expected, atol=1e-5, rtol=1e-5)
    assert report.path == path


@pytest.mark.parametrize("name", ["junk.safetensors", "junk.pth"])
def test_a_file_that_is_no_lora_is_not_to_be_downloaded_by_us(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"not a LoRA")
    with pytest.raises(WeightsError, match=f"LoRA.*{name}") as caught:
        read_lora(path)
    assert caught.value.hint
    assert "talk download" not in caught.value.hint


def test_empty_file_is_an_error(net: Net) -> None:
    with pytest.raises(WeightsError, match="it is empty"):
        merge(net, lora({}))
