from __future__ import annotations

import numpy as np
import pyloudnorm
import pytest

from infinitalk_cli.media.loudness import LoudnessMeter
from tests.media.made import noise

RATE = 16_000


def speechlike(num_samples: int, seed: int) -> np.ndarray:
    """Noise with pauses and swells, so that both gates have something to do."""
    swell = np.abs(np.sin(np.arange(num_samples) / 9000)) ** 3
    swell[num_samples // 3 : num_samples // 2] *= 1e-4
    return (noise(num_samples, seed=seed)[:, 0] * swell).astype(np.float32)


def measured(samples: np.ndarray, seed: int = 0) -> float:
    meter = LoudnessMeter(RATE)
    for part in np.split(samples, np.sort(np.random.default_rng(seed).integers(0, len(samples), 30))):
        meter.add(part)
    return meter.integrated()


# Just before and after the lengths at which pyloudnorm rounds to one more block, and some of any length.
@pytest.mark.parametrize("num_samples", [6400, 6401, 7199, 7200, 7201, 8799, 8801, 16_000, 100_003, 480_000])
def test_a_running_measurement_equals_pyloudnorm(num_samples: int) -> None:
    samples = speechlike(num_samples, seed=num_samples)
    assert measured(samples) == pytest.approx(pyloudnorm.Meter(RATE).integrated_loudness(samples), abs=1e-6)


def test_how_the_signal_is_cut_up_does_not_matter() -> None:
    samples = speechlike(50_000, seed=1)
    assert measured(samples, seed=1) == measured(samples, seed=2)


@pytest.mark.parametrize("samples", [np.zeros(50_000, np.float32), np.full(50_000, 1e-5, np.float32)])
def test_silence_and_what_is_below_the_gate_read_minus_infinity(samples: np.ndarray) -> None:
    assert measured(samples) == -np.inf


def test_less_than_a_block_counts_as_one_block() -> None:
    samples = noise(6400)[:, 0]
    assert measured(samples[:6399]) == pytest.approx(measured(samples), abs=0.01)
    assert measured(samples[:1600]) == pytest.approx(measured(samples), abs=1.0)


def test_nothing_reads_minus_infinity() -> None:
    assert LoudnessMeter(RATE).integrated() == -np.inf


def test_a_rate_without_whole_hops_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 10"):
        LoudnessMeter(11_025)
