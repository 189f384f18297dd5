"""Who speaks when, read from subtitles."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infinitalk_cli.subtitles import BadSubtitles, NamedTurn, Turn, read_turns, share_out


def cue(times: str, *lines: str) -> str:
    return "\n".join(["1", times, *lines, "", ""])


FIRST = "00:00:00,000 --> 00:00:01,500"
SECOND = "00:01:02,250 --> 01:00:00,000"


def test_subrip_gives_names_times_and_words() -> None:
    text = "\ufeff".strip("\ufeff") + cue(FIRST, "Anna: <i>Hello</i>,", "Ben.") + cue(SECOND, "Ben: Hello.")
    assert read_turns(text) == (
        NamedTurn("Anna", Turn(0.0, 1.5, "Hello, Ben.")),
        NamedTurn("Ben", Turn(62.25, 3600.0, "Hello.")),
    )


def test_webvtt_has_voices_settings_and_blocks_that_are_no_cues() -> None:
    text = (
        "WEBVTT - a title\n\nNOTE nobody\nspeaks here\n\nSTYLE\n::cue {}\n\n"
        "00:01.000 --> 00:02.000 align:start line:0\n<v.loud Anna B.>Hello</v>\n\n"
        "an-id\n01:00:00.5 --> 01:00:01\n- Ben: I say: no.\r\n"
    )
    assert read_turns(text) == (
        NamedTurn("Anna B.", Turn(1.0, 2.0, "Hello")),
        NamedTurn("Ben", Turn(3600.5, 3601.0, "I say: no.")),
    )


def test_turns_know_their_line() -> None:
    found = read_turns(cue(FIRST, "Anna: One.", "Ben: Two.") + cue(SECOND, "Ben: Three."))
    assert [(named.line, named.turn.line) for named in found] == [(3, 3), (4, 4), (8, 8)]


def test_two_speakers_may_share_a_cue_and_order_is_that_of_time() -> None:
    found = read_turns(cue(SECOND, "Anna: Late.") + cue(FIRST, "Anna: One.", "Ben: Two."))
    assert [(named.name, named.turn.text) for named in found] == [("Anna", "One."), ("Ben", "Two."), ("Anna", "Late.")]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "it holds no cue"),
        ("WEBVTT\n", "it holds no cue"),
        ("1\nno times\nHello\n", "line 1: a cue needs its times, 00:00:01,000 --> 00:00:02,500, not '1'"),
        (cue("00:00:01,000 --> 00:00:00,500", "A: b"), "line 2: the cue ends at 00:00:00,500, not after its start"),
        (cue("00:00:01,000 --> 00:00:01,000", "A: b"), "line 2: the cue ends at 00:00:01,000, not after its start"),
        (cue("00:00:61,000 --> 00:01:02,000", "A: b"), "line 2: '00:00:61,000' is no time such as 00:01:02,500"),
        (cue("00:00:01,000 -->", "A: b"), "line 2: '' is no time"),
        (cue("00:00:01,000 --> 99:00:02,000", "A: b"), "line 2: 99:00:02,000 is later than a day"),
        (cue("x --> y") * 9, "and 4 more"),
    ],
)
def test_bad_times_are_told_with_their_line(text: str, told: str) -> None:
    with pytest.raises(BadSubtitles) as caught:
        read_turns(text)
    assert told in str(caught.value)


TURNS = read_turns(cue(FIRST, "Anna: One.") + cue(SECOND, "Ben: Two."))
UNNAMED = read_turns(cue(FIRST, "One."))


def test_without_names_the_speakers_come_in_the_order_of_the_file() -> None:
    assert [own[0].text for own in share_out(TURNS, ["", ""], 2)] == ["One.", "Two."]
    assert [own[0].text for own in share_out(TURNS, ["BEN", "anna"], 2)] == ["Two.", "One."]
    assert share_out(UNNAMED, [""], 1) == ((Turn(0.0, 1.5, "One."),),)


@pytest.mark.parametrize(
    ("turns", "names", "told"),
    [
        (TURNS, [""], "it names 2 speakers where the job has 1: Anna, Ben"),
        (TURNS, ["Anna", "Eve"], "line 7: 'Ben' is not one of Anna, Eve"),
        (TURNS[:1], ["Anna", "Ben"], "it has no turn of Ben"),
        (UNNAMED, ["", ""], "it names 0 speakers where the job has 2; a line begins with one"),
        (UNNAMED, ["Anna", "Ben"], "line 3: nobody is named; it must begin with one of Anna, Ben"),
    ],
)
def test_a_turn_of_nobody_is_told(turns: tuple[NamedTurn, ...], names: list[str], told: str) -> None:
    with pytest.raises(BadSubtitles) as caught:
        share_out(turns, names, len(names))
    assert told in str(caught.value)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["1", "-->", FIRST, SECOND, "A: b", "<v", "<v A>", "", "\x00", "٣:٣ --> ٤:٤"])))
def test_any_text_is_turns_or_told(lines: list[str]) -> None:
    with suppress(BadSubtitles):
        assert all(0 <= named.turn.start_s < named.turn.end_s for named in read_turns("\n".join(lines)))
