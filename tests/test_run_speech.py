"""What the transformer hears, measured on the features of the demo's speech encoder."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from infinitalk_cli.demo import ensure_demo_weights
from infinitalk_cli.media.pauses import RAMP_FRAMES
from infinitalk_cli.media.speech import SpeechTracks, prepare_speech
from infinitalk_cli.networks import build_audio_encoder
from infinitalk_cli.run_speech import embed_speech
from infinitalk_cli.weights import WeightFiles, locate
from tests.media.made import noise, write_wav

RATE = 16_000
FIRST_SILENT, FIRST_LOUD = 25, 60


@pytest.fixture(scope="module")
def files() -> WeightFiles:
    return locate(ensure_demo_weights(), num_speakers=1)


@pytest.fixture
def speech(tmp_path: Path) -> SpeechTracks:
    """A second of speech, 1.4 s of breath, and 1.6 s of speech."""
    samples = noise(4 * RATE, level=0.2)
    samples[FIRST_SILENT * 640 : FIRST_LOUD * 640] *= 0.01
    return prepare_speech([write_wav(tmp_path / "speech.wav", samples, RATE)], tmp_path)


def features(files: WeightFiles, speech: SpeechTracks, *, close_mouth: bool) -> torch.Tensor:
    (embeds,) = embed_speech(files, speech, close_mouth=close_mouth)
    return embeds.gather(torch.arange(embeds.num_frames))


def test_pauses_are_driven_by_silence_and_words_as_they_were(files: WeightFiles, speech: SpeechTracks) -> None:
    with torch.no_grad():
        plain, closed = (features(files, speech, close_mouth=wish) for wish in (False, True))
        silence = build_audio_encoder(files).silence()
    assert plain.shape == closed.shape == (100, *silence.shape)
    words = [*range(FIRST_SILENT), *range(FIRST_LOUD, 100)]
    pause = range(FIRST_SILENT + RAMP_FRAMES, FIRST_LOUD - RAMP_FRAMES)
    assert torch.equal(closed[words], plain[words])
    assert torch.equal(closed[list(pause)], silence.expand(len(pause), -1, -1))
    assert not torch.allclose(plain[list(pause)], silence.expand(len(pause), -1, -1), atol=0.05)
    distance = (closed - silence).flatten(1).norm(dim=1) / (plain - silence).flatten(1).norm(dim=1)
    steps = [1 - i / (RAMP_FRAMES + 1) for i in range(RAMP_FRAMES + 2)]
    assert distance[FIRST_SILENT - 1 : FIRST_SILENT + RAMP_FRAMES + 1].tolist() == pytest.approx(steps, abs=1e-5)


def test_without_the_wish_the_features_are_the_encoder_s_own_bit_for_bit(
    files: WeightFiles, speech: SpeechTracks
) -> None:
    with torch.no_grad():
        own = build_audio_encoder(files).stream(speech.waveforms[0]).gather(torch.arange(100))
        assert torch.equal(features(files, speech, close_mouth=False), own)
    assert speech.duration_s == Fraction(4)
    assert np.isfinite(own.numpy()).all()
