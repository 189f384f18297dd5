"""The only place that prints.

stdout carries data: a path as the last line, or one JSON object. stderr carries talk: notes, progress, errors with
what, where and a hint. On a terminal progress is a moving bar, elsewhere it is plain lines that a log can keep. Rich
is imported when the bar is wanted; colours obey NO_COLOR, tracebacks appear with --debug or TALK_DEBUG=1 alone.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import Literal, TextIO

import typer

from infinitalk_cli.errors import InterruptedRunError, TalkError
from infinitalk_cli.progress import OnProgress, Progress, ignore_progress

SECONDS_BETWEEN_LINES = 10.0
"""Plain progress: one line at each new stage and chunk, and one after so long a silence."""


BAR_COLUMNS = 12
"""Of a line of moving progress: the bar at its shortest, the percentage and the spaces around both."""

LEAST_HEAD = 12
"""Columns for what is being done; a terminal that has not even these shows no time left."""


ProgressForm = Literal["auto", "rich", "plain", "json", "none"]


@dataclass(frozen=True)
class Console:
    """The terminal of one command. `quiet`: errors and data alone. `as_json`: data as one JSON object.

    `form`: of the progress; "auto" is a moving bar on a terminal and plain lines elsewhere. `debug`: errors with their
    tracebacks.
    """

    quiet: bool = False
    as_json: bool = False
    debug: bool = False
    form: ProgressForm = "auto"

    def result(self, line: str, record: Mapping[str, object]) -> None:
        """The outcome of a command, on stdout: `line`, or `record` when JSON is asked for."""
        _write_data(json.dumps(record) if self.as_json else line)

    def note(self, text: str) -> None:
        """Something to know, on stderr."""
        if not self.quiet:
            _talk(text)

    def error(self, error: TalkError) -> None:
        """A user's mistake or a failure that we foresaw."""
        _say("error", error.message, color=typer.colors.RED)
        if error.hint:
            _say("hint", error.hint, color=typer.colors.CYAN)
        self._traceback_if_asked(error)

    def unexpected(self, error: BaseException) -> None:
        """A failure that we did not foresee."""
        _say("error", f"unexpected: {type(error).__name__}: {error}", color=typer.colors.RED)
        _say("hint", "--debug shows where; please report it with that and `talk env`", color=typer.colors.CYAN)
        self._traceback_if_asked(error)

    def _traceback_if_asked(self, error: BaseException) -> None:
        if self.debug or os.environ.get("TALK_DEBUG") == "1":
            _talk("".join(traceback.format_exception(error)))

    @contextmanager
    def progress(self) -> Generator[OnProgress, None, None]:
        """A listener that draws a run's progress on stderr until the block ends."""
        if self.form == "none" or (self.quiet and self.form == "auto"):
            yield ignore_progress
        elif self.form == "json":
            yield _event
        elif self.form == "rich" or (self.form == "auto" and _is_terminal()):
            with _moving_bar() as draw:
                yield draw
        else:
            yield PlainProgress()


@contextmanager
def errors_as_exit_codes(console: Console) -> Generator[None, None, None]:
    """Print what went wrong and exit with its code: the one place where an error becomes a number."""
    try:
        yield
    except TalkError as error:
        console.error(error)
        raise typer.Exit(error.exit_code) from error
    except KeyboardInterrupt as error:
        console.error(InterruptedRunError("stopped"))
        raise typer.Exit(InterruptedRunError.exit_code) from error
    except (typer.Exit, typer.Abort):
        raise
    except Exception as error:
        console.unexpected(error)
        raise typer.Exit(1) from error


@dataclass
class PlainProgress:
    """Progress as lines: calling it with a `Progress` prints one if there is news."""

    last: Progress | None = field(default=None, init=False)

    def __call__(self, progress: Progress) -> None:
        if self.last is not None and not _is_news(progress, self.last):
            return
        self.last = progress
        _talk(progress_line(progress))


