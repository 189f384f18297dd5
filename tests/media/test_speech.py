from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import librosa
import numpy as np
import pyloudnorm
import pytest

from infinitalk_cli.errors import InputError, MediaError
from infinitalk_cli.media.speech import ReadOnce, prepare_speech
from tests.media.made import noise, write_sound, write_wav


def sound(
    folder: Path, name: str, seconds: float, *, rate: int = 16_000, channels: int = 1, level: float = 0.1
) -> Path:
    return write_wav(folder / f"{name}.wav", noise(int(seconds * rate), channels, seed=len(name), level=level), rate)


def test_one_speaker_is_what_librosa_and_pyloudnorm_make_of_the_file(tmp_path: Path) -> None:
    samples = noise(100_000, 2, level=0.02)
    path = write_wav(tmp_path / "voice.wav", samples, 44_100)
    stored = (samples * 32767).round() / np.float32(32768)
    mono = librosa.resample(librosa.to_mono(stored.T), orig_sr=44_100, target_sr=16_000)
    loudness = pyloudnorm.Meter(16_000).integrated_loudness(mono)
    tracks = prepare_speech([path], tmp_path)
    (waveform,) = tracks.waveforms
    assert waveform.dtype == np.float32
    assert tracks.num_samples == (len(mono),) == (len(waveform),)
    assert np.abs(waveform - mono * 10 ** ((-23 - loudness) / 20)).max() <= 2e-4
    assert pyloudnorm.Meter(16_000).integrated_loudness(np.array(waveform)) == pytest.approx(-23, abs=1e-4)


def test_duration_is_the_exact_one_of_the_original(tmp_path: Path) -> None:
    tracks = prepare_speech([write_wav(tmp_path / "a.wav", noise(44_101), 44_100)], tmp_path)
    assert tracks.duration_s == Fraction(44_101, 44_100)
    assert round(tracks.duration_s * 25) == 25


def test_para_pads_the_shorter_track(tmp_path: Path) -> None:
    first, second = sound(tmp_path, "a", 1.0), sound(tmp_path, "bb", 1.5)
    tracks = prepare_speech([first, second], tmp_path, "para")
    assert tracks.num_samples == (24_000, 24_000)
    assert tracks.duration_s == Fraction(3, 2)
    assert tracks.waveforms[0][:16_000].any()
    assert not tracks.waveforms[0][16_000:].any()
    assert tracks.waveforms[1][16_000:].any()


def test_add_puts_one_after_the_other(tmp_path: Path) -> None:
    first, second = sound(tmp_path, "a", 1.0), sound(tmp_path, "bb", 1.5, rate=48_000)
    tracks = prepare_speech([first, second], tmp_path, "add")
    assert tracks.num_samples == (40_000, 40_000)
    assert tracks.duration_s == Fraction(5, 2)
    assert not tracks.waveforms[0][16_000:].any()
    assert not tracks.waveforms[1][:16_000].any()
    assert [piece.start_s for piece in tracks.sound_track.pieces] == [0, 1]


@pytest.mark.parametrize("audio_type, num_samples", [("para", 16_000), ("add", 32_000)])
def test_a_speaker_without_a_file_is_silent_for_the_others_length(
    tmp_path: Path, audio_type: str, num_samples: int
) -> None:
    path = sound(tmp_path, "a", 1.0)
    tracks = prepare_speech([None, path], tmp_path, audio_type)  # pyright: ignore[reportArgumentType]
    assert tracks.num_samples == (num_samples, num_samples)
    assert tracks.silent_speakers == (True, False)
    assert not tracks.silent
    assert not tracks.waveforms[0].any()
    assert tracks.waveforms[1][-16_000:].any()


def test_one_file_may_serve_two_speakers(tmp_path: Path) -> None:
    path = sound(tmp_path, "a", 1.0)
    tracks = prepare_speech([path, path], tmp_path)
    assert np.array_equal(tracks.waveforms[0], tracks.waveforms[1])


def test_a_recording_may_begin_later(tmp_path: Path) -> None:
    first, second = sound(tmp_path, "a", 1.0), sound(tmp_path, "bb", 0.5)
    tracks = prepare_speech([first, second], tmp_path, starts_s=[0.0, 0.75])
    alone = prepare_speech([second], tmp_path).waveforms[0]
    assert tracks.duration_s == Fraction(5, 4)
    assert tracks.num_samples == (20_000, 20_000)
    assert not tracks.waveforms[1][:12_000].any()
    assert np.array_equal(tracks.waveforms[1][12_000:], alone)
    assert [piece.start_s for piece in tracks.sound_track.pieces] == [0, Fraction(3, 4)]


