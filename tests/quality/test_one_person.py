"""One held-out person and 20 s of a held-out voice, five times; a minute for what drifts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.quality.conftest import SEEDS, SHAPE, Film
from training.demo.theatre import Theatre, alone

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

SECONDS, LONG_SECONDS = 20.0, 60.0
LEAST_PSNR = 40.0
"""In dB: background and hair after a minute, against the reference. Measured: 48.9."""
MOST_RAM_BYTES = 2e9

LEAST_SYNC = 0.9
"""With the speech; 0.85 is wanted. Measured over all: 0.96 to 0.98, in the first chunk 0.98, in the last two 0.95."""
MOST_SEAM, WORST_SEAM = 1.5, 2.7
"""The change at a border of chunks over the usual one: the median of a video, and its worst. Measured: 1.28 to 1.45 and
2.4, where a mouth happens to open just there and nothing else moves. Elsewhere one step in a hundred is above 2.2."""

each_seed = pytest.mark.parametrize("seed", SEEDS)


@each_seed
def test_lips_follow_the_speech_from_the_first_chunk_to_the_last(film: Film, seed: int) -> None:
    found = film(seed, SECONDS)
    assert min(found["sync"], found["sync_first"], found["sync_last"]) >= LEAST_SYNC


@each_seed
def test_lips_are_in_time(film: Film, seed: int) -> None:
    assert abs(film(seed, SECONDS)["lag"]) <= 1


@each_seed
def test_lips_follow_no_other_speech(film: Film, seed: int) -> None:
    assert film(seed, SECONDS)["sync_other"] < 0.2


@each_seed
def test_the_mouth_is_closed_in_pauses(film: Film, seed: int) -> None:
    assert film(seed, SECONDS)["pause"] < 0.15


@each_seed
def test_borders_of_chunks_do_not_show(film: Film, seed: int) -> None:
    found = film(seed, SECONDS)
    assert found["seam"] <= MOST_SEAM
    assert found["seam_worst"] <= WORST_SEAM


def test_colours_and_background_stay_for_a_minute(film: Film, theatre: Theatre) -> None:
    corrected = film(1, LONG_SECONDS)
    free = alone(theatre, 1, LONG_SECONDS, SHAPE, color_strength=0.0)
    assert corrected["lab_end"] < 2.0
    assert corrected["lab_end"] <= free["lab_end"] + 0.2
    assert corrected["corner_psnr_end"] > LEAST_PSNR


def test_a_demo_fits_into_a_small_computer(trained: None, tmp_path: Path) -> None:
    del trained
    output = tmp_path / "talk-demo.mp4"
    command = [sys.executable, "-m", "infinitalk_cli", "demo", "--json", "--device", "cpu", "-o", str(output)]
    told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert told["num_frames"] == 100
    assert told["ram_peak_bytes"] < MOST_RAM_BYTES
