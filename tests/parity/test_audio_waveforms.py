"""What the audio encoder hears, sample by sample, against the reference data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infinitalk_cli.media.audio import SoundReader
from infinitalk_cli.media.speech import SPEECH_RATE, prepare_speech
from tests.parity.reference import Array, Case, cases, expect_close, reference_dir, value


def speaks(case: Case) -> bool:
    return "file" in case.inputs or "person1" in case.inputs


def recordings(case: Case) -> list[Path | None]:
    """The files of the speakers in order; None for a silent one."""
    names = [case.inputs["file"]] if "file" in case.inputs else [case.inputs["person1"], case.inputs["person2"]]
    return [None if name is None else reference_dir() / name for name in names]


def tolerance(case: Case) -> Mapping[str, float]:
    """The one for resampled sound only where a file really has another rate."""
    rates = list[int]()
    for path in recordings(case):
        if path is not None:
            with SoundReader(path) as reader:
                rates.append(reader.rate)
    return case.tolerance["wave" if set(rates) == {SPEECH_RATE} else "wave_resampled"]


def check(waveform: Array, expected: Mapping[str, Any], case: Case, what: str) -> None:
    assert len(waveform) == expected["num_samples"], what
    allowed = tolerance(case)
    expect_close(waveform[::37], value(expected["samples_every_37"]), allowed, f"{case.id}: {what}")
    rms = np.sqrt(np.mean(np.square(waveform, dtype=np.float64)))
    assert rms == pytest.approx(expected["rms"], rel=allowed["rtol"], abs=allowed["atol"]), what


@pytest.mark.parametrize("case", cases("audio", speaks))
def test_waveforms(case: Case, tmp_path: Path) -> None:
    tracks = prepare_speech(recordings(case), tmp_path, case.settings.get("audio_type", "para"))
    if len(tracks.waveforms) == 1:
        check(tracks.waveforms[0], case.expected, case, "the only speaker")
        return
    for index, waveform in enumerate(tracks.waveforms, start=1):
        check(waveform, case.expected[f"person{index}"], case, f"speaker {index}")
    check(tracks.waveforms[0] + tracks.waveforms[1], case.expected["sum"], case, "the sum")


@pytest.mark.parametrize("case", cases("audio", speaks))
def test_silence_is_reported_exactly_for_tracks_without_sound(case: Case, tmp_path: Path) -> None:
    tracks = prepare_speech(recordings(case), tmp_path, case.settings.get("audio_type", "para"))
    expected = [case.expected] if len(tracks.waveforms) == 1 else [case.expected[f"person{i}"] for i in (1, 2)]
    assert tracks.silent_speakers == tuple(entry["rms"] == 0 for entry in expected)
