from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from infinitalk_cli.errors import InputError
from infinitalk_cli.media.image import BUCKETS
from infinitalk_cli.media.reference import open_reference
from infinitalk_cli.media.source_time import ShortSource
from infinitalk_cli.media.video import VideoReader
from tests.media.made import noise, number_of, numbered_frame, turn_by_metadata, write_sound, write_video

NTSC_FPS = Fraction(30_000, 1001)
TEN_MINUTES_S = 600


def phone_video(path: Path) -> tuple[Path, list[Fraction]]:
    """Ten minutes as a phone writes them: on a grid of 29.97 frames a second of which it keeps some, lying on the side.

    Frame i shows the low byte of i. Returns the file and the time of each frame.
    """
    rng = np.random.default_rng(0)
    steps = rng.choice([1, 2, 3, 29, 31], size=4000, p=[0.3, 0.1, 0.25, 0.2, 0.15]).cumsum()
    grid = [0, *(int(step) for step in steps if step < TEN_MINUTES_S * NTSC_FPS)]
    times_s = [number / NTSC_FPS for number in grid]
    pictures = [np.ascontiguousarray(np.rot90(numbered_frame(i % 256, 32, 64))) for i in range(len(times_s))]
    options = {"preset": "ultrafast", "g": "250"}
    write_video(path, times_s, rate=NTSC_FPS, pictures=pictures, options=options)
    return turn_by_metadata(path, 1), times_s


def test_reference_frames_of_ten_minutes_of_a_turned_variable_rate_video_are_those_of_their_time(
    tmp_path: Path,
) -> None:
    path, times_s = phone_video(tmp_path / "phone.mp4")
    half_a_frame_s = 1 / NTSC_FPS / 2
    starts = [*range(0, 1500, 72), *range(7200, 7500, 72), *range(14_000, TEN_MINUTES_S * 25, 72)]
    with VideoReader(path) as reader:
        assert reader.first_size == (32, 64)
        for start in starts:
            asked_s = Fraction(start, 25)
            on_screen = max(i for i, time_s in enumerate(times_s) if time_s <= asked_s + half_a_frame_s)
            assert number_of(reader.frame_at_time(asked_s)) == on_screen % 256
            # The frame is one that a player shows within half a frame of the asked time.
            shown_until_s = times_s[on_screen + 1] if on_screen + 1 < len(times_s) else TEN_MINUTES_S
            assert times_s[on_screen] - half_a_frame_s <= asked_s <= shown_until_s


def brightness(path: Path, starts: list[int], short_source: ShortSource) -> list[int]:
    reference = open_reference(path, BUCKETS["demo"], is_video=True, short_source=short_source)
    return [round(float(reference.frame(start).mean() + 1) / 2 * 255) for start in starts]


@pytest.mark.parametrize(
    "short_source, expected",
    [("hold", [10, 60, 90, 90, 90]), ("loop", [10, 60, 10, 60, 10]), ("ping-pong", [10, 60, 90, 50, 10])],
)
def test_short_source_is_held_repeated_or_turned_round(
    tmp_path: Path, short_source: ShortSource, expected: list[int]
) -> None:
    pictures = [np.full((64, 64, 3), 10 * i, np.uint8) for i in range(1, 10)]
    times_s = [Fraction(i, 5) for i in range(9)]  # 1.8 s
    path = write_video(tmp_path / "short.mp4", times_s, rate=5, pictures=pictures, options={"crf": "1"})
    assert brightness(path, [0, 25, 45, 70, 90], short_source) == pytest.approx(expected, abs=3)


def test_length_is_measured_where_the_file_states_none(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.ts", [1 + i / 25 for i in range(50)], rate=25)
    with VideoReader(path) as reader:
        assert float(reader.measure_length()) == pytest.approx(2.0, abs=0.001)


def test_video_with_sound_only_is_refused(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "sound.mp4", noise(8000), 16_000, "aac")
    with pytest.raises(InputError, match="has no picture in it"):
        open_reference(path, BUCKETS["demo"], is_video=True)


def test_video_whose_frames_are_all_missing_is_refused(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", [i / 25 for i in range(30)])
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 4
    stop = data.index(b"moov") - 4
    data[start:stop] = bytes(stop - start)
    path.write_bytes(data)
    with pytest.raises(InputError, match="holds no readable picture"):
        open_reference(path, BUCKETS["demo"], is_video=True)
