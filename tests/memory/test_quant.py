"""Linear layers in 8 bits: every published form, and what they compute."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from infinitalk_cli.errors import WeightsError
from infinitalk_cli.memory.loading import load_into
from infinitalk_cli.memory.quant import QuantizedLinear, quantize_rows, swap_quantized_linears
from tests.memory.refs import refs_of

EIGHT_BIT = [torch.int8, torch.float8_e4m3fn, torch.float8_e5m2]


@pytest.fixture
def weight() -> Tensor:
    return torch.randn(6, 16, generator=torch.Generator().manual_seed(3))


def filled(tensors: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> nn.Module:
    """A net of one plain norm and one linear layer `up`, loaded from `tensors` (and a plain norm)."""
    with torch.device("meta"):
        net = nn.ModuleDict({"up": nn.Linear(16, 6), "norm": nn.LayerNorm(6)})
    plain = {"norm.weight": torch.ones(6), "norm.bias": torch.zeros(6)}
    refs = swap_quantized_linears(net, refs_of({**tensors, **plain}))
    load_into(net, refs, what="the net", dtype_of=lambda name, stored: dtype)
    return net


@pytest.mark.parametrize("dtype", EIGHT_BIT, ids=str)
def test_rows_use_the_whole_range_and_are_off_by_half_a_step(weight: Tensor, dtype: torch.dtype) -> None:
    data, scale = quantize_rows(weight, dtype)
    assert (data.dtype, scale.shape, scale.dtype) == (dtype, (6, 1), torch.float32)
    largest = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0}[dtype]
    assert torch.equal(data.float().abs().amax(dim=1), torch.full((6,), largest))
    relative_step = {torch.int8: 0.0, torch.float8_e4m3fn: 2**-4, torch.float8_e5m2: 2**-3}[dtype]
    absolute_step = 0.5 if dtype == torch.int8 else 2.0**-10
    error = (data.float() * scale - weight).abs()
    assert (error <= weight.abs() * relative_step * 1.001 + scale * absolute_step * 1.001).all()


def test_int8_rounds_half_to_even() -> None:
    data, scale = quantize_rows(torch.tensor([[127.0, 0.5, 1.5, -2.5]]), torch.int8)
    assert scale.item() == 1
    assert data.tolist() == [[127, 0, 2, -2]]


@pytest.mark.parametrize("dtype", EIGHT_BIT, ids=str)
def test_row_of_zeros_stays_zero(dtype: torch.dtype) -> None:
    data, scale = quantize_rows(torch.zeros(2, 4), dtype)
    assert torch.equal(data.float() * scale, torch.zeros(2, 4))


def test_data_fits_a_scale_that_was_rounded(weight: Tensor) -> None:
    data, scale = quantize_rows(weight, torch.int8, scale_dtype=torch.bfloat16)
    assert scale.dtype == torch.bfloat16
    steps = (weight / scale.float()).abs()
    inside = steps <= 127
    assert (data.float() * scale.float() - weight).abs()[inside].max() <= scale.float().max() * 0.5001
    assert (data.abs().float()[~inside] == 127).all()


@pytest.mark.parametrize("scale_shape", [(), (1,), (6,), (6, 1)], ids=str)
@pytest.mark.parametrize("form", ["quanto", "lightx2v", "comfyui", "comfyui_new"])
def test_published_forms_are_recognised_by_their_names(weight: Tensor, form: str, scale_shape: tuple[int, ...]) -> None:
    data, scale = quantize_rows(weight, torch.float8_e4m3fn)
    scale = scale.reshape(scale_shape) if len(scale_shape) and scale_shape[0] == 6 else torch.full(scale_shape, 0.01)
    names = {
        "quanto": ("up.weight._data", "up.weight._scale", {"up.input_scale": torch.ones(()), "up.output_scale": scale}),
        "lightx2v": ("up.weight", "up.weight_scale", {}),
        "comfyui": ("up.weight", "up.scale_weight", {"scaled_fp8": torch.zeros(2), "up.scale_input": torch.ones(())}),
        "comfyui_new": ("up.weight", "up.weight_scale", {"up.comfy_quant": torch.zeros(9, dtype=torch.uint8)}),
    }
    data_name, scale_name, more = names[form]
    net = filled({data_name: data, scale_name: scale, "up.bias": torch.arange(6.0), **more})
    up = net.get_submodule("up")
    assert isinstance(up, QuantizedLinear)
    expected = data.float() * (scale.reshape(6, 1) if scale.numel() == 6 else scale.reshape(()))
    assert torch.equal(up.dequantized(), expected)
    x = torch.randn(3, 16)
    torch.testing.assert_close(up(x), x @ expected.T + torch.arange(6.0))


def test_float8_without_scale_is_a_plain_cast(weight: Tensor) -> None:
    cast = weight.to(torch.float8_e5m2)
    up = filled({"up.weight": cast, "up.bias": torch.zeros(6)}).get_submodule("up")
    assert isinstance(up, QuantizedLinear)
    assert up.data.dtype == torch.float8_e5m2
    assert torch.equal(up.dequantized(), cast.float())


def test_float8_of_other_layers_is_cast_to_the_compute_dtype(weight: Tensor) -> None:
    net: nn.Module = nn.ModuleDict({"conv": nn.Conv1d(16, 6, 1, bias=False)})
    cast = weight[..., None].to(torch.float8_e4m3fn)
    refs = swap_quantized_linears(net, refs_of({"conv.weight": cast}))
    load_into(net, refs, what="the net", dtype_of=lambda name, stored: torch.bfloat16)
    assert torch.equal(net.get_parameter("conv.weight"), cast.to(torch.bfloat16))


def test_plain_weights_leave_the_layer_alone(weight: Tensor) -> None:
    up = filled({"up.weight": weight, "up.bias": torch.zeros(6)}).get_submodule("up")
    assert type(up) is nn.Linear


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16], ids=str)
def test_data_and_scale_keep_their_dtypes_and_the_bias_is_cast(weight: Tensor, stored: torch.dtype) -> None:
    data, scale = quantize_rows(weight, torch.int8, scale_dtype=stored)
    tensors = {"up.weight._data": data, "up.weight._scale": scale, "up.bias": torch.ones(6, dtype=stored)}
    up = filled(tensors, dtype=torch.float16).get_submodule("up")
    assert [parameter.dtype for parameter in up.parameters()] == [torch.int8, stored, torch.float16]


def test_result_has_the_dtype_of_the_input_and_the_weight_is_rounded_once(weight: Tensor) -> None:
    data, scale = quantize_rows(weight, torch.int8)
    up = filled({"up.weight._data": data, "up.weight._scale": scale, "up.bias": torch.ones(6)}).get_submodule("up")
    x = torch.randn(2, 16).to(torch.bfloat16)
    expected = nn.functional.linear(x, (data * scale).to(torch.bfloat16), torch.ones(6).to(torch.bfloat16))
    assert torch.equal(up(x), expected)


def test_layer_without_bias_has_none(weight: Tensor) -> None:
    data, scale = quantize_rows(weight, torch.int8)
    with torch.device("meta"):
        net = nn.Sequential(nn.Sequential(nn.Linear(16, 6, bias=False)))
    refs = swap_quantized_linears(net, refs_of({"0.0.weight._data": data, "0.0.weight._scale": scale}))
    load_into(net, refs, what="the net", dtype_of=lambda name, stored: torch.float32)
    torch.testing.assert_close(net(torch.eye(16)), (data * scale).T)


@pytest.mark.parametrize("absent", ["up.weight._data", "up.weight._scale", "up.bias"])
def test_missing_part_of_a_layer_is_an_error(weight: Tensor, absent: str) -> None:
    data, scale = quantize_rows(weight, torch.int8)
    tensors = {"up.weight._data": data, "up.weight._scale": scale, "up.bias": torch.ones(6)}
    del tensors[absent]
    with pytest.raises(WeightsError, match="up"):
        filled(tensors)


def test_int8_without_scale_is_an_error(weight: Tensor) -> None:
    with pytest.raises(WeightsError, match=r"up\.weight is int8 and has no scale"):
        filled({"up.weight": quantize_rows(weight, torch.int8)[0], "up.bias": torch.ones(6)})


def test_scale_of_another_length_is_an_error(weight: Tensor) -> None:
    tensors = {"up.weight": quantize_rows(weight, torch.int8)[0], "up.weight_scale": torch.ones(5)}
    with pytest.raises(WeightsError, match=r"scale of up has shape \[5\], one number or 6"):
        filled(tensors)
