from __future__ import annotations

import numpy as np
import pytest

from infinitalk_cli.media.pauses import (
    RAMP_FRAMES,
    SHORTEST_PAUSE_FRAMES,
    find_pauses,
    pause_weights,
    ramps,
    silent_frames,
)
from tests.media.made import noise

RATE, FPS = 16_000, 25
PER_FRAME = RATE // FPS


def speech_with_pauses(*spans: tuple[int, float]) -> np.ndarray:
    """Noise for so many frames at such a level, one span after the other, over a floor as of a quiet room."""
    pieces = [noise(frames * PER_FRAME, seed=i, level=level)[:, 0] for i, (frames, level) in enumerate(spans)]
    return np.concatenate(pieces) + noise(sum(map(len, pieces)), seed=99, level=0.0003)[:, 0]


def test_pause_is_found_to_the_frame_however_loud_the_recording_is() -> None:
    track = speech_with_pauses((30, 0.1), (25, 0.0), (40, 0.1), (8, 0.0), (20, 0.05))
    expected = [False] * 30 + [True] * 25 + [False] * 40 + [True] * 8 + [False] * 20
    for gain in (1.0, 0.1, 3.0):
        found = silent_frames((track * gain).astype(np.float32), 123, rate=RATE, fps=FPS)
        assert found.tolist() == expected


def test_long_silence_does_not_make_the_rest_of_it_loud() -> None:
    track = speech_with_pauses((1500, 0.0), (25, 0.1), (2000, 0.0)).astype(np.float32)
    found = silent_frames(track, 3525, rate=RATE, fps=FPS)
    assert np.flatnonzero(~found).tolist() == list(range(1500, 1525))


def test_only_pauses_longer_than_four_tenths_of_a_second_count() -> None:
    assert SHORTEST_PAUSE_FRAMES / FPS > 0.4 >= (SHORTEST_PAUSE_FRAMES - 1) / FPS
    silent = np.array([True] * 3 + [False] * 5 + [True] * 10 + [False] + [True] * 11)
    assert np.flatnonzero(find_pauses(silent)).tolist() == list(range(19, 30))


def test_speech_stays_as_it_is_and_the_ramps_lie_within_the_pause() -> None:
    pauses = np.array([False] * 3 + [True] * 14 + [False] * 2 + [True] * 12)
    weights = ramps(pauses)
    up = [i / (RAMP_FRAMES + 1) for i in range(1, RAMP_FRAMES + 1)]
    expected = [0.0] * 3 + up + [1.0] * 6 + up[::-1] + [0.0] * 2 + up + [1.0] * 8
    assert weights.tolist() == pytest.approx(expected)
    assert (weights[~pauses] == 0).all()


@pytest.mark.parametrize("samples", [0, 5000])
def test_silent_track_is_one_pause(samples: int) -> None:
    assert pause_weights(np.zeros(samples, np.float32), 20, rate=RATE, fps=FPS).tolist() == [1.0] * 20


def test_track_that_ends_early_is_silent_from_there_on() -> None:
    track = speech_with_pauses((30, 0.1)).astype(np.float32)
    weights = pause_weights(track, 60, rate=RATE, fps=FPS)
    assert (weights[:30] == 0).all()
    assert (weights[30 + RAMP_FRAMES :] == 1).all()
