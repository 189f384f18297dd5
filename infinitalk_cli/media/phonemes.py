"""Text to the phonemes that the speech synthesis reads, by misaki, and long texts to pieces of a length that it takes.

misaki's English wants spaCy's tagger, which it would fetch from the net at run time. Nothing is fetched here: where the
model `en_core_web_sm` is installed it is used, else words are tagged by a few rules. Tags matter for words that are
spoken in two ways (a record, to record), for `the` and `a`, and for punctuation; unknown words are espeak-ng's, which
comes with misaki. Spanish, French, Hindi, Italian and Portuguese are espeak-ng's altogether, Japanese and Chinese need
further packages of misaki.
"""

from __future__ import annotations

import importlib
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from infinitalk_cli.errors import EnvironmentUnfitError

LONGEST_PIECE = 510
"""Phonemes that the synthesis takes at once."""

CUT_AFTER = ("!.?…", ":;", ",—", " ")
"""Where a long text is cut, the best first."""

ESPEAK_LANGUAGES = {"e": "es", "f": "fr-fr", "h": "hi", "i": "it", "p": "pt-br"}

Phonemizer = Callable[[str], str]

CLOSED_CLASSES = {
    "DT": "a an the this that these those some any no every each another both all",
    "IN": "of in on at by for with from about into over under after before between through during without within "
    "against among across behind beyond near since until upon if because while although as than",
    "TO": "to",
    "CC": "and or but nor yet so",
    "MD": "can could will would shall should may might must ca wo 'll 'd",
    "PRP": "i you he she it we they me him us them myself yourself himself herself itself ourselves themselves",
    "PRP$": "my your his her its our their",
    "VBP": "am are 'm 're have 've do",
    "VBZ": "is has does",
    "VBD": "was were had did",
    "VB": "be",
    "RB": "not n't never always often too very also just still already even only here there now then",
    "WP": "who what",
    "WRB": "when where why how",
    "POS": "'s",
}
TAG_OF_WORD = {word: tag for tag, words in CLOSED_CLASSES.items() for word in words.split()}

TAG_OF_MARK = {
    ".": "." , "?": ".", "!": ".", ",": ",", ";": ":", ":": ":", "-": ":", "--": ":", "–": ":", "—": ":", "…": ":",
    "...": ":", "(": "-LRB-", ")": "-RRB-", "[": "-LRB-", "]": "-RRB-", "“": "``", "”": "''", '"': "''", "$": "$",
    "£": "$", "€": "$", "#": "#",
}  # fmt: skip

VERB_COMES_NEXT = frozenset({"TO", "MD"})
NOUN_COMES_NEXT = frozenset({"DT", "PRP$", "POS"})


def open_phonemizer(language: str) -> Phonemizer:
    """What turns a line of text into phonemes. `language`: a letter of `voices.LANGUAGES`.

    Raises: EnvironmentUnfitError: if a package that this language needs is missing.
    """
    logging.getLogger("phonemizer").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the packages about one another
            return partial(_first, _misaki(language))
    except (ImportError, RuntimeError, OSError) as error:
        extra = {"j": "ja", "z": "zh"}.get(language, "en")
        hint = f'pip install "misaki[{extra}]"' + ("; python -m unidic download" if language == "j" else "")
        raise EnvironmentUnfitError(f"this language can't be spoken here: {error}", hint=hint) from error


def pieces(phonemes: str, longest: int = LONGEST_PIECE) -> Iterator[str]:
    """Cut phonemes into pieces that are short enough, after sentences where possible, then after lesser marks."""
    rest = phonemes.strip()
    while len(rest) > longest:
        head = rest[:longest]
        cut = next((at for marks in CUT_AFTER if (at := max(map(head.rfind, marks)) + 1)), longest)
        if piece := rest[:cut].strip():
            yield piece
        rest = rest[cut:].strip()
    if rest:
        yield rest


def tag_words(words: Sequence[str]) -> list[str]:
    """The Penn tags of a line's words, by rules."""
    tags = list[str]()
    for word in words:
        previous = tags[-1] if tags else "."
        tags.append(_tag(word, previous))
    return tags


def _tag(word: str, previous: str) -> str:
    lower = word.lower()
    if word in TAG_OF_MARK:
        return TAG_OF_MARK[word]
    if not any(character.isalnum() for character in word):
        return ":"
    if re.fullmatch(r"[\d.,]*\d[\d.,]*", word):
        return "CD"
    if lower in TAG_OF_WORD:
        return TAG_OF_WORD[lower]
    if word[0].isupper() and previous not in (".", "``", ":"):
        return "NNP"
    if previous in VERB_COMES_NEXT:
        return "VB"
    if previous in NOUN_COMES_NEXT and not lower.endswith("ly"):
        return "NN"
    for ending, tag in (("ly", "RB"), ("ing", "VBG"), ("ed", "VBD")):
        if len(lower) > len(ending) + 2 and lower.endswith(ending):
            return tag
    return "VBP" if previous == "PRP" else "NN"


def _misaki(language: str) -> Any:
    """misaki's own for a language: text to phonemes and something more."""
    if language in "ab":
        return _english(is_british=language == "b")
    if language == "j":
        return _optional("misaki.ja").JAG2P()
    if language == "z":
        return _optional("misaki.zh").ZHG2P()
    return _optional("misaki.espeak").EspeakG2P(language=ESPEAK_LANGUAGES[language])


def _optional(name: str) -> Any:
    """A module of an optional package, by name, as type checkers may not find it."""
    return importlib.import_module(name)


def _english(*, is_british: bool) -> Any:
    spacy, en, espeak = _optional("spacy"), _optional("misaki.en"), _optional("misaki.espeak")

    class OfflineG2P(en.G2P):  # pyright: ignore[reportUntypedBaseClass]
        """misaki's, but for its start, which would fetch a model."""

        def __init__(self) -> None:
            self.version, self.british, self.unk = None, is_british, ""
            self.nlp = _tagger(spacy)
            self.lexicon = en.Lexicon(is_british)
            self.fallback = espeak.EspeakFallback(british=is_british)

    return OfflineG2P()


def _tagger(spacy: Any) -> Callable[[str], Any]:
    """spaCy's tagger where it is installed, else words tagged by rules."""
    if spacy.util.is_package("en_core_web_sm"):
        return spacy.load("en_core_web_sm", enable=["tok2vec", "tagger"])
    blank = spacy.blank("en")

    def tagged(text: str) -> Any:
        words = blank(text)
        for word, tag in zip(words, tag_words([word.text for word in words]), strict=True):
            word.tag_ = tag
        return words

    return tagged


def _first(convert: Callable[[str], tuple[str, Any]], text: str) -> str:
    return convert(text)[0] or ""
