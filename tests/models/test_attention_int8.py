"""Attention with 8-bit products: how far off its definition is, and that the kernel is its definition."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torch import Tensor

from infinitalk_cli.measure import PassSetting, Stopwatch, Workload, pass_inputs, random_dit
from infinitalk_cli.measure_attention import Heads, heads_with_outliers, measure_attention, normal_heads, relative_error
from infinitalk_cli.models.attention import EIGHT_BIT, EXACT, Wish, attention, use_kernel
from infinitalk_cli.models.attention_int8 import (
    SHAPES,
    attention_int8,
    hadamard,
    plain_attention_int8,
    refuse_unfit,
    shape_for,
)
from infinitalk_cli.models.config import DiTConfig

CPU, GPU = torch.device("cpu"), torch.device("cuda")
Make = Callable[[int, int, int, torch.device], Heads]


def apart(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())


@pytest.mark.parametrize(
    ("make", "fp8_values", "least", "most"),
    [
        (normal_heads, False, 0.005, 0.015),
        (normal_heads, True, 0.02, 0.045),
        (heads_with_outliers, False, 0.0005, 0.012),
        (heads_with_outliers, True, 0.001, 0.04),
    ],
)
def test_its_error_is_as_stated(make: Make, fp8_values: bool, least: float, most: float) -> None:
    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return plain_attention_int8(q, k, v, fp8_values=fp8_values)

    assert least < relative_error(call, make(700, 1, 128, CPU)) < most


def test_what_all_keys_share_and_one_large_channel_do_no_harm() -> None:
    q, k, v = normal_heads(300, 1, 64, CPU)
    plain = relative_error(plain_attention_int8, (q, k, v))
    k = k + 50 * torch.randn(64, generator=torch.Generator().manual_seed(1)).bfloat16()
    shifted = relative_error(plain_attention_int8, (q, k, v))
    assert shifted < 2 * plain  # what is left is the rounding of the keys to bfloat16
    q, k = q.clone(), k.clone()
    q[..., 5] *= 20
    assert relative_error(plain_attention_int8, (q, k, v)) < 2 * plain


def test_tokens_that_are_all_zero_have_the_mean_of_the_values() -> None:
    v = torch.randn(1, 70, 2, 64, generator=torch.Generator().manual_seed(2))
    zeros = torch.zeros_like(v)
    for fp8_values in (False, True):
        found = plain_attention_int8(zeros, zeros, v, fp8_values=fp8_values, block=32)
        torch.testing.assert_close(found, v.mean(1, keepdim=True).expand_as(v), atol=0.01, rtol=0)


def test_the_turn_keeps_products() -> None:
    turn = hadamard(64, CPU, torch.float32)
    assert torch.equal(turn @ turn.T, 64 * torch.eye(64))


@pytest.mark.parametrize(
    "capability", [(7, 5), (8, 0), (8, 6), (8, 7), (8, 9), (9, 0), (10, 0), (12, 0), (12, 1), (13, 0)]
)
@pytest.mark.parametrize("fp8_values", [False, True])
def test_every_gpu_has_a_shape_that_fits_its_shared_memory(capability: tuple[int, int], fp8_values: bool) -> None:
    shape = shape_for(capability, fp8_values=fp8_values)
    assert shape in SHAPES.values()
    block_bytes = shape.block * 128 * (2 if fp8_values else 3)
    limit = {(8, 0): 163, (8, 7): 163, (9, 0): 227, (10, 0): 227}.get(capability, 99) * 1024
    assert shape.rows * 128 + shape.stages * block_bytes < limit


def test_what_it_cannot_serve_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def older(device: torch.device) -> tuple[int, int]:
        return 8, 6

    monkeypatch.setattr(torch.cuda, "get_device_capability", older)
    refuse_unfit(torch.zeros(1, 2, 3, 128), fp8_values=False)
    with pytest.raises(RuntimeError, match=r"needs compute capability 8\.9, this is 8\.6"):
        refuse_unfit(torch.zeros(1, 2, 3, 128), fp8_values=True)
    with pytest.raises(RuntimeError, match="heads of 64 or 128 values, not 24"):
        refuse_unfit(torch.zeros(1, 2, 3, 24), fp8_values=False)


INTERPRETED = """
import torch
from infinitalk_cli.models.attention_int8 import Shape, attention_int8, plain_attention_int8
torch.cuda.get_device_capability = lambda device=None: (9, 0)
for fp8_values, tokens in ((False, (40, 40)), (True, (40, 40)), (False, (70, 90)), (True, (70, 64))):
    q, k, v = (torch.randn(1, count, 2, 64).half() for count in (tokens[0], tokens[1], tokens[1]))
    shape = Shape(64, 64, 4, 2)
    found = attention_int8(q, k, v + 1, fp8_values=fp8_values, shape=shape).float()
    expected = plain_attention_int8(q, k, v + 1, fp8_values=fp8_values, block=64).float()
    print(float((found - expected).norm() / expected.norm()))
