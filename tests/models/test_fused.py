"""Each fused operation does what its plain form does, within the last bit, and leaves alone what is not its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from infinitalk_cli.models import fused
from infinitalk_cli.models.attention import EXACT, attention, chosen_kernels, fastest, use_kernel
from infinitalk_cli.models.config import DiTConfig
from infinitalk_cli.models.dit_layers import slices
from infinitalk_cli.models.encoder_config import VAEConfig
from infinitalk_cli.models.fused import can_norm_silu, channel_norm_silu
from infinitalk_cli.models.rotary import grid_rotation
from infinitalk_cli.models.vae import VideoVAE
from infinitalk_cli.models.vae_layers import ChannelNorm

EPS = 1e-6
TINY_VAE = VAEConfig(dim=8, z_dim=16, stage_dims=(8, 8, 16, 16), halves_time=(False, True, True), num_res_blocks=1)
HEADS, HEAD_DIM = 5, 24  # a width of 120: not a power of two
GRID = (3, 5, 7)
TOKENS, WIDTH = 105, HEADS * HEAD_DIM


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:  # pyright: ignore[reportUnusedFunction]
    with torch.no_grad():
        yield


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


def tokens(seed: int, device: torch.device) -> Tensor:
    drawn = torch.randn(1, TOKENS, WIDTH, generator=torch.Generator().manual_seed(seed)) * 3 + 1
    return drawn.to(device, torch.bfloat16)


def row(seed: int, device: torch.device) -> Tensor:
    return torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(seed)).to(device)


def norm(device: torch.device) -> nn.LayerNorm:
    made = nn.LayerNorm(WIDTH, eps=EPS)
    made.weight.copy_(row(21, torch.device("cpu"))[0])
    made.bias.copy_(row(22, torch.device("cpu"))[0])
    return made.to(device, torch.bfloat16)


def expect_same_to_the_last_bit(found: Tensor, expected: Tensor) -> None:
    """Nearly all values are equal, and the others so near that the whole is off by less than rounding is."""
    assert ((found.float() - expected.float()).norm() / expected.float().norm()) < 2e-3
    assert (found == expected).float().mean() > 0.95


def test_norm_modulate(device: torch.device) -> None:
    x, shift, scale = tokens(1, device), row(2, device), row(3, device)
    before = x.clone()
    expected = fused.plain_norm_modulate(x, shift, scale, EPS)
    expect_same_to_the_last_bit(fused.norm_modulate(x, shift, scale, EPS), expected)
    assert torch.equal(x, before)


def test_add_norm_modulate(device: torch.device) -> None:
    x, change, shift, scale = tokens(1, device), tokens(2, device), row(3, device), row(4, device)
    before, total = x.clone(), x + change
    expected = fused.plain_norm_modulate(total, shift, scale, EPS)
    found_total, found = fused.add_norm_modulate(x, change, shift, scale, EPS)
    assert torch.equal(found_total, total)
    expect_same_to_the_last_bit(found, expected)
    assert torch.equal(x, before)


@pytest.mark.parametrize("gated", [True, False])
def test_add_norm(device: torch.device, gated: bool) -> None:
    x, change, gate, layer = tokens(1, device), tokens(2, device), row(3, device) if gated else None, norm(device)
    before, total = x.clone(), x + change if gate is None else fused.plain_gated_sum(x, gate, change)
    found_total, found = fused.add_norm(x, change, gate, layer)
    expect_same_to_the_last_bit(found_total, total)
    expect_same_to_the_last_bit(found, layer(found_total))
    assert torch.equal(x, before)


@pytest.mark.parametrize("into", ["x", "change", "new"])
def test_gated_sum(device: torch.device, into: str) -> None:
    x, change, gate = tokens(1, device), tokens(2, device), row(3, device)
    expected = fused.plain_gated_sum(x, gate, change)
    out = {"x": x, "change": change, "new": torch.full_like(x, torch.nan)}[into]
    fused.gated_sum(x, gate, change, out=out)
    expect_same_to_the_last_bit(out, expected)


def test_rms_norm(device: torch.device) -> None:
    x, weight = tokens(1, device), row(2, device)[0].bfloat16()
    expected = fused.plain_rms_norm(x.clone(), weight, EPS)
    expect_same_to_the_last_bit(fused.rms_norm(x, weight, EPS), expected)


def test_rms_rotate_and_rotate_heads(device: torch.device) -> None:
    x, weight, rotation = tokens(1, device), row(2, device)[0].bfloat16(), grid_rotation(GRID, HEAD_DIM, device)
    with fused.plain_forms():
        expected = fused.rms_rotate(x.clone(), weight, EPS, rotation, HEADS)
        turned = fused.rotate_heads(x.clone().unflatten(-1, (HEADS, -1)), rotation)
    expect_same_to_the_last_bit(fused.rms_rotate(x.clone(), weight, EPS, rotation, HEADS), expected)
    expect_same_to_the_last_bit(fused.rotate_heads(x.unflatten(-1, (HEADS, -1)), rotation), turned)


@pytest.mark.gpu
def test_triton_works_here_and_is_used_in_half_precision_only() -> None:
    x = tokens(1, torch.device("cuda"))
    assert fused.is_fused(x)
    assert not fused.is_fused(x.float())
    with fused.plain_forms():
        assert not fused.is_fused(x)


def test_a_cpu_takes_the_plain_forms() -> None:
    assert not fused.is_fused(tokens(1, torch.device("cpu")))


@pytest.mark.parametrize(("num_tokens", "expected"), [(1, [1]), (16_384, [16_384]), (16_385, [8193, 8192])])
def test_slices_are_few_and_about_equal(num_tokens: int, expected: list[int]) -> None:
    assert [part.shape[1] for part in slices(torch.empty(1, num_tokens, 0))] == expected


@pytest.mark.gpu
@pytest.mark.parametrize("num_keys", [300, 2000])
def test_every_exact_kernel_that_runs_gives_the_same_attention(num_keys: int) -> None:
    torch.manual_seed(num_keys)
    q = torch.randn(1, 2000, 4, 128, device="cuda", dtype=torch.bfloat16)
    k, v = torch.randn(2, 1, num_keys, 4, 128, device="cuda", dtype=torch.bfloat16).unbind(0)
    scores = torch.einsum("blhd,bmhd->bhlm", q.float(), k.float()) / 128**0.5
    expected = torch.einsum("bhlm,bmhd->blhd", scores.softmax(dim=-1), v.float())
    ran = 0
    for kernel in EXACT:
        try:
            with use_kernel(kernel):
                found = attention(q, k, v)
        except (ImportError, RuntimeError):
            continue
        ran += 1
        assert ((found.float() - expected).norm() / expected.norm()) < 5e-3
    assert ran >= 2
    assert fastest(q, k, v) in EXACT


@pytest.mark.gpu
def test_the_choice_is_made_once_and_can_be_named() -> None:
    q = torch.randn(1, 64, 4, 128, device="cuda", dtype=torch.bfloat16)
    attention(q, q, q)
    assert "cuda:0 bfloat16 short" in chosen_kernels()


def test_config_heads_fit_the_fused_attention() -> None:
    assert DiTConfig(dim=5120, ffn_dim=1, freq_dim=1, num_heads=40, num_layers=1).head_dim <= 256


@pytest.mark.gpu
def test_channel_norm_with_silu() -> None:
    torch.manual_seed(4)
    norm = ChannelNorm(96, 3).to("cuda", torch.bfloat16)
    norm.gamma.copy_(torch.randn_like(norm.gamma))
    x = torch.randn(1, 96, 3, 10, 13, device="cuda", dtype=torch.bfloat16)
    x[:, :, 1, 2] = 0
    last = x.contiguous(memory_format=torch.channels_last_3d)
    assert can_norm_silu(last)
    assert not can_norm_silu(x)
    found = torch.empty_like(last)
    channel_norm_silu(last, norm.gamma, 1e-12, out=found)
    exact = nn.functional.silu(norm.float()(x.float()))
    assert ((found.float() - exact).norm() / exact.norm()) < 3e-3


@pytest.mark.gpu
def test_fast_vae_sees_the_same_past_as_the_plain_one() -> None:
    torch.manual_seed(6)
    vae = VideoVAE(TINY_VAE).to("cuda")
    frames, latents = torch.rand(1, 3, 13, 32, 48, device="cuda") * 2 - 1, torch.randn(1, 16, 4, 4, 6, device="cuda")
    expected = vae.encode(frames), vae.decode(latents)
    vae.to(torch.bfloat16)
    vae.use_channels_last()
    for found, exact in zip((vae.encode(frames), vae.decode(latents)), expected, strict=True):
        off, size = ((x.square().sum(dim=(0, 1, 3, 4))) for x in (found - exact, exact))
        assert (off / size).sqrt().amax() < 0.05  # of every frame by itself


@pytest.mark.gpu
def test_fp8_attention_is_as_far_off_as_it_says() -> None:
    pytest.importorskip("cudnn")
    torch.manual_seed(8)
    q, k, v = (scale * torch.randn(1, 1024, 4, 128, device="cuda", dtype=torch.bfloat16) for scale in (1, 1, 20))
    with use_kernel("cudnn-fp8"):
        found = attention(q, k, v)
        short = attention(q, k[:, :100], v[:, :100])
    exact = attention(q, k, v)
    assert 0.02 < ((found.float() - exact.float()).norm() / exact.float().norm()) < 0.08
    torch.testing.assert_close(short, attention(q, k[:, :100], v[:, :100]))
