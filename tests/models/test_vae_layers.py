"""The VAE's convolutions on a CPU give what torch's 3-D convolution gives."""

from __future__ import annotations

import pytest
import torch

from infinitalk_cli.models.vae_layers import CausalConv3d


@pytest.mark.parametrize("kernel", [(3, 3, 3), (3, 1, 1)])
@pytest.mark.parametrize("num_frames", [1, 4])
def test_frames_with_their_neighbours_convolve_like_a_clip(kernel: tuple[int, int, int], num_frames: int) -> None:
    torch.manual_seed(0)
    layer = CausalConv3d(6, 10, kernel)
    clip = torch.randn(2, 6, num_frames + 2, 9, 12)
    plain = torch.nn.functional.conv3d(clip, layer.weight, layer.bias, padding=(0, kernel[1] // 2, kernel[2] // 2))
    torch.testing.assert_close(layer.convolve_frames(clip), plain, atol=1e-5, rtol=1e-5)