"""


@pytest.mark.slow
@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.skipif(np.lib.NumpyVersion(np.__version__) >= "2.4.0", reason="Triton's interpreter needs numpy < 2.4")
def test_the_kernel_is_its_definition_where_triton_is_interpreted() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    run = subprocess.run(
        [sys.executable, "-c", INTERPRETED], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    exact, fp8, ragged, ragged_fp8 = map(float, run.stdout.split())
    assert max(exact, ragged) < 1e-3
    assert max(fp8, ragged_fp8) < 0.03  # the interpreter rounds to fp8 wrongly where that carries


@pytest.mark.gpu
@pytest.mark.parametrize("fp8_values", [False, True])
@pytest.mark.parametrize("tokens", [(1, 1), (100, 100), (1024, 1024), (300, 1333)])
@pytest.mark.parametrize("make", [normal_heads, heads_with_outliers])
def test_the_kernel_is_its_definition(make: Make, tokens: tuple[int, int], fp8_values: bool) -> None:
    q, k, v = make(max(tokens), 3, 128, GPU)
    q, k, v = q[:, : tokens[0]], k[:, : tokens[1]], v[:, : tokens[1]]
    try:
        refuse_unfit(q, fp8_values=fp8_values)
    except RuntimeError as error:
        pytest.skip(str(error))
    shape = shape_for(torch.cuda.get_device_capability(GPU), fp8_values=fp8_values)
    found = attention_int8(q, k, v, fp8_values=fp8_values)
    expected = plain_attention_int8(q, k, v, fp8_values=fp8_values, block=shape.block)
    assert apart(found, expected) < (0.01 if fp8_values else 0.004)  # a weight rounded the other way is 6 % of itself


@pytest.mark.gpu
def test_some_queries_and_any_batch_give_what_all_give() -> None:
    q, k, v = (x.reshape(2, 1200, 2, 64) for x in normal_heads(1200, 4, 64, GPU))
    whole = attention_int8(q, k, v)
    assert torch.equal(attention_int8(q[:, 128:500], k, v), whole[:, 128:500])
    assert torch.equal(attention_int8(q[1:], k[1:], v[1:]), whole[1:])
    halves = torch.cat([q, q], -1)[..., :64]  # lies apart in memory
    assert torch.equal(attention_int8(halves, k, v), whole)


@pytest.mark.gpu
def test_a_transformer_makes_nearly_the_same_with_it() -> None:
    config = DiTConfig(dim=256, ffn_dim=512, freq_dim=32, num_heads=2, num_layers=3, text_dim=32, text_len=16)
    dit = random_dit(config, PassSetting("bf16"), GPU)
    given = pass_inputs(dit, Workload(128, 160, num_frames=9), 1)

    def velocity(wish: Wish) -> Tensor:
        with torch.no_grad(), use_kernel(wish):
            return dit(**given)

    assert 0 < apart(velocity("int8"), velocity("torch")) < 0.05
    assert apart(velocity(EXACT + EIGHT_BIT), velocity("torch")) < 0.05


@pytest.mark.gpu
def test_bench_measures_it_beside_the_others() -> None:
    found = {one.name: one for one in measure_attention(Workload(128, 160, num_frames=9), Stopwatch(GPU, repeats=1))}
    assert {"attention torch", "attention int8"} <= set(found)
    assert found["attention int8"].note.startswith("off ")


@pytest.mark.gpu
def test_short_rows_of_keys_go_to_an_exact_kernel() -> None:
    q, k, v = normal_heads(600, 2, 128, GPU)
    with use_kernel("int8"):
        found = attention(q, k[:, :77], v[:, :77])
    torch.testing.assert_close(found, attention(q, k[:, :77], v[:, :77]), atol=0.02, rtol=0.02)
