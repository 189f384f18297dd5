"""The transformer's pass for training says what the real pass says."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from infinitalk_cli.models.dit import DiT
from training.demo.batched import Clips, predict, routing_loss
from training.demo.networks import DIT, new_dit

FRAMES, ROWS, COLUMNS = 2, 4, 8


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


@pytest.fixture(scope="module")
def dit() -> DiT:
    dit = new_dit(0)
    torch.nn.init.normal_(dit.head.head.weight, std=0.1, generator=torch.Generator().manual_seed(1))
    return dit


@pytest.mark.parametrize("num_speakers", [1, 2])
@torch.no_grad()
def test_each_clip_of_a_batch_gets_the_velocity_that_it_gets_alone(dit: DiT, num_speakers: int) -> None:
    latents, condition = random(2, 16, FRAMES, ROWS, COLUMNS), random(2, 20, FRAMES, ROWS, COLUMNS)
    text, image, times = random(20, DIT.text_dim), random(2, 65, DIT.image_dim), torch.tensor([700.0, 12.5])
    windows = random(2, num_speakers, 5, 5, DIT.audio_layers, DIT.audio_dim)
    masks = torch.zeros(2, 3, ROWS, COLUMNS)
    masks[0, 0, :, :4] = masks[0, 1, :, 4:] = 1
    masks[1, 1, :2, :4] = masks[1, 0, 2:, 6:] = 1
    masks[1, 2] = 1 - masks[1, :2].sum(dim=0)
    members = (masks[:, :, ::2, ::2].flatten(2) > 0).transpose(1, 2).float() if num_speakers == 2 else None
    padded = F.pad(text, (0, 0, 0, DIT.text_len - len(text)))

    batch, maps = predict(dit, Clips(latents, condition, times, padded, image, windows, members))

    assert len(maps) == (DIT.num_layers if num_speakers == 2 else 0)
    for clip in range(2):
        alone = dit(
            latents[clip : clip + 1],
            condition[clip : clip + 1],
            times[clip],
            dit.embed_context(text, image[clip : clip + 1]),
            dit.embed_audio(windows[clip]),
            speaker_masks=masks[clip] if num_speakers == 2 else None,
        )
        torch.testing.assert_close(batch[clip : clip + 1], alone, rtol=1e-3, atol=1e-4)


def test_routing_loss_is_least_where_tokens_look_at_their_own_speaker() -> None:
    members = torch.eye(3)[torch.tensor([0, 0, 1, 2, 2, 2])][None]
    right, wrong = members.transpose(1, 2), members.transpose(1, 2).roll(1, dims=1)
    assert routing_loss([right], members, 1) < 1e-3 < 1 < routing_loss([wrong], members, 1)
