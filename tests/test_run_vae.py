"""The video VAE in fewer bits: who decides, how far off it is, and what happens to values beyond float16."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from infinitalk_cli import run_networks
from infinitalk_cli.errors import WeightsError
from infinitalk_cli.footprint import JobShape
from infinitalk_cli.job import Job, Speaker
from infinitalk_cli.models.encoder_config import VAEConfig
from infinitalk_cli.models.vae import VideoVAE
from infinitalk_cli.profiles import VaeDtype, find_profile
from infinitalk_cli.request import GenerateRequest
from infinitalk_cli.run_transformer import NetworkSources
from infinitalk_cli.run_vae import refuse_overflow, vae_dtype_of
from infinitalk_cli.rungs import first_rung
from infinitalk_cli.weights import locate
from training.random_tree import ensure_random_weights

GB = 10**9
SQUARE = JobShape(640, 640, 81)
SMALL = VAEConfig(dim=16, z_dim=16, stage_dims=(16, 16, 32, 32), halves_time=(False, True, True), num_res_blocks=1)


@pytest.mark.parametrize(
    ("wish", "free_gb", "expected"),
    [
        ("auto", 140, torch.float32),
        ("auto", 12, torch.bfloat16),
        ("float32", 140, torch.float32),
        ("float32", 12, torch.float32),
        ("bfloat16", 140, torch.bfloat16),
        ("float16", 140, torch.float16),
        ("float16", 12, torch.float16),
    ],
)
def test_the_wish_decides_and_without_one_the_room(wish: VaeDtype, free_gb: int, expected: torch.dtype) -> None:
    profile = replace(find_profile("rtx-4090"), num_persistent_param_in_dit=None, vae_dtype=wish)
    assert vae_dtype_of(profile, first_rung(profile, SQUARE, free_gb * GB)) == expected


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


@pytest.mark.parametrize("leaf", ["conv1.bias", "decoder.head.2.bias"])
def test_values_beyond_float16_end_the_run_in_words(leaf: str) -> None:
    vae = VideoVAE(SMALL).eval()
    vae.get_parameter(leaf).data.fill_(1e9)
    refuse_overflow(vae.to(torch.float16))
    with pytest.raises(WeightsError, match="no numbers in float16") as caught:
        vae.decode(vae.encode(picture()))
    assert "--vae-dtype bfloat16" in caught.value.hint


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
