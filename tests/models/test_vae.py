"""The video VAE: counts of frames and latents, causality, streaming, and what its cache holds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from infinitalk_cli.models.encoder_config import VAEConfig
from infinitalk_cli.models.vae import VideoVAE
from infinitalk_cli.models.vae_layers import CausalConv3d, ChannelNorm, TemporalCache
from tests.models.published import published_shapes

SMALL = VAEConfig(dim=4, z_dim=16, stage_dims=(4, 4, 8, 8), halves_time=(False, True, True), num_res_blocks=1)


@pytest.fixture(scope="module")
def vae() -> VideoVAE:
    torch.manual_seed(0)
    return VideoVAE(SMALL)


def random_frames(num_frames: int, seed: int = 1) -> Tensor:
    return torch.rand(1, 3, num_frames, 16, 24, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def random_latents(num_latents: int, seed: int = 2) -> Tensor:
    return torch.randn(1, 16, num_latents, 2, 3, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("num_frames, num_latents", [(1, 1), (4, 1), (5, 2), (9, 3), (12, 3), (13, 4)])
def test_four_frames_make_a_latent_and_an_incomplete_group_is_dropped(
    vae: VideoVAE, num_frames: int, num_latents: int
) -> None:
    assert vae.encode(random_frames(num_frames)).shape == (1, 16, num_latents, 2, 3)


def test_latents_of_a_beginning_are_those_of_the_whole(vae: VideoVAE) -> None:
    frames = random_frames(17)
    assert torch.equal(vae.encode(frames[:, :, :9]), vae.encode(frames)[:, :, :3])


def test_later_latents_depend_on_earlier_frames(vae: VideoVAE) -> None:
    frames = random_frames(9)
    changed = frames.clone()
    changed[:, :, 0] *= -1
    assert not torch.allclose(vae.encode(changed)[:, :, 2], vae.encode(frames)[:, :, 2], atol=1e-4)


def test_decoding_streams_one_frame_and_then_four_per_latent(vae: VideoVAE) -> None:
    pieces = list(vae.decode_stream(random_latents(3)))
    assert [piece.shape for piece in pieces] == [(1, 3, 1, 16, 24), (1, 3, 4, 16, 24), (1, 3, 4, 16, 24)]
    assert torch.equal(torch.cat(pieces, dim=2), vae.decode(random_latents(3)))


def test_decoding_a_beginning_gives_the_beginning(vae: VideoVAE) -> None:
    latents = random_latents(4)
    assert torch.equal(vae.decode(latents[:, :, :2]), vae.decode(latents)[:, :, :5])


def test_decoded_frames_are_clamped_to_the_range() -> None:
    torch.manual_seed(0)
    loud = VideoVAE(SMALL)
    with torch.no_grad():
        for parameter in loud.decoder.head.parameters():
            parameter.mul_(20)
    frames = loud.decode(random_latents(2))
    assert frames.dtype == torch.float32
    assert frames.min() == -1
    assert frames.max() == 1


def test_two_clips_decoded_in_turns_do_not_mix(vae: VideoVAE) -> None:
    first, second = random_latents(3, seed=3), random_latents(3, seed=4)
    turns = list(zip(vae.decode_stream(first), vae.decode_stream(second), strict=True))
    assert torch.equal(torch.cat([turn[0] for turn in turns], dim=2), vae.decode(first))
    assert torch.equal(torch.cat([turn[1] for turn in turns], dim=2), vae.decode(second))


def test_cache_holds_two_frames_per_convolution_however_long_the_clip(vae: VideoVAE) -> None:
    cache = TemporalCache()
    sizes: list[int] = []
    with torch.no_grad():
        for latent in random_latents(5).split(1, dim=2):
            vae.decoder(latent, cache)
            cache.is_first = False
            sizes.append(sum(kept.untyped_storage().nbytes() for kept in cache.frames.values()))
    assert all(kept.shape[2] <= 2 for kept in cache.frames.values())
    assert sizes[1] == sizes[-1] == sum(kept.nbytes for kept in cache.frames.values())


def test_encoder_cache_does_not_keep_whole_groups(vae: VideoVAE) -> None:
    cache = TemporalCache()
    with torch.no_grad():
        for group in (random_frames(1), random_frames(4), random_frames(4)):
            vae.encoder(group, cache)
            cache.is_first = False
    for kept in cache.frames.values():
        assert kept.shape[2] <= 2
        assert kept.untyped_storage().nbytes() == kept.nbytes


def test_causal_convolution_in_pieces_equals_the_whole() -> None:
    torch.manual_seed(0)
    conv, x, cache = CausalConv3d(2, 3, (3, 3, 3)), torch.randn(1, 2, 7, 4, 4), TemporalCache()
    pieces = [conv(piece, cache) for piece in x.split([1, 1, 4, 1], dim=2)]
    torch.testing.assert_close(torch.cat(pieces, dim=2), conv(x))


def test_norm_of_nothing_is_nothing() -> None:
    assert torch.equal(ChannelNorm(4, 3)(torch.zeros(1, 4, 1, 2, 2)), torch.zeros(1, 4, 1, 2, 2))


def test_norm_brings_channels_to_unit_mean_square() -> None:
    normed = ChannelNorm(64, 3)(torch.randn(1, 64, 2, 3, 3) * 7)
    torch.testing.assert_close(normed.pow(2).mean(dim=1), torch.ones(1, 2, 3, 3))


def test_bfloat16_stays_near_float32(vae: VideoVAE) -> None:
    half = VideoVAE(SMALL)
    half.load_state_dict(vae.state_dict())
    half.bfloat16()
    frames, latents = random_frames(9), random_latents(3)
    assert half.encode(frames).dtype == torch.float32
    assert deviation(half.encode(frames), vae.encode(frames)) < 0.02
    assert deviation(half.decode(latents), vae.decode(latents)) < 0.05


def deviation(actual: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference, as a share of the expected values' standard deviation."""
    return float((actual - expected).pow(2).mean().sqrt() / expected.std())


def test_published_file_gives_the_published_sizes_and_every_tensor_has_a_place() -> None:
    shapes = published_shapes("VAE.pth")
    config = VAEConfig.from_shapes(shapes)
    assert config == VAEConfig(96, 16, (96, 192, 384, 384), (False, True, True), 2)
    with torch.device("meta"):
        vae = VideoVAE(config)
    assert {name: tuple(tensor.shape) for name, tensor in vae.state_dict().items()} == shapes


def test_sizes_cannot_be_read_off_another_file() -> None:
    with pytest.raises(ValueError, match=r"encoder\.downsamples"):
        VAEConfig.from_shapes({"token_embedding.weight": (8, 8)})
