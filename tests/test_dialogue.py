from __future__ import annotations

import pytest

from infinitalk_cli.dialogue import BadDialogue, Line, parse_dialogue


def test_tags_say_who_speaks() -> None:
    text = "(s1) How was the trip?\nTell me. (s2) Long, but worth it.(S1)Good. ( s2 ) "
    assert parse_dialogue(text) == (
        Line(0, "How was the trip?\nTell me."),
        Line(1, "Long, but worth it."),
        Line(0, "Good."),
    )


def test_text_without_tags_is_one_speaker_s() -> None:
    assert parse_dialogue("No tags (s) here.") == ()


@pytest.mark.parametrize(
    "text, told",
    [
        ("Hello (s1) there", r"nobody says what stands before \(s1\)"),
        ("(s3) Hello", r"has a speaker \(s3\), but there are \(s1\) and \(s2\) alone"),
        ("(s1) ... (s2) !", "has no words to speak"),
        ("  ", "has no words to speak"),
    ],
)
def test_words_that_nobody_would_say_are_told(text: str, told: str) -> None:
    with pytest.raises(BadDialogue, match=told):
        parse_dialogue(text)
