"""What goes to stdout, what to stderr, and how progress looks with and without a terminal."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

from infinitalk_cli.console import BAR_COLUMNS, Console, PlainProgress, bar_texts, duration, progress_line
from infinitalk_cli.errors import InputError
from infinitalk_cli.progress import Progress

Captured = pytest.CaptureFixture[str]

STEP = Progress(
    stage="video",
    chunk=2,
    num_chunks=4,
    step=12,
    num_steps=40,
    fraction=0.4512,
    elapsed_s=80.0,
    eta_s=220.4,
    ram_bytes=12_340_000_000,
    vram_bytes=20_060_000_000,
)


def step(number: int, *, chunk: int = 1, elapsed_s: float = 0.0) -> Progress:
    return Progress(stage="video", chunk=chunk, num_chunks=2, step=number, num_steps=40, elapsed_s=elapsed_s)


def test_result_is_the_only_thing_on_stdout(capsys: Captured) -> None:
    console = Console()
    console.note("a note")
    console.error(InputError("a mistake", hint="a way out"))
    console.result("talk.mp4", {"output": "talk.mp4"})
    out, err = capsys.readouterr()
    assert out == "talk.mp4\n"
    assert err == "a note\nerror: a mistake\nhint: a way out\n"


def test_json_result_is_one_object_on_one_line(capsys: Captured) -> None:
    Console(as_json=True).result("talk.mp4", {"output": "talk.mp4", "num_frames": 70})
    assert json.loads(capsys.readouterr().out) == {"output": "talk.mp4", "num_frames": 70}


def test_quiet_keeps_errors_and_the_result(capsys: Captured) -> None:
    console = Console(quiet=True)
    console.note("a note")
    with console.progress() as on_progress:
        on_progress(STEP)
    console.error(InputError("a mistake"))
    console.result("talk.mp4", {})
    assert capsys.readouterr() == ("talk.mp4\n", "error: a mistake\n")


@pytest.mark.parametrize("asked", [False, True])
def test_traceback_only_when_asked_for(capsys: Captured, monkeypatch: pytest.MonkeyPatch, asked: bool) -> None:
    if asked:
        monkeypatch.setenv("TALK_DEBUG", "1")
    else:
        monkeypatch.delenv("TALK_DEBUG", raising=False)
    try:
        raise KeyError("a hole")
    except KeyError as error:
        Console().unexpected(error)
    err = capsys.readouterr().err
    assert err.startswith("error: unexpected: KeyError: 'a hole'\nhint: --debug shows where")
    assert ("Traceback" in err) == asked


@pytest.mark.skipif(sys.platform == "win32", reason="names of files are text there")
def test_a_path_that_is_no_text_is_printed_as_its_bytes() -> None:
    code = "import os; from infinitalk_cli.console import Console; Console().result(os.fsdecode(b'\\xff.mp4'), {})"
    environment = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, check=True, timeout=60)
    assert done.stdout == b"\xff.mp4\n"


def test_line_tells_share_place_time_and_memory() -> None:
    assert progress_line(STEP) == "[ 45%] video: chunk 2/4 step 12/40, 3:40 left, RAM 12.3 GB, GPU 20.1 GB"
    assert progress_line(Progress(stage="text", message="loading")) == "[  0%] text: loading"
    assert progress_line(Progress(stage="audio", fraction=1.0)) == "[100%] audio"


def test_plain_lines_come_with_news_and_after_long_silence(capsys: Captured) -> None:
    show = PlainProgress()
    show(Progress(stage="text"))
    show(Progress(stage="text", elapsed_s=3.0))
    show(step(1, elapsed_s=4.0))
    show(step(2, elapsed_s=13.9))
    show(step(3, elapsed_s=14.0))
    show(step(4, elapsed_s=20.0))
    show(step(1, chunk=2, elapsed_s=21.0))
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "[  0%] text",
        "[  0%] video: chunk 1/2 step 1/40",
        "[  0%] video: chunk 1/2 step 3/40",
        "[  0%] video: chunk 2/2 step 1/40",
    ]


def test_off_a_terminal_progress_is_plain_lines(capsys: Captured) -> None:
    with Console().progress() as on_progress:
        on_progress(STEP)
    assert capsys.readouterr() == ("", progress_line(STEP) + "\n")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (754, "12:34"), (3723, "1:02:03"), (90_000, "25:00:00")]
)
def test_durations_read_like_a_clock(seconds: float, text: str) -> None:
    assert duration(seconds) == text


DRAW = """
from infinitalk_cli.console import Console
from infinitalk_cli.errors import InputError
from infinitalk_cli.progress import Progress
with Console().progress() as on_progress:
    on_progress(Progress("video", 2, 4, 12, 40, 0.4512, 80.0, 220.4, 12_340_000_000, 20_060_000_000))
