from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from infinitalk_cli.media.sound_track import SampleFeed, SoundPiece, SoundTrack, kept_rate, without_clipping
from tests.media.made import Samples, noise, write_wav


def heard(track: SoundTrack) -> Samples:
    return np.concatenate(list(track.blocks()))


def track_of(*pieces: SoundPiece, rate: int = 44_100, channels: int = 1, seconds: float = 1.0) -> SoundTrack:
    return SoundTrack(pieces, rate, channels, Fraction(seconds))


def test_one_file_sounds_as_it_is(tmp_path: Path) -> None:
    samples = noise(44_100 * 2, 2)
    path = write_wav(tmp_path / "a.wav", samples, 44_100)
    played = heard(track_of(SoundPiece(path), channels=2, seconds=2.0))
    assert played.shape == samples.shape
    assert np.abs(played - samples).max() < 1e-4


def test_pieces_begin_at_their_times_and_the_rest_is_silent(tmp_path: Path) -> None:
    samples = noise(22_050)
    path = write_wav(tmp_path / "a.wav", samples, 44_100)
    played = heard(track_of(SoundPiece(path, Fraction(3, 2)), seconds=3.0))
    assert len(played) == 3 * 44_100
    assert not played[:66_150].any()
    assert np.abs(played[66_150 : 66_150 + 22_050] - samples).max() < 1e-4
    assert not played[66_150 + 22_050 :].any()


def test_pieces_are_added_and_mono_is_heard_on_both_sides(tmp_path: Path) -> None:
    left, mono = noise(44_100, 2, seed=1), noise(44_100, 1, seed=2)
    paths = [write_wav(tmp_path / f"{i}.wav", samples, 44_100) for i, samples in enumerate((left, mono))]
    played = heard(track_of(*map(SoundPiece, paths), channels=2))
    assert np.abs(played - (left + mono)).max() < 2e-4


def test_pieces_of_another_rate_are_resampled_in_place(tmp_path: Path) -> None:
    seconds = np.arange(16_000) / 16_000
    tone = 0.3 * np.sin(2 * np.pi * 440 * seconds)[:, None].astype(np.float32)
    played = heard(track_of(SoundPiece(write_wav(tmp_path / "a.wav", tone, 16_000)), rate=48_000))
    wanted = 0.3 * np.sin(2 * np.pi * 440 * np.arange(48_000) / 48_000)
    assert np.abs(played[500:-500, 0] - wanted[500:-500]).max() < 1e-3


def test_a_mix_that_would_clip_is_turned_down_as_a_whole(tmp_path: Path) -> None:
    loud = noise(44_100, level=0.9)
    path = write_wav(tmp_path / "a.wav", loud, 44_100)
    track = track_of(SoundPiece(path), SoundPiece(path))
    assert np.abs(heard(track)).max() > 1.0
    quieter = heard(without_clipping(track))
    assert np.abs(quieter).max() == pytest.approx(0.99, abs=1e-5)
    assert np.abs(quieter / np.abs(quieter).max() - heard(track) / np.abs(heard(track)).max()).max() < 1e-5


def test_a_mix_that_does_not_clip_is_left_alone(tmp_path: Path) -> None:
    track = track_of(SoundPiece(write_wav(tmp_path / "a.wav", noise(44_100), 44_100)))
    assert without_clipping(track) is track


def test_common_rates_are_kept_and_others_become_48_khz() -> None:
    assert [kept_rate(rate) for rate in (8_000, 16_000, 44_100, 48_000)] == [8_000, 16_000, 44_100, 48_000]
    assert [kept_rate(rate) for rate in (6_000, 37_800, 88_200, 192_000)] == [48_000] * 4


def test_a_feed_hands_out_any_portion_and_ends_short() -> None:
    samples = noise(1000)
    feed = SampleFeed(iter(np.split(samples, [10, 11, 400])))
    portions = [feed.take(n) for n in (5, 5, 300, 0, 500, 500, 3)]
    assert [len(portion) for portion in portions] == [5, 5, 300, 0, 500, 190, 0]
    assert np.array_equal(np.concatenate([portion for portion in portions if len(portion)]), samples)