def _event(progress: Progress) -> None:
    """Progress for programs: one JSON object per line."""
    _talk(json.dumps(asdict(progress)))


def progress_line(progress: Progress) -> str:
    """One line for a log: share done, stage, place in it, time left, memory."""
    details = [part for part in (progress.message, _place(progress), *_time_and_memory(progress)) if part]
    return f"[{progress.fraction:4.0%}] {progress.stage}" + (": " + ", ".join(details) if details else "")


def duration(seconds: float) -> str:
    """`seconds` as 0:05, 12:34 or 1:02:03."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def _is_news(progress: Progress, last: Progress) -> bool:
    return (
        (progress.stage, progress.chunk) != (last.stage, last.chunk)
        or (progress.message != last.message and not progress.num_steps)
        or progress.elapsed_s - last.elapsed_s >= SECONDS_BETWEEN_LINES
    )


def _place(progress: Progress) -> str:
    chunk = f"chunk {progress.chunk}/{progress.num_chunks}" if progress.num_chunks else ""
    step = f"step {progress.step}/{progress.num_steps}" if progress.num_steps else ""
    return " ".join(part for part in (chunk, step, progress.amount) if part)


def bar_texts(progress: Progress, width: int) -> tuple[str, str]:
    """What stands before and behind the bar, so short that all of it fits in `width` columns.

    Too much drops the memory first, the GPU's and then the RAM, then the end of the place, and last the time.
    """
    head, facts = f"{progress.stage} {_place(progress) or progress.message}".strip(), _time_and_memory(progress)
    room = width - BAR_COLUMNS
    while len(facts) > 1 and len(head) + len(", ".join(facts)) > room:
        facts.pop()
    tail = ", ".join(facts)
    if len(tail) + LEAST_HEAD > room:
        tail = ""
    left = max(room - len(tail), 1)
    return head if len(head) <= left else head[: left - 1] + "…", tail


def _time_and_memory(progress: Progress) -> list[str]:
    left = "" if progress.eta_s is None else f"{duration(progress.eta_s)} left"
    ram = "" if progress.ram_bytes is None else f"RAM {progress.ram_bytes / 1e9:.1f} GB"
    vram = "" if progress.vram_bytes is None else f"GPU {progress.vram_bytes / 1e9:.1f} GB"
    return [part for part in (left, ram, vram) if part]


@contextmanager
def _moving_bar() -> Generator[OnProgress, None, None]:
    from rich.console import Console as RichConsole
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        TextColumn("{task.percentage:3.0f} %"),
        TextColumn("{task.fields[tail]}", markup=False),
    )
    with RichProgress(*columns, console=RichConsole(stderr=True), expand=True, transient=True) as bar:
        task = bar.add_task("starting", total=1.0, tail="")

        def draw(progress: Progress) -> None:
            head, tail = bar_texts(progress, bar.console.width)
            bar.update(task, completed=progress.fraction, description=head, tail=tail)

        yield draw


def _is_terminal() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def _say(label: str, text: str, *, color: str) -> None:
    colored = _is_terminal() and "NO_COLOR" not in os.environ
    _talk((typer.style(label, fg=color, bold=True) if colored else label) + f": {text}")


def _talk(text: str) -> None:
    """Print on stderr as it is now: while the bar moves, Rich puts a proxy there that prints above it.

    When nobody listens any more, on a closed terminal or pipe, the work goes on.
    """
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        _let_go(sys.stderr)


def _write_data(text: str) -> None:
    try:
        typer.echo(text)
    except UnicodeEncodeError:  # a path that is no text in the terminal's encoding: give its bytes
        typer.echo(os.fsencode(text))
    except BrokenPipeError:  # the reader has left, as `head` does; what was made is made
        _let_go(sys.stdout)


def _let_go(stream: TextIO) -> None:
    """Send what is still in the buffer nowhere: the interpreter would try once more at exit, and complain."""
    with suppress(OSError):  # a stream that is no file has nothing to fail at exit
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