Console().error(InputError("a mistake"))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize("no_color", [False, True])
def test_on_a_terminal_of_80_columns_progress_is_one_line_and_obeys_no_color(no_color: bool) -> None:
    screen = run_on_terminal(DRAW, {"COLUMNS": "80", "TERM": "xterm", **({"NO_COLOR": "1"} if no_color else {})})
    drawn = next(line for line in screen.replace("\r", "\n").split("\n") if "video" in line)
    for part in ("video chunk 2/4 step 12/40", "45 %", "3:40 left, RAM 12.3 GB, GPU 20.1 GB"):
        assert part in drawn
    assert ("\x1b[3" in screen) is not no_color  # colours; moves of the cursor are allowed
    assert "a mistake" in screen


@pytest.mark.parametrize(
    ("width", "texts"),
    [
        (80, ("video chunk 2/4 step 12/40", "3:40 left, RAM 12.3 GB, GPU 20.1 GB")),
        (62, ("video chunk 2/4 step 12/40", "3:40 left, RAM 12.3 GB")),
        (48, ("video chunk 2/4 step 12/40", "3:40 left")),
        (40, ("video chunk 2/4 st…", "3:40 left")),
        (30, ("video chunk 2/4 s…", "")),
    ],
)
def test_a_narrow_line_drops_whole_parts(width: int, texts: tuple[str, str]) -> None:
    assert bar_texts(STEP, width) == texts
    assert sum(map(len, texts)) + BAR_COLUMNS <= width


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize(("columns", "tail"), [("80", "0:02 left, RAM 0.6 GB"), ("50", "50 % 0:02 left")])
def test_the_last_part_that_is_drawn_is_whole(columns: str, tail: str) -> None:
    small = "8, 8, 0.5, 3.0, 2.0, 600_000_000"
    drawing = DRAW.replace("12, 40, 0.4512, 80.0, 220.4, 12_340_000_000, 20_060_000_000", small)
    screen = run_on_terminal(drawing, {"COLUMNS": columns, "TERM": "xterm", "NO_COLOR": "1"})
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen).replace("\r", "\n")
    drawn = next(line for line in plain.split("\n") if "video" in line).rstrip()
    assert drawn.endswith(tail)
    assert drawn.startswith("video chunk 2/4 step 8/8")
    assert "…" not in drawn


NOTE_WHILE_DRAWING = """
from infinitalk_cli.console import Console
from infinitalk_cli.progress import Progress
console = Console()
with console.progress() as on_progress:
    on_progress(Progress("weights", message="loading"))
    console.note("a note")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_note_stands_on_its_own_line_while_the_bar_moves() -> None:
    screen = run_on_terminal(NOTE_WHILE_DRAWING, {"COLUMNS": "80", "TERM": "xterm", "NO_COLOR": "1"})
    before, _, after = screen.partition("a note")
    assert before.endswith(("\x1b[2K", "\n"))  # the bar's line was cleared first
    assert after.startswith("\r\n")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_dumb_terminal_gets_plain_lines() -> None:
    assert "[ 45%] video: chunk 2/4 step 12/40" in run_on_terminal(DRAW, {"TERM": "dumb", "NO_COLOR": "1"})


def run_on_terminal(code: str, environment: dict[str, str]) -> str:
    """What `code` draws on a pseudo-terminal for stderr."""
    import pty

    ours, theirs = pty.openpty()
    inherited = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    with subprocess.Popen([sys.executable, "-c", code], stderr=theirs, env=inherited | environment) as process:
        os.close(theirs)
        drawn = b""
        while True:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # Linux: the other side is closed
                break
            if not piece:
                break
            drawn += piece
        assert process.wait(timeout=60) == 0
    os.close(ours)
    return drawn.decode()


ONE_RUN = """
import sys
from infinitalk_cli.console import Console, errors_as_exit_codes
console = Console()
sys.stdin.read()
with errors_as_exit_codes(console):
    console.note("a note")
    console.result("talk.mp4", {})
"""


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_a_reader_that_has_left_is_no_failure(closed: str) -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", ONE_RUN], stdin=pipe, stdout=pipe, stderr=pipe, text=True) as run:
        getattr(run, closed).close()
        heard = run.communicate("")
    assert run.returncode == 0
    assert heard == {"stdout": ("", "a note\n"), "stderr": ("talk.mp4\n", "")}[closed]
