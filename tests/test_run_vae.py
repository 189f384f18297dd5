"""The video VAE in fewer bits: who decides, how far off it is, and what happens to values beyond float16."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from infinitalk_cli import run_networks
from infinitalk_cli.footprint import JobShape
from infinitalk_cli.job import Job, Speaker
from infinitalk_cli.memory.residency import Residency
from infinitalk_cli.models.encoder_config import VAEConfig
from infinitalk_cli.models.vae import VideoVAE
from infinitalk_cli.models.vae_tiling import Tiling
from infinitalk_cli.profiles import VaeDtype, find_profile
from infinitalk_cli.request import GenerateRequest
from infinitalk_cli.run_transformer import NetworkSources
from infinitalk_cli.run_vae import GPU_DTYPES, WiderWhereNeeded, numbers_of
from infinitalk_cli.sampling.stream import Networks, decode_frames, encode_frames
from infinitalk_cli.weights import locate
from tests.sampling.stubs import keep_color
from training.random_tree import ensure_random_weights

SMALL = VAEConfig(dim=16, z_dim=16, stage_dims=(16, 16, 32, 32), halves_time=(False, True, True), num_res_blocks=1)


@pytest.mark.parametrize(
    ("wish", "expected"),
    [("auto", torch.float16), *((str(dtype)[6:], dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16))],
)
def test_on_a_gpu_the_wish_decides_and_without_one_it_is_float16(wish: VaeDtype, expected: torch.dtype) -> None:
    assert GPU_DTYPES[wish] == expected


def picture() -> Tensor:
    """Frames with large shapes in them, `(1, 3, 9, 64, 64)`."""
    coarse = torch.randn(1, 3, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    return F.interpolate(coarse, size=(9, 64, 64), mode="trilinear").clamp_(-1, 1)


def levels(frames: Tensor) -> Tensor:
    """As they are written to a file."""
    return frames.add(1).mul(127.5).round()


@pytest.mark.parametrize(
    ("dtype", "latents_off", "frames_off", "least_psnr", "most_levels"),
    [(torch.bfloat16, 0.004, 0.025, 49, 8), (torch.float16, 0.0005, 0.0035, 59, 2)],
    ids=str,
)
def test_in_16_bits_latents_and_written_frames_are_off_by_no_more_than_is_said(
    dtype: torch.dtype, latents_off: float, frames_off: float, least_psnr: float, most_levels: int
) -> None:
    torch.manual_seed(0)
    exact, narrow = VideoVAE(SMALL).eval(), VideoVAE(SMALL).eval()
    narrow.load_state_dict(exact.state_dict())
    narrow.to(dtype).use_channels_last()
    latents = exact.encode(picture())
    frames, made = exact.decode(latents), narrow.decode(latents)
    assert latents_off / 3 < (narrow.encode(picture()) - latents).norm() / latents.norm() < latents_off
    assert frames_off / 3 < (made - frames).norm() / frames.norm() < frames_off
    difference = levels(made) - levels(frames)
    assert 20 * torch.log10(255 / difference.square().mean().sqrt()) > least_psnr
    assert difference.abs().max() <= most_levels


def narrow_vae(direction: str, device: str = "cpu") -> tuple[Networks, list[str]]:
    """A VAE in float16 that takes latents up to 50, or pictures of no brightness, on a run's networks; its notes."""
    torch.manual_seed(0)
    exact = VideoVAE(SMALL).eval().requires_grad_(False)
    if direction == "decode":
        exact.conv2.weight.copy_(1000 * torch.eye(16).view(16, 16, 1, 1, 1))
        exact.get_parameter("conv2.bias").zero_()
    else:
        exact.encoder.conv1.weight.mul_(1e6)

    def load(home: torch.device, dtype: torch.dtype) -> VideoVAE:
        return deepcopy(exact).to(home, dtype)

    notes, target = list[str](), torch.device(device)
    vae = load(torch.device("cpu"), torch.float16)
    if device == "cuda":
        vae.use_channels_last()
    wider = WiderWhereNeeded(vae, load, lambda: torch.float32, notes.append)
    others: Any = (None, None)
    networks = Networks(
        others[0],
        vae,
        others[1],
        keep_color,
        target,
        on_stage=Residency(target).on_stage,
        attempt_vae=wider.attempt,
    )
    return networks, notes


