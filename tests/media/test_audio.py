from __future__ import annotations

import wave
from pathlib import Path

import librosa
import numpy as np
import pytest

from infinitalk_cli.errors import InputError
from infinitalk_cli.media.audio import Resampler, Samples, SoundReader, cut_padding, silence
from tests.media.made import lag, noise, write_sound, write_video, write_wav


def read(path: Path) -> Samples:
    with SoundReader(path) as reader:
        return np.concatenate(list(reader.blocks()))


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000, 96_000])
@pytest.mark.parametrize("num_channels", [1, 2, 6])
def test_wav_is_read_sample_for_sample(tmp_path: Path, rate: int, num_channels: int) -> None:
    samples = noise(5000, num_channels)
    path = write_wav(tmp_path / "sound.wav", samples, rate)
    with SoundReader(path) as reader:
        read_back = np.concatenate(list(reader.blocks()))
        assert (reader.rate, reader.num_channels, reader.num_read) == (rate, num_channels, 5000)
    assert np.array_equal(read_back, (samples * 32767).round().astype(np.int16) / np.float32(32768))


@pytest.mark.parametrize("width, dtype, scale", [(1, "u1", 128.0), (4, "<i4", 2.0**31)])
def test_other_sample_widths_have_full_scale_one(tmp_path: Path, width: int, dtype: str, scale: float) -> None:
    wanted = np.array([0.0, 0.5, -0.5, -1.0], np.float32)
    stored = (wanted * scale + (128 if width == 1 else 0)).astype(np.int64).astype(dtype)
    with wave.open(str(tmp_path / "sound.wav"), "wb") as file:
        file.setparams((1, width, 16_000, 0, "NONE", ""))
        file.writeframes(stored.tobytes())
    assert read(tmp_path / "sound.wav")[:, 0] == pytest.approx(wanted, abs=1e-7)


@pytest.mark.parametrize(
    "name, codec, rate",
    [
        ("sound.m4a", "aac", 44_100),
        ("sound.mp4", "aac", 48_000),
        ("sound.mp3", "libmp3lame", 44_100),
        ("sound.opus", "libopus", 48_000),
        ("sound.webm", "libopus", 48_000),
        ("sound.flac", "flac", 44_100),
    ],
)
def test_compressed_sound_starts_and_ends_where_the_recording_did(
    tmp_path: Path, name: str, codec: str, rate: int
) -> None:
    samples = noise(100_000)
    decoded = read(write_sound(tmp_path / name, samples, rate, codec))[:, 0]
    assert abs(len(decoded) - 100_000) <= rate // 1000  # mp4 counts its length in milliseconds
    assert lag(decoded, samples[:, 0], at=20_000, length=30_000) == 0


def test_without_a_stated_length_codec_padding_stays(tmp_path: Path) -> None:
    decoded = read(write_sound(tmp_path / "sound.mkv", noise(100_000), 44_100, "aac"))
    assert 100_000 <= len(decoded) <= 100_000 + 2 * 1024


def test_sound_of_a_video_that_starts_late_gets_silence_in_front(tmp_path: Path) -> None:
    samples = noise(40_000)
    path = write_sound(tmp_path / "clip.mp4", samples, 44_100, "aac", start=22_050, picture=True)
    decoded = read(path)[:, 0]
    assert not decoded[:20_000].any()
    # The mp4 states the start in whole milliseconds.
    assert abs(lag(decoded[22_050:], samples[:, 0], at=10_000, length=20_000)) <= 44
    assert len(decoded) == pytest.approx(62_050, abs=45)


def test_sound_of_a_video_that_starts_with_it_has_no_gap(tmp_path: Path) -> None:
    samples = noise(40_000)
    decoded = read(write_sound(tmp_path / "clip.mp4", samples, 44_100, "aac", picture=True))[:, 0]
    assert lag(decoded, samples[:, 0], at=10_000, length=20_000) == 0


def test_more_than_two_channels_can_be_mixed_down_by_their_places(tmp_path: Path) -> None:
    left_only = np.zeros((4000, 6), np.float32)
    left_only[:, 0] = 0.5
    with SoundReader(write_wav(tmp_path / "six.wav", left_only, 48_000), at_most_stereo=True) as reader:
        assert reader.num_channels == 2
        mixed = np.concatenate(list(reader.blocks()))
    assert mixed[:, 0].min() > 0.2
    assert not mixed[:, 1].any()


