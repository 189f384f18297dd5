"""8-bit arithmetic stays near the layer that multiplies in full precision; layers are rounded while they are read."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infinitalk_cli.memory.loading import load_into
from infinitalk_cli.memory.quant import QuantizedLinear, quantize_on_load, quantize_rows
from infinitalk_cli.memory.quant_matmul import matmul, quantize_activations
from tests.memory.refs import refs_of

ERROR = {torch.float8_e4m3fn: 0.03, torch.int8: 0.012}
"""Of a layer's output on normal numbers, by the rounding of its input alone."""


def layer(dtype: torch.dtype, in_features: int = 512, out_features: int = 320) -> QuantizedLinear:
    torch.manual_seed(1)
    made = QuantizedLinear(in_features, out_features, data_dtype=dtype)
    made.requantize(torch.randn(out_features, in_features) / in_features**0.5)
    made.bias = nn.Parameter(torch.randn(out_features), requires_grad=False)
    return made


def error(found: Tensor, expected: Tensor) -> float:
    return ((found.float() - expected.float()).norm() / expected.float().norm()).item()


def test_a_cpu_multiplies_exactly() -> None:
    made, x = layer(torch.int8), torch.randn(3, 512)
    assert matmul(x, made.data, made.scale, made.bias) is None
    torch.testing.assert_close(made(x), F.linear(x, made.dequantized(), made.bias))
    torch.testing.assert_close(made.after_gelu(x), made(F.gelu(x, approximate="tanh")))


@pytest.mark.parametrize("dtype", ERROR, ids=str)
def test_quantised_on_load_equals_quantised_before(dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    tensors = {"a.weight": torch.randn(8, 16), "a.bias": torch.randn(8), "b.weight": torch.randn(4, 8)}
    with torch.device("meta"):
        net = nn.ModuleDict({"a": nn.Linear(16, 8), "b": nn.Linear(8, 4, bias=False)})
    refs = quantize_on_load(net, refs_of(tensors), dtype, where=lambda name: name == "a")
    load_into(net, refs, what="the net", dtype_of=lambda name, stored: torch.float32)
    made, other = net.get_submodule("a"), net.get_submodule("b")
    assert isinstance(made, QuantizedLinear)
    assert isinstance(other, nn.Linear)
    data, scale = quantize_rows(tensors["a.weight"], dtype)
    assert torch.equal(made.data.float(), data.float())
    assert torch.equal(made.scale, scale)
    assert torch.equal(other.weight, tensors["b.weight"])


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 16])
@pytest.mark.parametrize("dtype", ERROR, ids=str)
def test_a_few_rows_are_multiplied_exactly(dtype: torch.dtype, rows: int) -> None:
    made = layer(dtype).cuda()
    x = torch.randn(1, rows, 512, device="cuda", dtype=torch.bfloat16)
    assert matmul(x, made.data, made.scale, made.bias) is None
    torch.testing.assert_close(made(x), made.plain(x))


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [20, 1000])
@pytest.mark.parametrize("dtype", ERROR, ids=str)
def test_product_is_as_near_as_rounded_inputs_allow(dtype: torch.dtype, rows: int) -> None:
    made = layer(dtype).cuda()
    x = torch.randn(1, rows, 512, device="cuda", dtype=torch.bfloat16)
    found = made(x)
    assert matmul(x, made.data, made.scale, made.bias) is not None
    made.is_exact = True
    assert found.shape == (1, rows, 320)
    assert 0 < error(found, made(x)) < ERROR[dtype]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ERROR, ids=str)
def test_gelu_may_be_left_to_the_layer(dtype: torch.dtype) -> None:
    made = layer(dtype).cuda()
    x = 3 * torch.randn(1, 100, 512, device="cuda", dtype=torch.bfloat16)
    assert error(made.after_gelu(x), made(F.gelu(x, approximate="tanh"))) < ERROR[dtype] / 2  # rounded once, not twice
    exact = F.linear(F.gelu(x.float(), approximate="tanh"), made.dequantized(), made.bias)
    assert error(made.after_gelu(x), exact) < ERROR[dtype] * 1.5


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ERROR, ids=str)
def test_rows_are_rounded_like_weights(dtype: torch.dtype) -> None:
    x = torch.randn(70, 640, device="cuda", dtype=torch.bfloat16)
    x[3] = 0
    data, scale = quantize_activations(x, dtype)
    expected, expected_scale = quantize_rows(x, dtype)
    torch.testing.assert_close(scale, expected_scale)
    assert (data.float() == expected.float()).float().mean() > 0.99
    assert (data[3].float() == 0).all()


@pytest.mark.gpu
def test_a_changed_input_is_not_taken_for_the_one_before() -> None:
    made = layer(torch.float8_e4m3fn).cuda()
    x = torch.randn(64, 512, device="cuda", dtype=torch.bfloat16)
    first = made(x)
    x *= 2
    assert not torch.equal(made(x), first)
