"""What stands still is encoded once: the same latents, with fewer layers run."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from infinitalk_cli.models import vae_still
from infinitalk_cli.models.encoder_config import VAEConfig
from infinitalk_cli.models.vae import VideoVAE
from infinitalk_cli.models.vae_still import rest_points, still_runs
from infinitalk_cli.models.vae_tiling import Tiling

CONFIG = VAEConfig(dim=4, z_dim=16, stage_dims=(4, 4, 8, 8), halves_time=(False, True, True), num_res_blocks=1)
SIZE = (16, 24)


@pytest.fixture(scope="module")
def vae() -> VideoVAE:
    torch.manual_seed(3)
    return VideoVAE(CONFIG)


def clip(*parts: str) -> Tensor:
    """Frames `(1, 3, T, H, W)`: the first alone, then groups of four: "grey", "moving" ones and a "still" picture."""
    draw = torch.Generator().manual_seed(5)
    picture = torch.rand(1, 3, 1, *SIZE, generator=draw) * 2 - 1
    frames = [picture]
    for part in parts:
        moving = torch.rand(1, 3, 4, *SIZE, generator=draw) * 2 - 1
        frames.append({"grey": torch.zeros_like(moving), "still": picture.repeat(1, 1, 4, 1, 1)}.get(part, moving))
    return torch.cat(frames, dim=2)


def always_moving(groups: Sequence[Tensor]) -> list[int]:
    return [1] * len(groups)


CLIPS = {
    "a picture and grey": clip(*["grey"] * 17),
    "a still video": clip(*["still"] * 17),
    "it moves again before all is at rest": clip(*["grey"] * 6, "moving", *["grey"] * 5),
    "it moves again when all is at rest": clip(*["still"] * 15, "moving", "moving", *["still"] * 3),
    "always moving": clip(*["moving"] * 6),
    "nothing but a picture": clip(),
}


@pytest.mark.parametrize("name", CLIPS)
def test_latents_are_those_of_encoding_everything(name: str, vae: VideoVAE, monkeypatch: pytest.MonkeyPatch) -> None:
    found = vae.encode(CLIPS[name])
    monkeypatch.setattr(vae_still, "still_runs", always_moving)
    assert torch.equal(found, vae.encode(CLIPS[name]))


def test_tiles_that_stand_still_are_encoded_once_too(vae: VideoVAE, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vae, "tiling", Tiling(3, 1))
    frames = clip(*["grey"] * 8).repeat(1, 1, 1, 2, 1)
    found = vae.encode(frames)
    monkeypatch.setattr(vae_still, "still_runs", always_moving)
    assert torch.equal(found, vae.encode(frames))


def test_each_layer_runs_until_it_is_at_rest(vae: VideoVAE) -> None:
    layers, counts = vae.encoder.shrinking, dict[int, int]()

    def count(layer: nn.Module, *call: object) -> None:
        counts[id(layer)] = counts.get(id(layer), 0) + 1

    hooks = [layer.register_forward_hook(count) for layer in layers]
    vae.encode(CLIPS["a picture and grey"])
    for hook in hooks:
        hook.remove()
    assert [counts[id(layer)] for layer in layers] == [1 + min(17, point) for point in rest_points(layers, 4)]


def test_the_first_layers_come_to_rest_first(vae: VideoVAE) -> None:
    points = rest_points(vae.encoder.shrinking, 4)
    assert points[:6] == [2, 4, 4, 6, 7, 9]
    assert points == sorted(points)


def test_runs_count_groups_that_are_alike() -> None:
    a, b = torch.zeros(1, 3, 4, 2, 2), torch.ones(1, 3, 4, 2, 2)
    assert still_runs([a[:, :, :1], a, a.clone(), a, b, b, a]) == [1, 1, 2, 3, 1, 2, 1]
