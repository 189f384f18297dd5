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
LEAST_PSNR = 24.0
"""In dB: background and hair after a minute, against the reference. Measured: 25.8."""
MOST_RAM_BYTES = 2e9

WANTED_SYNC = 0.85
LEAST_SYNC = 0.70
"""Of a single person. Measured: 0.79 to 0.94, at the end 0.74 to 0.96; lowest for the smallest mouth, of 14 pixels."""
MOST_SEAM, WORST_SEAM = 1.6, 2.2
"""The change at a border of chunks over the usual one: the median of a video, and its worst. Measured: 1.44 to 1.54 and
2.04. Wherever one latent frame follows another the picture changes up to 1.9 times as much as within one."""

each_seed = pytest.mark.parametrize("seed", SEEDS)


@pytest.mark.parametrize("part", ["sync", "sync_first", "sync_last"])
def test_lips_follow_the_speech_from_the_first_chunk_to_the_last(film: Film, part: str) -> None:
    found = [film(seed, SECONDS)[part] for seed in SEEDS]
    assert min(found) > LEAST_SYNC
    assert sum(found) / len(found) >= WANTED_SYNC


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