def moving_latents(large: int) -> Tensor:
    """Four small latents and, from number `large` on, values that 1000 times are beyond float16."""
    latents = torch.randn(1, 16, 4, 4, 6, generator=torch.Generator().manual_seed(2))
    latents[:, :, large:] *= 100
    return latents


def decoded(networks: Networks, latents: Tensor) -> Tensor:
    """As a run decodes."""
    return decode_frames(networks, latents.to(networks.device), torch.zeros(1), 0.0, 13)


ON_DEVICES = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])


@ON_DEVICES
@pytest.mark.parametrize("large", [0, 2])
@pytest.mark.parametrize("tiling", [None, Tiling(4, 1)], ids=["whole", "tiles"])
def test_a_piece_beyond_float16_and_all_after_it_are_decoded_in_wider_numbers(
    large: int, device: str, tiling: Tiling | None
) -> None:
    networks, notes = narrow_vae("decode", device)
    networks.vae.tiling = tiling
    latents = moving_latents(large)
    made = decoded(networks, latents)
    wide = decoded(networks, latents)
    assert notes == ["note: the video VAE goes beyond float16 here; it computes in float32 from now on"]
    assert {parameter.dtype for parameter in networks.vae.parameters()} == {torch.float32}
    assert {parameter.device.type for parameter in networks.vae.parameters()} == {"cpu"}
    assert made.isfinite().all()
    first = 0 if tiling or not large else 4 * large - 3  # frames of tiles come at the end
    tolerance = 0 if device == "cpu" else 1e-3
    torch.testing.assert_close(made[:, :, first:], wide[:, :, first:], atol=tolerance, rtol=0)
    if first:
        narrow = decoded(narrow_vae("decode", device)[0], latents[:, :, :large])[:, :, :first]
        torch.testing.assert_close(made[:, :, :first], narrow, atol=tolerance, rtol=0)


@ON_DEVICES
def test_a_picture_beyond_float16_is_encoded_in_wider_numbers(device: str) -> None:
    networks, notes = narrow_vae("encode", device)
    frames = picture().to(device)
    made = encode_frames(networks, frames)
    assert made.isfinite().all()
    torch.testing.assert_close(made, encode_frames(networks, frames), atol=0 if device == "cpu" else 1e-3, rtol=0)
    assert len(notes) == 1
    assert numbers_of(networks.vae) == "float32"


def test_what_float16_can_hold_is_made_in_float16() -> None:
    networks, notes = narrow_vae("decode")
    latents = moving_latents(4)
    plain = narrow_vae("decode")[0].vae
    assert torch.equal(decoded(networks, latents), plain.decode(latents))
    assert torch.equal(encode_frames(networks, picture()), plain.encode(picture()))
    assert (notes, numbers_of(networks.vae)) == ([], "float16")


def test_on_a_cpu_a_wish_for_16_bits_is_told_to_have_no_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    def build_vae_alone(files: object, device: object, home: object, dtype: torch.dtype) -> tuple[VideoVAE, None]:
        return VideoVAE(SMALL).to(dtype), None

    monkeypatch.setattr(run_networks, "build_others", build_vae_alone)  # the library behind the others takes seconds
    files, notes = locate(ensure_random_weights(), num_speakers=1), list[str]()
    profile = replace(find_profile("demo"), vae_dtype="float16", lora_mode="beside")
    job = Job(Path("none.png"), "", (Speaker(Path("none.wav")),), is_video=False)
    request = GenerateRequest(job, Path("none.mp4"), profile)
    sources = NetworkSources(request, files, (), torch.device("cpu"))
    networks = run_networks.load_networks(sources, JobShape(64, 64, 33), notes.append)
    assert networks.vae.conv1.weight.dtype == torch.float32
    assert notes == [
        "note: --vae-dtype float16 has no effect on the CPU, which computes in float32",
        "note: this run adds no LoRA to the weights, so --lora-mode beside has no effect",
    ]
