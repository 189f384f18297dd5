"""Pictures in tiles: what covers what, and how far the video VAE's results are from those of the whole."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from infinitalk_cli.models.encoder_config import VAEConfig
from infinitalk_cli.models.vae import VideoVAE
from infinitalk_cli.models.vae_tiling import Tiling

SMALL = VAEConfig(dim=4, z_dim=16, stage_dims=(4, 4, 8, 8), halves_time=(False, True, True), num_res_blocks=1)
SEEN = 9
"""Latents to each side that a decoded pixel depends on, attention aside: 4 convolutions at each of 4 sizes, and 4."""
WIDE = Tiling(size=27, overlap=SEEN)


@pytest.fixture
def vae() -> VideoVAE:
    torch.manual_seed(0)
    return VideoVAE(SMALL)


def latents(height: int, width: int) -> Tensor:
    return torch.randn(1, 16, 2, height, width, generator=torch.Generator().manual_seed(1))


def frames(height: int, width: int) -> Tensor:
    return torch.rand(1, 3, 5, 8 * height, 8 * width, generator=torch.Generator().manual_seed(2)) * 2 - 1


@pytest.mark.parametrize("length", [1, 20, 21, 35, 88, 199])
def test_weights_of_the_tiles_sum_to_one_everywhere(length: int) -> None:
    tiling = Tiling(size=20, overlap=6)
    for scale in (1, 8):
        whole = torch.zeros(1, 1, 1, length * scale, 21 * scale)
        for tile in tiling.tiles(length, 21):
            part = tile.cut(whole, scale)
            assert max(part.shape[3:]) <= 20 * scale
            tile.add(torch.ones_like(part), whole, scale)
        torch.testing.assert_close(whole, torch.ones_like(whole))


def test_a_picture_no_larger_than_a_tile_stays_whole() -> None:
    assert not Tiling(20, 6).divides(20, 20)
    assert [(t.rows.start, t.rows.stop, t.rows.fade_in) for t in Tiling(20, 6).tiles(20, 20)] == [(0, 20, 0)]


def test_more_than_a_third_is_not_shared() -> None:
    with pytest.raises(ValueError, match="a third at most"):
        Tiling(20, 7)


def test_decoded_tiles_equal_the_whole_where_they_do_not_overlap_and_nearly_where_they_do(vae: VideoVAE) -> None:
    given = latents(29, 3)
    expected = vae.decode(given)
    vae.tiling = WIDE
    made = vae.decode(given)
    assert made.shape == expected.shape
    lone = [slice(0, 10 * 8), slice((29 - 10) * 8, 29 * 8)]  # each tile has 19 rows: the first 10 are its own
    for rows in lone:
        torch.testing.assert_close(made[..., rows, :], expected[..., rows, :], atol=1e-5, rtol=0)
    error = (made - expected).norm() / expected.norm()
    assert 0 < error < 0.01, error


def test_encoded_tiles_are_near_the_whole(vae: VideoVAE) -> None:
    given = frames(3, 29)
    expected = vae.encode(given)
    vae.tiling = WIDE
    made = vae.encode(given)
    assert made.shape == expected.shape
    error = (made - expected).norm() / expected.norm()
    assert 0 < error < 0.001, error


def test_decoded_tiles_come_as_the_whole_does(vae: VideoVAE) -> None:
    vae.tiling = Tiling(6, 2)
    assert [piece.shape[2] for piece in vae.decode_stream(latents(8, 8))] == [1, 4]
    vae.use_channels_last()
    torch.testing.assert_close(vae.decode(latents(8, 8)), vae.decode(latents(8, 8)))
