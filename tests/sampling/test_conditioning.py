from __future__ import annotations

import pytest
import torch
from torch import Tensor

from infinitalk_cli.sampling.conditioning import PausedEmbeds, ReversedTail, TensorEmbeds, audio_window
from tests.sampling.stubs import numbered_rows


def numbers(windows: Tensor) -> list[list[int]]:
    """Row numbers in windows of `numbered_rows`."""
    return [[int(value) for value in window] for window in windows[:, :, 0, 0].tolist()]


def test_window_is_clamped_at_both_ends() -> None:
    windows = numbers(audio_window(numbered_rows(4), 0, 4))
    assert windows == [[0, 0, 0, 1, 2], [0, 0, 1, 2, 3], [0, 1, 2, 3, 3], [1, 2, 3, 3, 3]]


def test_window_reaches_into_the_neighbouring_chunks() -> None:
    assert numbers(audio_window(numbered_rows(100), 72, 2)) == [[70, 71, 72, 73, 74], [71, 72, 73, 74, 75]]


def test_window_past_the_end_repeats_the_last_frame() -> None:
    assert numbers(audio_window(numbered_rows(3), 7, 2, radius=1)) == [[2, 2, 2], [2, 2, 2]]


def test_window_keeps_layers_and_width() -> None:
    rows = torch.randn(6, 12, 8)
    windows = audio_window(TensorEmbeds(rows), 1, 3)
    assert windows.shape == (3, 5, 12, 8)
    assert torch.equal(windows[2, 2], rows[3])


def test_no_frames_are_refused() -> None:
    with pytest.raises(ValueError, match="no frames"):
        audio_window(numbered_rows(0), 0, 4)


class CountingEmbeds:
    """Rows made on demand; remembers which were asked for."""

    num_frames = 10**9

    def __init__(self) -> None:
        self.asked: list[int] = []

    def gather(self, indices: Tensor) -> Tensor:
        self.asked += indices.tolist()
        return indices.float().view(-1, 1, 1)


def test_only_the_rows_of_the_chunk_are_asked_for_and_each_once() -> None:
    embeds = CountingEmbeds()
    audio_window(ReversedTail(embeds, 100), 5000, 17)
    assert embeds.asked == list(range(4998, 5019))


@pytest.mark.parametrize("tail", [0, 1, 5])
def test_reversed_tail_equals_appended_rows(tail: int) -> None:
    rows = torch.randn(5, 2, 3)
    appended = TensorEmbeds(torch.cat([rows, rows.flip(0)[:tail]]))
    extended = ReversedTail(TensorEmbeds(rows), tail)
    assert extended.num_frames == appended.num_frames
    assert torch.equal(audio_window(extended, 2, 12), audio_window(appended, 2, 12))


def test_pauses_have_the_features_of_silence_and_speech_keeps_its_own() -> None:
    rows = torch.randn(6, 2, 3)
    neutral = torch.randn(2, 3)
    paused = PausedEmbeds(TensorEmbeds(rows), neutral, torch.tensor([0.0, 0.5, 1.0, 1.0, 0.5, 0.0]))
    assert paused.num_frames == 6
    found = paused.gather(torch.tensor([0, 5, 2, 1]))
    assert torch.equal(found[:2], rows[[0, 5]])
    assert torch.equal(found[2], neutral)
    assert torch.allclose(found[3], (rows[1] + neutral) / 2)
