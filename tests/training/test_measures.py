"""The measures find what was put into made-up frames."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from training.demo.measures import (
    Mouth,
    lip_sync,
    mouth_openings,
    opening_in_pauses,
    pauses,
    step_ratios,
)

MOUTH = Mouth(x=32, y=40, half_width=10)


def talk(num_frames: int = 200, seed: int = 0) -> NDArray[np.float64]:
    """An envelope of syllables and pauses."""
    rng = np.random.default_rng(seed)
    values = np.convolve(rng.uniform(0, 1, num_frames), [0.25, 0.5, 0.25], mode="same")
    values[60:85] = values[150:165] = 0
    return values


def drawn(openings: NDArray[np.float64], skin: float = 0.7) -> NDArray[np.float32]:
    """A face of one colour with a dark ellipse of varying height, in slight noise."""
    rows, columns = np.mgrid[0:64, 0:64]
    frames = np.full((len(openings), 64, 64, 3), skin, np.float32)
    for frame, opening in zip(frames, openings, strict=True):
        high = max(9 * opening, 1e-3)
        frame[((columns - 32) / 8) ** 2 + ((rows - 43) / high) ** 2 < 1] = (0.2, 0.05, 0.05)
    return frames + np.random.default_rng(1).normal(0, 0.01, frames.shape).astype(np.float32)


@pytest.mark.parametrize("skin", [0.85, 0.5])
def test_a_drawn_mouth_is_measured_as_it_was_drawn(skin: float) -> None:
    envelope = talk()
    sync = lip_sync(mouth_openings(drawn(envelope, skin), MOUTH), envelope)
    assert sync.correlation > 0.97
    assert sync.best_lag == 0
    assert abs(lip_sync(mouth_openings(drawn(envelope, skin), MOUTH), np.roll(talk(seed=5), 40)).correlation) < 0.35


def test_a_late_mouth_is_told_from_one_in_time() -> None:
    envelope = talk()
    sync = lip_sync(np.roll(envelope, 3), envelope)
    assert sync.best_lag == 3
    assert sync.best > 0.95 > sync.correlation


def test_a_mouth_that_never_moves_follows_nothing() -> None:
    assert lip_sync(np.ones(100), talk(100)).correlation == 0


def test_pauses_are_found_and_a_closed_mouth_in_them() -> None:
    envelope = talk()
    assert [len(pause) for pause in pauses(envelope)] == [25, 15]
    assert opening_in_pauses(envelope, envelope) < 0.05
    stuck = np.where(envelope == 0, 0.8, envelope)
    assert opening_in_pauses(stuck, envelope) > 0.5


def test_a_jump_at_a_border_is_seen() -> None:
    frames = np.cumsum(np.random.default_rng(0).normal(0, 0.01, (60, 8, 8, 3)), axis=0)
    assert 0.7 < step_ratios(frames)[33] < 1.4
    frames[33:] += 0.1
    assert step_ratios(frames)[33] > 5
