"""Who speaks when, from a subtitle file: SubRip (.srt) or WebVTT (.vtt), each line with its speaker before a colon.

    1
    00:00:00,000 --> 00:00:02,400
    Anna: Have you seen the harbour?

A cue may hold several lines; one that names a speaker (`Anna: ...`, in WebVTT also `<v Anna>...`) begins a turn, one
that names nobody goes on with the turn before it in the same cue. Marks such as <i> are dropped. Everything that can't
be understood is told with its line, all at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

TIME = re.compile(r"(?:(\d+):)?([0-5]?\d):([0-5]?\d)(?:[.,](\d{1,3}))?")
PREFIX = re.compile(r"\s*(?:-\s*)?([^\W\d_][\w .'’-]{0,39}?)\s*:\s+(?=\S)")
VOICE = re.compile(r"\s*<v(?:\.[^\s>]*)*\s+([^>]+)>")
MARKUP = re.compile(r"</?[a-zA-Z][^>]*>|\{\\[^}]*\}")
SKIPPED_BLOCKS = ("WEBVTT", "NOTE", "STYLE", "REGION")

LARGEST_TIME_S = 24 * 3600
MOST_MISTAKES_TOLD = 5


class BadSubtitles(ValueError):
    """A subtitle file that can't be used; the text has a line for each mistake."""


@dataclass(frozen=True)
class Turn:
    """A stretch of speech, in seconds of the timeline, and its words. `line`: of the file, from 1; 0 if not known."""

    start_s: float
    end_s: float
    text: str
    line: int = field(default=0, compare=False)


@dataclass(frozen=True)
class NamedTurn:
    """A turn before it is known which speaker `name` is. `name`: "" where the file says none."""

    name: str
    turn: Turn

    @property
    def line(self) -> int:
        """Where it begins in the file, from 1."""
        return self.turn.line


def read_turns(text: str) -> tuple[NamedTurn, ...]:
    """The turns of a subtitle file in the order of time. Raises: BadSubtitles: with every mistake and its line."""
    found, mistakes = list[NamedTurn](), list[str]()
    for number, block in blocks(text):
        at = next((i for i, line in enumerate(block[:2]) if "-->" in line), None)
        if at is None:
            mistakes.append(
                f"line {number}: a cue needs its times, 00:00:01,000 --> 00:00:02,500, not {block[0]!r:.60}"
            )
            continue
        try:
            start_s, end_s = times(block[at])
        except ValueError as error:
            mistakes.append(f"line {number + at}: {error}")
            continue
        found += turns_of_cue(block[at + 1 :], start_s, end_s, number + at + 1)
    if not found and not mistakes:
        mistakes.append("it holds no cue")
    if mistakes:
        told = mistakes[:MOST_MISTAKES_TOLD]
        told += [f"and {len(mistakes) - len(told)} more"] if len(mistakes) > len(told) else []
        raise BadSubtitles("; ".join(told))
    return tuple(sorted(found, key=lambda named: (named.turn.start_s, named.line)))


def blocks(text: str) -> Iterator[tuple[int, list[str]]]:
    """The stretches between blank lines that may be cues, with the number of their first line."""
    lines, block = text.splitlines(), list[str]()
    for number, line in enumerate([*lines, ""], start=1):
        if line.strip():
            block.append(line)
            continue
        if block and not block[0].startswith(SKIPPED_BLOCKS):
            yield number - len(block), block
        block = []


def times(line: str) -> tuple[float, float]:
    """Start and end of a cue in seconds. Raises: ValueError: if they are no times, or not in this order."""
    first, _, rest = line.partition("-->")
    last = (rest.split() or [""])[0]  # WebVTT puts settings behind the times
    start_s, end_s = seconds(first.strip()), seconds(last)
    if end_s <= start_s:
        raise ValueError(f"the cue ends at {last}, not after its start at {first.strip()}")
    return start_s, end_s


def seconds(text: str) -> float:
    """The seconds of 00:01:02,500 or 01:02.500. Raises: ValueError: if it is something else."""
    match = TIME.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r:.40} is no time such as 00:01:02,500")
    hours, minutes, whole, fraction = match.groups(default="0")
    found = int(hours) * 3600 + int(minutes) * 60 + int(whole) + int(fraction.ljust(3, "0")) / 1000
    if found > LARGEST_TIME_S:
        raise ValueError(f"{text} is later than a day")
    return found


def turns_of_cue(lines: Sequence[str], start_s: float, end_s: float, number: int) -> Iterator[NamedTurn]:
    """The turns that begin and end with one cue, whose first line of text has this number."""
    names, texts, starts = list[str](), list[list[str]](), list[int]()
    for offset, line in enumerate(lines):
        match = VOICE.match(line) or PREFIX.match(line)
        if match or not names:
            names.append(" ".join(match[1].split()) if match else "")
            texts.append([])
            starts.append(number + offset)
        texts[-1].append(MARKUP.sub("", line[match.end() :] if match else line).strip())
    for name, words, line in zip(names, texts, starts, strict=True):
        yield NamedTurn(name, Turn(start_s, end_s, " ".join(word for word in words if word), line))


def share_out(turns: Sequence[NamedTurn], names: Sequence[str], num_speakers: int) -> tuple[tuple[Turn, ...], ...]:
    """The turns of each speaker.

    Args: names: of the speakers; where none has one, they are taken as they come in the file, and a lone speaker says
        what nobody is named for.
    Raises: BadSubtitles: for a turn of nobody, and for a speaker without a turn.
    """
    known = [name for name in names if name]
    known = known or list(dict.fromkeys(named.name for named in turns if named.name))
    if not known and num_speakers == 1:
        return (tuple(named.turn for named in turns),)
    if len(known) != num_speakers:
        who = f": {', '.join(known)}" if known else "; a line begins with one, such as 'Anna: Hello'"
        raise BadSubtitles(f"it names {len(known)} speakers where the job has {num_speakers}{who}")
    places = {name.casefold(): place for place, name in enumerate(known)}
    strange = [named for named in turns if named.name.casefold() not in places]
    if strange:
        called = f"{strange[0].name!r} is not" if strange[0].name else "nobody is named; it must begin with"
        raise BadSubtitles(f"line {strange[0].line}: {called} one of {', '.join(known)}")
    shared = [tuple(n.turn for n in turns if places[n.name.casefold()] == place) for place in range(num_speakers)]
    if silent := [name for name, own in zip(known, shared, strict=True) if not own]:
        raise BadSubtitles(f"it has no turn of {', '.join(silent)}")
    return tuple(shared)
