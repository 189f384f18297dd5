"""Audio tokens, their attention per latent frame, and the map that tells two speakers apart."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from infinitalk_cli.models.audio_attention import (
    AudioCrossAttention,
    AudioProjection,
    SpeakerMasks,
    group_windows,
    map_speakers,
    speaker_positions,
)
from infinitalk_cli.models.config import DiTConfig
from infinitalk_cli.models.tokens import all_tokens

CONFIG = DiTConfig(
    dim=32,
    ffn_dim=8,
    freq_dim=8,
    num_heads=4,
    num_layers=1,
    audio_layers=2,
    audio_dim=3,
    audio_hidden_dim=6,
    audio_token_dim=5,
    audio_tokens=4,
)
PATCH = (1, 2, 2)


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:  # pyright: ignore[reportUnusedFunction]
    torch.manual_seed(11)
    with torch.no_grad():
        yield


def dense_map(q: Tensor, k: Tensor, members: Tensor) -> Tensor:
    """The speaker map by its definition, with the whole matrix, in float64."""
    scores = torch.einsum("nhd,mhd->hnm", q[0].double(), k[0, : len(members)].double()) / q.shape[-1] ** 0.5
    shares = torch.einsum("hnm,mc->hnc", scores.softmax(dim=-1), members.double()) / members.double().sum(dim=0)
    return shares.mean(dim=0).T.float()


class TestWindows:
    @pytest.mark.parametrize("frames", [4, 16, 80])
    def test_frames_that_do_not_fill_latent_frames_are_refused(self, frames: int) -> None:
        with pytest.raises(ValueError, match=f"{frames} frames, expected 4n \\+ 1"):
            group_windows(torch.zeros(1, frames, 5, 1, 1), 4)

    def test_one_frame_is_one_latent_frame(self) -> None:
        first, later = group_windows(torch.zeros(2, 1, 5, 3, 4), 4)
        assert first.shape == (2, 1, 5, 3, 4)
        assert later.shape == (2, 0, 8, 3, 4)

    def test_silence_makes_tokens_too(self) -> None:
        tokens = AudioProjection(CONFIG)(torch.zeros(1, 9, 5, 2, 3))
        assert tokens.shape == (1, 3, 4, 5)
        assert tokens.abs().max() > 0.1

    def test_speakers_do_not_mix(self) -> None:
        projection, windows = AudioProjection(CONFIG), torch.randn(2, 9, 5, 2, 3)
        torch.testing.assert_close(projection(windows)[1:], projection(windows[1:]))


class TestMasks:
    def test_tokens_take_the_even_rows_and_columns(self) -> None:
        masks = torch.zeros(3, 4, 4)
        masks[0, 0, 2], masks[1, 1, :], masks[2, 2, 2] = 0.2, 1, 1
        reduced = SpeakerMasks.from_latent_grid(masks, PATCH, "zero")
        assert reduced.members.T.tolist() == [[0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
        assert reduced.weights.tolist() == [1, 0, 1]

    def test_empty_class_has_a_map_of_zero(self) -> None:
        masks = torch.ones(3, 4, 4)
        masks[2] = 0
        q, k = torch.randn(2, 1, 12, 4, 8).unbind(0)
        speaker_map = map_speakers(q, k, SpeakerMasks.from_latent_grid(masks, PATCH, "zero"))
        assert (speaker_map[2] == 0).all()
        assert (speaker_map[:2] > 0).all()

    def test_empty_class_is_nan_as_in_the_reference_program_when_asked(self) -> None:
        masks = torch.ones(3, 4, 4)
        masks[1] = 0
        q, k = torch.randn(2, 1, 12, 4, 8).unbind(0)
        speaker_map = map_speakers(q, k, SpeakerMasks.from_latent_grid(masks, PATCH, "nan"))
        assert speaker_map.isnan().any(dim=1).tolist() == [False, True, False]
        assert speaker_map.argmax(dim=0).eq(1).all()


class TestMap:
    @pytest.mark.parametrize("overlapping", [False, True])
    def test_equals_the_dense_definition(self, overlapping: bool) -> None:
        q, k = torch.randn(2, 1, 60, 4, 8).mul(2).unbind(0)
        masks = torch.zeros(3, 8, 10)
        masks[0, :, :4], masks[1, :, 4 - 2 * overlapping :], masks[2, 4:] = 1, 1, 1
        reduced = SpeakerMasks.from_latent_grid(masks, PATCH, "zero")
        expected = dense_map(q, k, reduced.members)
        torch.testing.assert_close(map_speakers(q, k, reduced), expected, atol=1e-6, rtol=1e-5)

    def test_only_the_first_latent_frame_is_looked_at(self) -> None:
        q, k = torch.randn(2, 1, 60, 4, 8).unbind(0)
        reduced = SpeakerMasks.from_latent_grid(torch.ones(3, 8, 10), PATCH, "zero")
        changed = torch.cat((k[:, :20], torch.randn(1, 40, 4, 8)), dim=1)
        assert torch.equal(map_speakers(q, k, reduced), map_speakers(q, changed, reduced))

    def test_query_by_key_matrix_is_never_held(self) -> None:
        q, k = torch.randn(2, 1, 600, 4, 8).unbind(0)
        reduced = SpeakerMasks.from_latent_grid(torch.ones(3, 20, 40), PATCH, "zero")  # 200 keys
        with LargestResult() as largest:
            map_speakers(q, k, reduced)
        assert q.numel() <= largest.numel < 600 * 200

    def test_bfloat16_map_is_near_the_exact_one(self) -> None:
        q, k = torch.randn(2, 1, 60, 4, 8).mul(2).to(torch.bfloat16).unbind(0)
        masks = torch.zeros(3, 8, 10)
        masks[0, :, :4], masks[1, :, 6:], masks[2, :, 4:6] = 1, 1, 1
        reduced = SpeakerMasks.from_latent_grid(masks, PATCH, "zero")
        speaker_map = map_speakers(q, k, reduced)
        assert speaker_map.dtype == torch.float32
        torch.testing.assert_close(speaker_map, dense_map(q, k, reduced.members), atol=0, rtol=0.02)


class LargestResult(TorchDispatchMode):
    """Remembers the size of the largest tensor that an operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        for result in results if isinstance(results, (tuple, list)) else (results,):
            if isinstance(result, Tensor):
                self.numel = max(self.numel, result.untyped_storage().nbytes() // result.element_size())
        return results


class TestPositions:
    def test_strength_within_the_winning_class_becomes_a_position(self) -> None:
        speaker_map = torch.tensor([[0.5, 0.1, 0.1, 0.3], [0.2, 0.6, 0.2, 0.0], [0.0, 0.0, 0.4, 0.0]])
        positions = speaker_positions(speaker_map, 24, 4)
        torch.testing.assert_close(positions, torch.tensor([4.0, 24.0, 12.0, 2.0]))

    def test_constant_map_does_not_divide_by_zero(self) -> None:
        assert speaker_positions(torch.full((3, 5), 0.2), 24, 4).tolist() == [0] * 5

    def test_nan_class_wins_as_in_the_reference_program(self) -> None:
        speaker_map = torch.rand(3, 4)
        speaker_map[2] = torch.nan
        assert speaker_positions(speaker_map, 24, 4).tolist() == [12] * 4


class TestCrossAttention:
    def test_frames_hear_their_own_tokens_only(self) -> None:
        attend, x = AudioCrossAttention(CONFIG), torch.randn(1, 12, 32)
        tokens = torch.randn(1, 3, 4, 5)
        changed = tokens.clone()
        changed[:, 1] += 1
        before, after = (attend(x, heard, None, all_tokens(12)) for heard in (tokens, changed))
        difference = (after - before).abs().amax(dim=-1)[0]
        assert (difference > 1e-4).tolist() == [False] * 4 + [True] * 4 + [False] * 4

    def test_tokens_hear_the_speaker_they_look_at_most(self) -> None:
        # Queries and keys are all alike, so without positions every token would hear both speakers equally.
        attend = AudioCrossAttention(CONFIG)
        x, tokens = torch.ones(1, 4, 32), torch.ones(1, 1, 8, 5)
        seen: list[Tensor] = []
        attend.proj.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        attend.kv_linear.weight.zero_()
        attend.q_linear.weight.zero_()
        attend.q_linear.bias.fill_(8.0)
        attend.kv_linear.bias.fill_(8.0)
        values = attend.kv_linear.weight.view(2, 32, 5)[1]
        tokens[:, :, 4:] = -1
        values.fill_(0.2)  # speaker 1 adds +1 to every value, speaker 2 adds -1
        speaker_map = torch.tensor([[0.6, 0.2, 0.0, 0.3], [0.0, 0.2, 0.6, 0.2], [0.1, 0.3, 0.1, 0.9]])
        attend(x, tokens, speaker_map, all_tokens(4))
        heard = seen[0].mean(dim=-1)[0] - 8.0
        assert heard[0] > 0.9  # position 4, near speaker 1
        assert heard[2] < -0.9  # position 24, near speaker 2
        assert heard[[1, 3]].abs().max() < 1e-4  # background, halfway between

    def test_values_keep_their_place(self) -> None:
        attend, tokens = AudioCrossAttention(CONFIG), torch.randn(1, 2, 8, 5)
        one, two = (attend.keys_values(tokens, two_speakers=both) for both in (False, True))
        assert torch.equal(one[1], two[1])
        assert not torch.allclose(one[0], two[0])
