"""What the writer writes: frames, colours, sound, titles, in memory that does not grow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from infinitalk_cli.media.segments import complete_boxes
from infinitalk_cli.media.video import VideoReader
from infinitalk_cli.media.writer import to_pixels
from tests.media.made import lag, noise, read_sound, write_wav
from tests.media.writing import (
    frames,
    names_in,
    numbers_in,
    sound_track,
    static,
    writing,
)


def test_frames_arrive_in_order_at_25_a_second(tmp_path: Path) -> None:
    target = tmp_path / "out" / "talk.mp4"
    with writing(target) as writer:
        writer.write(frames(81))
        writer.write(frames(72, first=81))
        assert writer.num_frames == 153
        assert writer.finish() == target
    assert names_in(target.parent) == ["talk.mp4"]
    assert numbers_in(target) == list(range(153))
    with av.open(str(target)) as file:
        stream = file.streams.video[0]
        times = [frame.time for frame in file.decode(stream)]
        assert (stream.average_rate, stream.codec_context.name, stream.pix_fmt) == (25, "h264", "yuv420p")
        assert times == pytest.approx([i / 25 for i in range(153)])


def test_the_index_comes_first(tmp_path: Path) -> None:
    with writing(tmp_path / "a.mp4") as writer:
        writer.write(frames(10))
        writer.finish()
    kinds = [kind for kind, _ in complete_boxes(tmp_path / "a.mp4")]
    assert kinds.index(b"moov") < kinds.index(b"mdat")
    assert b"moof" not in kinds


def test_colours_are_bt709_in_tags_and_in_truth(tmp_path: Path) -> None:
    colours = np.array(
        [[255, 0, 0], [0, 255, 0], [0, 0, 255], [200, 120, 90], [128, 128, 128], [20, 200, 220]], np.uint8
    )
    picture = np.repeat(np.repeat(colours[None], 32, axis=0), 32, axis=1)
    with writing(tmp_path / "a.mp4", height=32, width=192, crf=4) as writer:
        writer.write(np.stack([picture] * 3))
        writer.finish()
    with av.open(str(tmp_path / "a.mp4")) as file:
        codec = file.streams.video[0].codec_context
        assert (codec.color_primaries, codec.color_trc, codec.colorspace, codec.color_range) == (1, 1, 1, 1)
        frame = next(file.decode(video=0))
    luma = np.frombuffer(frame.planes[0], np.uint8).reshape(32, -1)[16, 16:192:32].astype(float)
    assert luma == pytest.approx(16 + 219 / 255 * colours @ np.array([0.2126, 0.7152, 0.0722]), abs=1.5)
    with VideoReader(tmp_path / "a.mp4") as reader:
        seen = np.asarray(reader.frame_at_time(0))
    assert np.abs(seen[16, 16::32].astype(int) - colours).max() <= 4


def test_tensors_are_rounded_to_8_bits_and_clipped(tmp_path: Path) -> None:
    levels = torch.tensor([-1.5, -1.0, -0.9999, 0.0, 0.0041, 0.9999, 1.0, 1.5])
    pixels = to_pixels(levels.view(1, 1, 1, 1, 8).expand(1, 3, 2, 4, 8))
    assert pixels.shape == (2, 4, 8, 3)
    assert pixels[1, 2, :, 0].tolist() == [0, 0, 0, 128, 128, 255, 255, 255]


def test_a_tensor_is_written_like_its_pixels(tmp_path: Path) -> None:
    pixels = frames(20)
    tensor = torch.from_numpy(pixels).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    assert np.array_equal(to_pixels(tensor), pixels)
    with writing(tmp_path / "a.mp4") as writer:
        writer.write(tensor)
        writer.finish()
    assert numbers_in(tmp_path / "a.mp4") == list(range(20))


@pytest.mark.parametrize("rate, channels", [(44_100, 2), (48_000, 1), (16_000, 1), (22_050, 2)])
def test_sound_is_the_original_within_a_millisecond(tmp_path: Path, rate: int, channels: int) -> None:
    track = sound_track(tmp_path, 4.0, rate=rate, channels=channels)
    played = noise(4 * rate, channels)
    with writing(tmp_path / "a.mp4", sound=track) as writer:
        for start in range(0, 100, 30):
            writer.write(frames(min(30, 100 - start), first=start))
        writer.finish()
    with av.open(str(tmp_path / "a.mp4")) as file:
        stream = file.streams.audio[0]
        assert (stream.codec_context.name, stream.rate, stream.channels) == ("aac", rate, channels)
        assert stream.duration is not None
        assert stream.time_base is not None
        assert stream.duration * stream.time_base == 4
        assert file.duration == 4_000_000
    heard = read_sound(tmp_path / "a.mp4")
    for at in (rate // 10, 3 * rate):
        assert lag(heard[:, 0], played[:, 0], at=at, length=rate // 2) == 0
    assert np.corrcoef(heard[: 4 * rate, -1], played[:, -1])[0, 1] > 0.95


def test_sound_longer_than_the_frames_is_cut_and_shorter_sound_ends_early(tmp_path: Path) -> None:
    for num_frames, wanted_s in ((10, 0.4), (60, 1.0)):
        path = tmp_path / f"{num_frames}.mp4"
        track = sound_track(tmp_path, 1.0)
        with writing(path, sound=track) as writer:
            writer.write(frames(num_frames))
            writer.finish()
        with av.open(str(path)) as file:
            stream = file.streams.audio[0]
            assert stream.duration == round(wanted_s * 44_100)
        assert len(numbers_in(path)) == num_frames


def test_titles_are_written(tmp_path: Path) -> None:
    tags = {"title": "Ein Gruß", "comment": "seed 42"}
    with writing(tmp_path / "a.mp4", metadata=tags) as writer:
        writer.write(frames(2))
        writer.finish()
    with av.open(str(tmp_path / "a.mp4")) as file:
        assert tags.items() <= file.metadata.items()


def test_a_lower_crf_gives_a_larger_file(tmp_path: Path) -> None:
    sizes = list[int]()
    for crf in (10, 40):
        with writing(tmp_path / f"{crf}.mp4", crf=crf) as writer:
            writer.write(static(10))
            sizes.append(writer.finish().stat().st_size)
    assert sizes[0] > 2 * sizes[1]


def test_odd_sizes_and_frames_of_another_size_are_our_mistakes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="even"), writing(tmp_path / "a.mp4", height=33):
        pass
    with writing(tmp_path / "a.mp4") as writer:
        with pytest.raises(ValueError, match="a frame of"):
            writer.write(np.zeros((1, 16, 16, 3), np.uint8))


PEAK_MEMORY = """
import re, sys
from fractions import Fraction
from pathlib import Path
import numpy as np
from infinitalk_cli.media.sound_track import SoundPiece, SoundTrack
from infinitalk_cli.media.part_folder import PartFolder
from infinitalk_cli.media.segments import Picture
from infinitalk_cli.media.writer import VideoWriter
for num_frames in (100, 1600):
    sound = SoundTrack((SoundPiece(Path(sys.argv[1])),), 16_000, 1, Fraction(num_frames, 25))
    with PartFolder(Path(sys.argv[2])) as folder, VideoWriter(folder, Picture(32, 32), sound=sound) as writer:
        for _ in range(num_frames // 50):
            writer.write(np.random.default_rng(0).integers(0, 256, (50, 32, 32, 3), dtype=np.uint8))
        writer.finish()
    print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read where Linux shows it")
def test_memory_does_not_grow_with_the_number_of_frames(tmp_path: Path) -> None:
    sound = write_wav(tmp_path / "a.wav", np.tile(noise(16_000), (120, 1)), 16_000)
    command = [sys.executable, "-c", PEAK_MEMORY, str(sound), str(tmp_path / "a.mp4")]
    peaks = [int(peak) for peak in subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()]
    assert peaks[1] - peaks[0] < 10_000  # kB
