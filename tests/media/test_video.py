from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infinitalk_cli.errors import InputError
from infinitalk_cli.media.video import VideoReader, is_video
from tests.media.made import (
    noise,
    number_of,
    numbered_frame,
    turn_by_metadata,
    write_sound,
    write_video,
    write_wav,
)


def numbers_at(path: Path, times_s: list[Fraction] | list[float]) -> list[int]:
    with VideoReader(path) as reader:
        return [number_of(reader.frame_at_time(time_s)) for time_s in times_s]


@pytest.mark.parametrize(
    "name, codec, rate",
    [
        ("clip.mp4", "libx264", Fraction(30)),
        ("clip.mp4", "libx264", Fraction(30_000, 1001)),
        ("clip.mkv", "libx264", Fraction(24)),
        ("clip.mp4", "libx265", Fraction(15)),
        ("clip.mkv", "libsvtav1", Fraction(25)),
        ("clip.webm", "libvpx-vp9", Fraction(10)),
        ("clip.ts", "libx264", Fraction(25)),
        ("clip.avi", "mpeg4", Fraction(25)),
    ],
)
def test_frames_are_found_by_time_at_any_constant_rate(tmp_path: Path, name: str, codec: str, rate: Fraction) -> None:
    num_frames = int(3 * rate) + 2
    options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    time_base = Fraction(1, 25) if codec == "mpeg4" else Fraction(1, 90_000)
    times_s = [i / rate for i in range(num_frames)]
    path = write_video(tmp_path / name, times_s, codec=codec, rate=rate, time_base=time_base, options=options)
    asked_s = [Fraction(0), Fraction(1, 7), Fraction(1), Fraction(72, 25)]
    assert numbers_at(path, asked_s) == [round(time_s * rate) for time_s in asked_s]


def test_a_variable_rate_is_followed_by_its_timestamps(tmp_path: Path) -> None:
    shown_from_s = [0.0, 3.0, 3.04, 3.08, 10.0, 10.5]
    path = write_video(tmp_path / "slides.mp4", shown_from_s)
    assert numbers_at(path, [0.0, 2.88, 3.0, 3.07, 5.76, 9.9, 10.0, 11.0]) == [0, 0, 1, 3, 3, 3, 4, 5]


def test_time_counts_from_the_first_frame(tmp_path: Path) -> None:
    path = write_video(tmp_path / "late.mkv", [5 + i / 25 for i in range(20)])
    assert numbers_at(path, [0.0, 0.4]) == [0, 10]


