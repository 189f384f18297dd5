from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pyloudnorm
import pytest

from infinitalk_cli.errors import InputError
from infinitalk_cli.media.sound_choice import (
    LEAD_S,
    TAIL_S,
    at_loudness,
    cut_speech,
    cut_track,
    spoken_stretch,
    track_of_file,
    with_other_files,
)
from infinitalk_cli.media.sound_track import SoundTrack
from infinitalk_cli.media.speech import prepare_speech
from tests.media.made import noise, write_wav

RATE = 16_000


def played(track: SoundTrack) -> np.ndarray:
    return np.concatenate(list(track.blocks()))


def test_stretch_is_cut_out_of_what_is_heard_and_of_what_is_played(tmp_path: Path) -> None:
    rate = 44_100
    path = write_wav(tmp_path / "a.wav", noise(4 * rate, 2), rate)
    whole = prepare_speech([path], tmp_path)
    cut = cut_speech(whole, Fraction(5, 4), Fraction(3))
    assert cut.duration_s == Fraction(7, 4)
    assert cut.num_samples == (28_000,)
    assert np.array_equal(cut.waveforms[0], whole.waveforms[0][20_000:48_000])
    assert np.array_equal(played(cut.sound_track), played(whole.sound_track)[55_125:132_300])
    to_the_end = cut_speech(cut, Fraction(1), Fraction(100))
    assert to_the_end.duration_s == Fraction(3, 4)
    assert np.array_equal(played(to_the_end.sound_track), played(whole.sound_track)[99_225:132_300])


def test_cut_keeps_the_places_of_two_recordings(tmp_path: Path) -> None:
    first = write_wav(tmp_path / "a.wav", noise(2 * RATE, seed=1), RATE)
    second = write_wav(tmp_path / "b.wav", noise(2 * RATE, seed=2), RATE)
    whole = prepare_speech([first, second], tmp_path, "add")
    cut = cut_speech(whole, Fraction(1), None)
    assert np.array_equal(played(cut.sound_track), played(whole.sound_track)[RATE:])


def test_use_that_begins_after_the_end_is_refused(tmp_path: Path) -> None:
    whole = prepare_speech([write_wav(tmp_path / "a.wav", noise(RATE), RATE)], tmp_path)
    with pytest.raises(InputError, match=r"over at 1\.00 s, before its use begins at 2\.00 s"):
        cut_speech(whole, Fraction(2), None)


def test_silence_is_trimmed_to_shortly_before_and_after_the_words(tmp_path: Path) -> None:
    samples = noise(6 * RATE, level=0.2)
    samples[: 2 * RATE] *= 0.002
    samples[4 * RATE :] *= 0.002
    whole = prepare_speech([write_wav(tmp_path / "a.wav", samples, RATE)], tmp_path)
    assert spoken_stretch(whole) == (2 - LEAD_S, 4 + TAIL_S)
    silent = prepare_speech([write_wav(tmp_path / "b.wav", samples * 0, RATE)], tmp_path)
    assert spoken_stretch(silent) == (0, 6)


def test_another_file_plays_from_the_start_and_is_silent_after_its_end(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "music.wav", noise(48_000, 2), 48_000)
    track = track_of_file(path, Fraction(3, 2))
    sound = played(track)
    assert (track.rate, sound.shape) == (48_000, (72_000, 2))
    assert sound[:48_000].any()
    assert not sound[48_000:].any()
    assert np.array_equal(played(cut_track(track, Fraction(1, 2), Fraction(1)))[:24_000], sound[24_000:48_000])
    with pytest.raises(InputError, match="has no sound"):
        track_of_file(Path(__file__).parents[2] / "examples/media/listener.mp4", Fraction(1))


def test_whole_mix_takes_the_place_of_the_voice(tmp_path: Path) -> None:
    voice = write_wav(tmp_path / "voice.wav", noise(RATE, seed=1), RATE)
    mix = write_wav(tmp_path / "mix.wav", noise(48_000, 2, seed=2), 48_000)
    heard = prepare_speech([None, voice], tmp_path, starts_s=[0.0, 0.5])
    track = with_other_files(heard.sound_track, {voice: mix})
    sound = played(track)
    assert (track.rate, track.num_channels, track.duration_s) == (48_000, 2, heard.duration_s)
    assert not sound[:24_000].any()
    assert np.array_equal(sound[24_000:], played(track_of_file(mix, Fraction(1))))


def test_track_is_brought_to_a_loudness_but_not_to_clipping(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", noise(4 * RATE, level=0.02), RATE)
    track = at_loudness(track_of_file(path, Fraction(4)), -20.0)
    assert pyloudnorm.Meter(RATE).integrated_loudness(played(track)[:, 0]) == pytest.approx(-20, abs=0.01)
    loud = at_loudness(track_of_file(path, Fraction(4)), -5.0)
    assert np.abs(played(loud)).max() == pytest.approx(0.99, abs=1e-3)


def test_speech_is_heard_at_the_wished_loudness_or_as_recorded(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", noise(2 * RATE, level=0.02), RATE)
    as_recorded = prepare_speech([path], tmp_path, lufs=None).waveforms[0]
    assert np.array_equal(as_recorded, played(track_of_file(path, Fraction(2)))[:, 0])
    louder = np.array(prepare_speech([path], tmp_path, lufs=-30.0).waveforms[0])
    assert pyloudnorm.Meter(RATE).integrated_loudness(louder) == pytest.approx(-30, abs=1e-3)
