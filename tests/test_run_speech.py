"""What the transformer hears, measured on the features of the demo's speech encoder."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from infinitalk_cli.errors import InputError
from infinitalk_cli.job import Job, Speaker
from infinitalk_cli.media.pauses import RAMP_FRAMES
from infinitalk_cli.media.sound_track import SoundTrack
from infinitalk_cli.media.speech import SpeechTracks, prepare_speech
from infinitalk_cli.networks import build_audio_encoder
from infinitalk_cli.profiles import find_profile
from infinitalk_cli.request import GenerateRequest
from infinitalk_cli.run_speech import embed_speech, read_speech
from infinitalk_cli.weights import WeightFiles, locate
from infinitalk_cli.wishes import SoundWishes
from tests.media.made import noise, write_wav
from training.random_tree import ensure_random_weights

RATE = 16_000
EXAMPLE_VIDEO = Path(__file__).parent.parent / "examples" / "media" / "listener.mp4"  # without sound
FIRST_SILENT, FIRST_LOUD = 25, 60


@pytest.fixture(scope="module")
def files() -> WeightFiles:
    return locate(ensure_random_weights(), num_speakers=1)


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


def wished(tmp_path: Path, **wishes: Any) -> tuple[SpeechTracks, SoundTrack | None]:
    """The speech and the sound of a job of one recording, of a second of noise, after a wish."""
    path = write_wav(tmp_path / "speech.wav", noise(RATE, level=0.2), RATE)
    job = Job(EXAMPLE_VIDEO, "", (Speaker(path),), is_video=True)
    request = GenerateRequest(job, tmp_path / "out.mp4", find_profile("demo"), sound=SoundWishes(**wishes))
    return read_speech(request, job, tmp_path)


def files_of(track: SoundTrack | None) -> list[str]:
    assert track is not None
    return [piece.path.name for piece in track.pieces]


def test_lips_may_follow_another_file_than_the_one_that_plays(tmp_path: Path) -> None:
    vocals = write_wav(tmp_path / "vocals.wav", noise(RATE, seed=5), RATE)
    speech, sound = wished(tmp_path, drive_audio=(vocals,))
    assert files_of(sound) == ["speech.wav"]
    assert np.array_equal(speech.waveforms[0], prepare_speech([vocals], tmp_path).waveforms[0])


def test_mp4_may_play_a_file_or_nothing(tmp_path: Path) -> None:
    music = write_wav(tmp_path / "music.wav", noise(2 * RATE), RATE)
    assert files_of(wished(tmp_path)[1]) == ["speech.wav"]
    assert files_of(wished(tmp_path, output_audio=music)[1]) == ["music.wav"]
    assert wished(tmp_path, output_sound="none")[1] is None
    with pytest.raises(InputError, match="has no sound"):
        wished(tmp_path, output_sound="source")


def test_stretches_and_loudness_reach_the_speech(tmp_path: Path) -> None:
    speech, sound = wished(tmp_path, start_s=0.2, end_s=0.7, drive_loudness="off")
    assert (speech.duration_s, speech.num_samples) == (Fraction(1, 2), (8000,))
    assert sound is not None
    assert (sound.skip_s, sound.duration_s) == (Fraction(1, 5), Fraction(1, 2))
    quiet = float(np.abs(speech.waveforms[0]).max())  # before the next call writes its own files
    louder = wished(tmp_path, drive_loudness=-5.0)[0].waveforms[0]
    assert np.abs(louder).max() > 1.5 * quiet
