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
"""In dB: background and hair after a minute, against the reference. Measured: 46.5."""
MOST_RAM_BYTES = 2e9

WANTED_SYNC, LEAST_AT_END = 0.85, 0.80
"""With the speech. Measured over all: 0.90 to 0.94, in the first chunk 0.92 to 0.96, in the last two 0.83 to 0.95."""
MOST_SEAM, WORST_SEAM = 1.6, 2.2
"""The change at a border of chunks over the usual one: the median of a video, and its worst. Measured: 1.36 to 1.51 and
1.98. Wherever one latent frame follows another the picture changes up to 1.9 times as much as within one."""

each_seed = pytest.mark.parametrize("seed", SEEDS)


@each_seed
def test_lips_follow_the_speech_from_the_first_chunk_to_the_last(film: Film, seed: int) -> None:
    found = film(seed, SECONDS)
    assert min(found["sync"], found["sync_first"]) >= WANTED_SYNC
    assert found["sync_last"] >= LEAST_AT_END


def test_lips_follow_the_speech_as_well_in_the_end(film: Film) -> None:
    assert sum(film(seed, SECONDS)["sync_last"] for seed in SEEDS) / len(SEEDS) >= WANTED_SYNC


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