def test_the_last_frame_stays_beyond_the_end(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", [i / 25 for i in range(10)])
    with VideoReader(path) as reader:
        assert number_of(reader.frame_at_time(0.0)) == 0
        assert [number_of(reader.frame_at_time(time_s)) for time_s in (5.0, 1000.0, 99_999.0)] == [9, 9, 9]
        assert number_of(reader.frame_at_index(500)) == 9
    assert numbers_at(path, [99_999.0]) == [9]


def test_frames_can_be_asked_for_in_any_order(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", [i / 2 for i in range(60)], rate=2)  # 30 s: far enough to seek
    with VideoReader(path) as reader:
        for time_s in (0, 25, 3, 29, 29.4, 14, 0):
            assert number_of(reader.frame_at_time(time_s)) == round(time_s * 2 + 0.01)
        for index in (40, 3, 4, 59, 0):
            assert number_of(reader.frame_at_index(index)) == index


@pytest.mark.parametrize("name, codec", [("clip.ts", "libx264"), ("clip.gif", "gif")])
def test_going_far_works_where_the_file_has_no_index(tmp_path: Path, name: str, codec: str) -> None:
    path = write_video(
        tmp_path / name,
        [i / 2 for i in range(60)],
        codec=codec,
        rate=2,
        time_base=Fraction(1, 100),
        pixel_format="rgb8" if codec == "gif" else "yuv420p",
    )
    assert numbers_at(path, [0.0, 27.0, 2.0, 29.0, 14.0]) == [0, 54, 4, 58, 28]


@pytest.mark.parametrize("quarter_turns", [0, 1, 2, 3])
def test_rotation_metadata_is_honoured(tmp_path: Path, quarter_turns: int) -> None:
    upright = np.zeros((64, 128, 3), np.uint8)
    upright[:32, :64] = (220, 30, 30)
    stored = np.ascontiguousarray(np.rot90(upright, quarter_turns))  # against the clock; the player turns it back
    path = write_video(tmp_path / "phone.mp4", [0.0, 0.04], pictures=[stored, stored], options={"crf": "5"})
    with VideoReader(turn_by_metadata(path, quarter_turns)) as reader:
        assert reader.first_size == (64, 128)
        frame = np.asarray(reader.frame_at_time(0)).astype(int)
    assert np.abs(frame - upright)[4:-4, 4:-4].mean() < 6


def test_pixels_that_are_not_square_are_made_so(tmp_path: Path) -> None:
    import av

    path = tmp_path / "wide.mp4"
    with av.open(str(path), "w") as file:
        video = file.add_stream("libx264", rate=25)
        video.height, video.width, video.pix_fmt = 48, 64, "yuv420p"
        video.codec_context.sample_aspect_ratio = Fraction(3, 2)
        frame = av.VideoFrame.from_ndarray(numbered_frame(3), format="rgb24")
        file.mux(video.encode(frame))
        file.mux(video.encode(None))
    with VideoReader(path) as reader:
        assert reader.first_size == (48, 96)


def test_the_length_is_told(tmp_path: Path) -> None:
    with VideoReader(write_video(tmp_path / "clip.mp4", [i / 25 for i in range(50)], rate=25)) as reader:
        assert reader.duration_s == pytest.approx(2.0)


def test_negative_times_and_indices_are_our_mistakes(tmp_path: Path) -> None:
    with VideoReader(write_video(tmp_path / "clip.mp4", [0.0])) as reader:
        with pytest.raises(ValueError, match="negative"):
            reader.frame_at_time(-0.1)
        with pytest.raises(ValueError, match="negative"):
            reader.frame_at_index(-1)


def test_one_frame_is_enough(tmp_path: Path) -> None:
    path = write_video(tmp_path / "one.mp4", [0.0])
    assert is_video(path)
    assert numbers_at(path, [0.0, 2.88]) == [0, 0]


def test_a_damaged_stretch_is_passed_over(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", [i / 25 for i in range(75)], options={"g": "10", "bf": "0"})
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + len(data) // 3
    data[start : start + 200] = b"\x00" * 200
    path.write_bytes(data)
    assert numbers_at(path, [0.0, 2.88]) == [0, 72]


class TestIsVideo:
    def test_judges_by_content_not_by_name(self, tmp_path: Path) -> None:
        Image.new("RGB", (8, 8)).save(tmp_path / "portrait.mp4", format="JPEG")
        write_video(tmp_path / "clip.mp4", [0.0, 0.04]).rename(tmp_path / "clip.png")
        assert not is_video(tmp_path / "portrait.mp4")
        assert is_video(tmp_path / "clip.png")

    @pytest.mark.parametrize("num_frames, moving", [(1, False), (3, True)])
    @pytest.mark.parametrize("suffix", ["gif", "png"])
    def test_a_gif_or_png_is_a_video_if_it_moves(
        self, tmp_path: Path, suffix: str, num_frames: int, moving: bool
    ) -> None:
        frames = [Image.fromarray(numbered_frame(20 * i)) for i in range(num_frames)]
        path = tmp_path / f"picture.{suffix}"
        frames[0].save(path, save_all=num_frames > 1, append_images=frames[1:], duration=100)
        assert is_video(path) is moving
        if moving:
            with VideoReader(path) as reader:
                assert [number_of(reader.frame_at_time(time_s)) for time_s in (0, 0.1, 0.2)] == [0, 20, 40]

    def test_what_has_no_picture_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "text.mp4").write_text("a prompt, not a video\n" * 100)
        with pytest.raises(InputError, match="cannot be read as a picture or a video"):
            is_video(tmp_path / "text.mp4")
        with pytest.raises(InputError, match="has no picture"):
            is_video(write_wav(tmp_path / "voice.wav", noise(1000), 16_000))
        with pytest.raises(InputError, match="does not exist"):
            is_video(tmp_path / "missing.mp4")

    def test_a_truncated_mp4_is_refused(self, tmp_path: Path) -> None:
        path = write_video(tmp_path / "clip.mp4", [i / 25 for i in range(30)])
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(InputError, match="damaged"):
            is_video(path)

    def test_a_video_with_sound_is_a_video(self, tmp_path: Path) -> None:
        assert is_video(write_sound(tmp_path / "clip.mp4", noise(8000), 16_000, "aac", picture=True))
