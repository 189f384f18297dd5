from __future__ import annotations

from fractions import Fraction

import pytest

from infinitalk_cli.media.source_time import ShortSource, SourceTime

THREE_S = Fraction(3)


@pytest.mark.parametrize(
    "short_source, expected",
    [
        ("hold", [0, 2, 3, 4, 5, 7]),
        ("loop", [0, 2, 0, 1, 2, 1]),
        ("ping-pong", [0, 2, 3, 2, 1, 1]),
    ],
)
def test_what_is_seen_when_the_source_is_over(short_source: ShortSource, expected: list[int]) -> None:
    source = SourceTime(short_source, THREE_S)
    assert [source.at(Fraction(time_s)) for time_s in (0, 2, 3, 4, 5, 7)] == expected


def test_cut_starts_at_the_first_frame_that_shows_the_new_scene() -> None:
    cuts_s = [Fraction(2), Fraction(401, 100), Fraction(600_000_4, 1_000_000)]
    assert SourceTime().cut_frames(cuts_s, 200, 25) == (50, 101, 150)


def test_cuts_outside_the_video_and_those_too_close_to_another_are_none() -> None:
    cuts_s = [Fraction(1, 10), Fraction(2), Fraction(21, 10), Fraction(4), Fraction(9)]
    assert SourceTime().cut_frames(cuts_s, 200, 25) == (50, 100)


def test_loop_cuts_where_it_starts_again_and_at_each_cut_of_the_source() -> None:
    assert SourceTime("loop", THREE_S).cut_frames([Fraction(1)], 200, 25) == (25, 75, 100, 150, 175)
    assert SourceTime("loop", THREE_S).cut_frames([], 200, 25) == (75, 150)


def test_turning_round_is_no_cut_but_the_cuts_come_by_backwards() -> None:
    assert SourceTime("ping-pong", THREE_S).cut_frames([], 200, 25) == ()
    assert SourceTime("ping-pong", THREE_S).cut_frames([Fraction(1)], 200, 25) == (25, 126, 175)
    source = SourceTime("ping-pong", THREE_S)
    assert source.at(Fraction(126, 25)) < 1 <= source.at(Fraction(125, 25))


def test_source_of_one_frame_gives_no_endless_list() -> None:
    assert len(SourceTime("loop", Fraction(1, 25)).cut_frames([], 1000, 25)) < 1000 / 12 + 1
