from __future__ import annotations

import pytest

from infinitalk_cli.media.phonemes import open_phonemizer, pieces, tag_words


def test_long_phonemes_are_cut_after_sentences_then_after_lesser_marks() -> None:
    text = "aaaa bbbb! cccc, dddd eeee. ffff gggg hhhh"
    assert list(pieces(text, 30)) == ["aaaa bbbb! cccc, dddd eeee.", "ffff gggg hhhh"]
    assert list(pieces(text, 18)) == ["aaaa bbbb!", "cccc, dddd eeee.", "ffff gggg hhhh"]
    assert list(pieces("aaaa, bbbb cccc", 12)) == ["aaaa,", "bbbb cccc"]
    assert list(pieces("a" * 25, 10)) == ["a" * 10, "a" * 10, "a" * 5]
    assert list(pieces("  ", 10)) == []


@pytest.mark.parametrize("length", [1, 509, 510, 511, 2000])
def test_no_phoneme_is_lost(length: int) -> None:
    text = "".join("abc de. f, "[i % 11] for i in range(length))
    found = list(pieces(text))
    assert all(len(piece) <= 510 for piece in found)
    assert "".join(found).replace(" ", "") == text.replace(" ", "")


def test_words_are_tagged_well_enough_to_be_spoken() -> None:
    tagged = "I/PRP want/VBP to/TO record/VB a/DT record/NN ,/, quickly/RB ./. Anna/NN moved/VBD 12/CD boxes/NN"
    words, tags = zip(*(pair.split("/") for pair in tagged.split()), strict=True)
    assert tuple(tag_words(words)) == tags


@pytest.mark.slow
@pytest.mark.parametrize(
    "language, text, sounds",
    [
        ("a", "I want to record a record. The apple, the pear!", "ɹəkˈɔɹd"),
        ("b", "The dance.", "dˈɑːns"),
        ("f", "Bonjour, comment allez-vous ?", "bɔ̃ʒˈuʁ"),
        ("e", "¡Hola! ¿Qué tal?", "ˈola"),
    ],
)
def test_languages_become_phonemes_without_the_net(language: str, text: str, sounds: str) -> None:
    pytest.importorskip("misaki")
    assert sounds in open_phonemizer(language)(text)