def test_of_one_conversation_each_speaker_hears_their_own_turns(tmp_path: Path) -> None:
    path = sound(tmp_path, "both", 2.0)
    whole = prepare_speech([path], tmp_path).waveforms[0].copy()
    tracks = prepare_speech([path, path], tmp_path, turns=[[(0.0, 0.5), (0.5, 0.75)], [(0.75, 2.5)]])
    first, second = tracks.waveforms
    assert np.array_equal(first[160 : 12_000 - 160], whole[160 : 12_000 - 160])  # turns that touch: no gap
    assert not first[12_000:].any()
    assert not second[:12_000].any()
    assert np.array_equal(second[12_000 + 160 :], whole[12_000 + 160 :])
    assert [piece.path for piece in tracks.sound_track.pieces] == [path]  # heard once


def test_a_silent_file_is_left_as_it_is_and_reported(tmp_path: Path) -> None:
    tracks = prepare_speech([write_wav(tmp_path / "quiet.wav", np.zeros((16_000, 1), np.float32), 16_000)], tmp_path)
    assert tracks.silent
    assert not tracks.waveforms[0].any()


@pytest.mark.parametrize("seconds", [0.05, 0.2, 0.39])
def test_sound_too_short_for_the_meter_is_levelled_all_the_same(tmp_path: Path, seconds: float) -> None:
    tracks = prepare_speech([sound(tmp_path, "blip", seconds, level=0.01)], tmp_path)
    level_db = 10 * np.log10(np.mean(np.square(tracks.waveforms[0], dtype=np.float64)))
    assert level_db == pytest.approx(-23, abs=4)  # K-weighting aside
    assert not tracks.silent


def test_the_sound_track_keeps_rate_and_channels_of_the_original(tmp_path: Path) -> None:
    kept = prepare_speech([sound(tmp_path, "a", 0.5, rate=44_100, channels=2)], tmp_path).sound_track
    assert (kept.rate, kept.num_channels, kept.gain) == (44_100, 2, 1.0)
    odd = prepare_speech([sound(tmp_path, "b", 0.5, rate=96_000)], tmp_path).sound_track
    assert (odd.rate, odd.num_channels) == (48_000, 1)
    mixed = prepare_speech([sound(tmp_path, "c", 0.5, channels=2), sound(tmp_path, "d", 0.5, rate=44_100)], tmp_path)
    assert (mixed.sound_track.rate, mixed.sound_track.num_channels) == (44_100, 2)


def test_the_sound_of_a_video_is_used(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "clip.mp4", noise(44_100), 44_100, "aac", picture=True)
    assert prepare_speech([path], tmp_path).num_samples[0] == pytest.approx(16_000, abs=20)


def test_waveforms_can_become_tensors_without_a_warning(tmp_path: Path) -> None:
    import torch

    (waveform,) = prepare_speech([sound(tmp_path, "a", 0.5)], tmp_path).waveforms
    assert torch.from_numpy(waveform[:100]).shape == (100,)


def test_nobody_speaking_or_three_speakers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no speaker has a sound file"):
        prepare_speech([None, None], tmp_path)
    with pytest.raises(InputError, match="3 speakers"):
        prepare_speech([None, None, None], tmp_path)


def test_a_full_work_folder_is_a_media_error(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    path = sound(tmp_path, "a", 3.0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(MediaError, match="cannot be written") as caught:
            prepare_speech([path], tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.exit_code == 7


PEAK_MEMORY = """
import re, sys
from pathlib import Path
from infinitalk_cli.media.speech import prepare_speech
for name in sys.argv[2:]:
    tracks = prepare_speech([Path(name)], Path(sys.argv[1]))
    for block in tracks.sound_track.blocks():
        pass
    print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read where Linux shows it")
def test_memory_does_not_grow_with_the_length(tmp_path: Path) -> None:
    paths = [
        write_wav(tmp_path / f"{seconds}.wav", np.tile(noise(80_000), (seconds // 5, 1)), 16_000)
        for seconds in (5, 300)
    ]
    command = [sys.executable, "-c", PEAK_MEMORY, str(tmp_path), *map(str, paths)]
    peaks = [int(peak) for peak in subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()]
    assert peaks[1] - peaks[0] < 8_000  # kB; five minutes are 19 MB as float32


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="only Linux tells what a mapping holds")
def test_what_was_read_of_a_long_track_does_not_stay_in_memory(tmp_path: Path) -> None:
    def held_bytes() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssFile"))

    path, size = tmp_path / "track.f32", 20_000_000
    np.zeros(size // 4, np.float32).tofile(path)
    track = np.memmap(path, np.float32, mode="c")[100:]
    before = held_bytes()
    read = [ReadOnce(track)[start : start + 100_000].copy() for start in range(0, len(track), 100_000)]
    assert held_bytes() - before < size // 4
    assert sum(map(len, read)) == len(ReadOnce(track)) == len(track)
    assert track.sum() == 0  # all of it at once, which stays
    assert held_bytes() - before > size // 2
