"""The video VAE against the outputs of the original one."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from infinitalk_cli.memory.tensor_files import open_tensors
from infinitalk_cli.models.vae import LATENT_MEAN, LATENT_STD, VideoVAE
from infinitalk_cli.networks import make_vae
from tests.parity.conftest import TinyTree
from tests.parity.reference import DEVICE, Case, cases, expect_close, tensor, value


@pytest.fixture(scope="module")
def vae(tiny_tree: TinyTree) -> VideoVAE:
    return make_vae(open_tensors(tiny_tree.need_matching("*VAE.pth")), dtype=torch.float32, device=DEVICE)


def input_frames(case: Case) -> Tensor:
    """The clip of an encoding case; a lone image is followed by zero frames up to the stated number."""
    if "video" in case.inputs:
        return tensor(case.inputs["video"])
    image = tensor(case.inputs["image"])
    zeros = image.new_zeros(1, 3, case.settings["frames"] - 1, *image.shape[3:])
    return torch.cat([image, zeros], dim=2)


@pytest.mark.parametrize("case", cases("vae", lambda case: "latent" in case.expected), ids=str)
def test_encoding_gives_the_latents(case: Case, vae: VideoVAE) -> None:
    latents = vae.encode(input_frames(case))
    expect_close(latents[0], value(case.expected["latent"]), case.tolerance, "latents")


@pytest.mark.parametrize("case", cases("vae", lambda case: "video" in case.expected), ids=str)
def test_decoding_gives_the_frames(case: Case, vae: VideoVAE) -> None:
    frames = vae.decode(tensor(case.inputs["latent"])[None])[0]
    expect_close(frames, value(case.expected["video"]), case.tolerance, "frames")
    clamped = float((frames.abs() == 1).float().mean())
    assert clamped == pytest.approx(case.expected["fraction_clamped"], abs=1e-3)


@pytest.mark.parametrize(
    "case", cases("vae", lambda case: "max_abs_difference_of_first_frame" in case.expected), ids=str
)
def test_first_latent_alone_gives_the_first_frame(case: Case, vae: VideoVAE) -> None:
    latents = tensor(case.inputs["latent"])[None]
    difference = vae.decode(latents[:, :, :1]) - vae.decode(latents)[:, :, :1]
    assert float(difference.abs().max()) <= case.expected["max_abs_difference_of_first_frame"]


@pytest.mark.parametrize(
    "case", cases("vae", lambda case: any(name.startswith("decoder.") for name in case.expected)), ids=str
)
def test_states_inside_the_decoder(case: Case, vae: VideoVAE) -> None:
    """Keys of the data are `module@step`, the steps being latents."""
    seen: dict[str, list[Tensor]] = {}
    handles: list[Any] = []
    for module in {key.split("@")[0] for key in case.expected}:
        tap = partial(collect, seen.setdefault(module, []))
        handles.append(vae.get_submodule(module).register_forward_hook(tap))
    vae.decode(tensor(case.inputs["latent"])[None])
    for handle in handles:
        handle.remove()
    for key, form in case.expected.items():
        module, step = key.split("@")
        expect_close(seen[module][int(step)], value(form), case.tolerance, key)


def collect(outputs: list[Tensor], module: nn.Module, args: Any, output: Tensor) -> None:
    """A forward hook, once `outputs` is bound."""
    outputs.append(output)


@pytest.mark.parametrize("case", cases("vae", lambda case: "std" in case.expected), ids=str)
def test_statistics_of_the_latents(case: Case) -> None:
    expect_close(torch.tensor(LATENT_MEAN), torch.tensor(case.expected["mean"]), case.tolerance, "mean")
    expect_close(torch.tensor(LATENT_STD), torch.tensor(case.expected["std"]), case.tolerance, "standard deviation")


def test_every_case_of_the_family_is_run() -> None:
    known = ("latent", "video", "max_abs_difference_of_first_frame", "std")
    for case in cases("vae"):
        assert any(key in known or key.startswith("decoder.") for key in case.expected), case