def test_eight_channels_are_read(tmp_path: Path) -> None:
    samples = np.tile(np.arange(8) / 10, (3000, 1)).astype(np.float32)
    assert read(write_wav(tmp_path / "eight.wav", samples, 48_000)) == pytest.approx(samples, abs=1e-4)


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000])
def test_streamed_resampling_equals_librosa_for_blocks_of_any_size(rate: int) -> None:
    samples = noise(rate * 3 + 17)
    edges = np.sort(np.random.default_rng(3).integers(0, len(samples), 40))
    streamed = np.concatenate(list(Resampler(rate, 16_000, 1).resample(np.split(samples, edges))))
    whole = librosa.resample(samples[:, 0], orig_sr=rate, target_sr=16_000, res_type="soxr_hq")
    assert len(streamed) == len(whole) == -(-len(samples) * 16_000 // rate)
    assert np.abs(streamed[:, 0] - whole).max() <= 2e-4


def test_resampling_to_the_same_rate_changes_nothing() -> None:
    samples = noise(1000, 2)
    assert np.array_equal(np.concatenate(list(Resampler(16_000, 16_000, 2).resample([samples]))), samples)


def test_one_sample_survives_resampling() -> None:
    (made,) = [block for block in Resampler(48_000, 16_000, 1).resample([noise(1)]) if len(block)]
    assert len(made) == 1


def test_padding_is_cut_at_the_stated_length_but_a_wrong_statement_is_not_believed() -> None:
    blocks = [noise(1024, seed=i) for i in range(20)]
    total = np.concatenate(blocks)
    assert np.array_equal(np.concatenate(list(cut_padding(blocks, 20_000))), total[:20_000])
    assert np.array_equal(np.concatenate(list(cut_padding(blocks, 10_000))), total)
    assert np.array_equal(np.concatenate(list(cut_padding(blocks, None))), total)


def test_silence_comes_in_bounded_blocks() -> None:
    blocks = list(silence(200_000, 2))
    assert sum(map(len, blocks)) == 200_000
    assert max(map(len, blocks)) <= 1 << 16
    assert list(silence(-1, 1)) == []


def test_a_video_without_sound_is_refused(tmp_path: Path) -> None:
    path = write_video(tmp_path / "mute.mp4", [i / 25 for i in range(5)])
    with pytest.raises(InputError, match=r"mute\.mp4 has no sound"):
        SoundReader(path)


def test_missing_empty_and_foreign_files_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "text.wav").write_text("this is not a sound\n" * 50)
    with pytest.raises(InputError, match="does not exist"):
        SoundReader(tmp_path / "missing.wav")
    with pytest.raises(InputError, match="is not a file"):
        SoundReader(tmp_path)
    with pytest.raises(InputError, match="0 bytes"):
        SoundReader(tmp_path / "empty.wav")
    with pytest.raises(InputError, match="cannot be read as a sound file") as caught:
        SoundReader(tmp_path / "text.wav")
    assert caught.value.exit_code == 2
    assert caught.value.hint


def test_a_playlist_cannot_make_the_reader_open_another_file(tmp_path: Path) -> None:
    write_wav(tmp_path / "secret.wav", noise(16_000), 16_000)
    (tmp_path / "list.wav").write_text("#EXTM3U\n#EXTINF:1,\nsecret.wav\n#EXT-X-ENDLIST\n")
    with pytest.raises(InputError):
        SoundReader(tmp_path / "list.wav")


def test_a_file_without_samples_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no sound samples"):
        SoundReader(write_wav(tmp_path / "none.wav", noise(1)[:0], 16_000))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_samples_that_are_not_numbers_are_refused_with_their_time(tmp_path: Path, bad: float) -> None:
    samples = noise(32_000)
    samples[17_000] = bad
    path = tmp_path / "bad.wav"
    write_sound(path, samples, 16_000, "pcm_f32le")
    with SoundReader(path) as reader, pytest.raises(InputError, match=r"NaN or infinite.*about 1\.0"):
        list(reader.blocks())


def test_a_sound_cut_off_in_the_middle_gives_what_is_there(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "sound.mp3", noise(200_000), 44_100, "libmp3lame")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert 60_000 < len(read(path)) < 140_000


def test_names_with_colons_spaces_and_foreign_letters_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "stimme: größe 语音"
    folder.mkdir()
    assert len(read(write_wav(folder / "a b#1%.wav", noise(100), 16_000))) == 100
