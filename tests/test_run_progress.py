"""The time left of a run: told once steps have been timed, and turns between chunks are timed by themselves."""

from __future__ import annotations

import pytest

from infinitalk_cli.progress import Progress
from infinitalk_cli.run_progress import RunProgress


class Clock:
    """`time.monotonic` by hand, in seconds."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


Step = tuple[int, int, float]
"""Chunk, step, and how many seconds it took."""


def told(clock: Clock, steps: list[Step], num_chunks: int, num_steps: int) -> list[float | None]:
    """The time left after each step."""
    news: list[Progress] = []
    progress = RunProgress(news.append)
    progress.begin_video()
    for chunk, step, duration_s in steps:
        clock.now_s += duration_s
        progress.step(chunk, num_chunks, step, num_steps)
    return [item.eta_s for item in news]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("time.monotonic", clock)
    return clock


def test_first_step_stands_for_a_turn_until_one_is_timed(clock: Clock) -> None:
    steps = [(1, 1, 6.0), (1, 2, 2.0), (1, 3, 2.0), (1, 4, 2.0), (2, 1, 3.0), (2, 2, 2.0)]
    one_step, first, turn = 2.0, 6.0, 3.0
    assert told(clock, steps, num_chunks=2, num_steps=4) == [
        None,
        None,
        4 * one_step + first + (first - one_step),
        3 * one_step + first + (first - one_step),
        3 * one_step + (turn - one_step),
        2 * one_step + (turn - one_step),
    ]


def test_nothing_is_told_before_the_first_turn_where_turns_may_take_most_of_the_time(clock: Clock) -> None:
    """As with the demo's networks, or where the first step loaded what comes on demand."""
    steps = [(1, 1, 25.0), (1, 2, 1.0), (1, 3, 1.0), (1, 4, 1.0), (2, 1, 11.0)]
    assert told(clock, steps, num_chunks=3, num_steps=4) == [None] * 4 + [6 * 1.0 + 11.0 + 10.0]


def test_resumed_run_times_its_own_steps(clock: Clock) -> None:
    steps = [(3, 1, 2.0), (3, 2, 1.0), (3, 3, 1.0)]
    assert told(clock, steps, num_chunks=3, num_steps=3) == [None, None, 2.0 - 1.0]


def test_chunk_that_is_made_again_is_timed_anew(clock: Clock) -> None:
    """Where memory ran out it begins again, in a form that takes less memory and more time."""
    steps = [(1, 1, 2.0), (1, 2, 1.0), (1, 3, 1.0), (1, 1, 9.0), (1, 2, 4.0), (1, 3, 4.0)]
    assert told(clock, steps, num_chunks=1, num_steps=4) == [None, None, 2.0, None, None, 4.0 + 9.0 - 4.0]


def test_steps_that_are_alone_in_their_chunk_are_turns(clock: Clock) -> None:
    assert told(clock, [(1, 1, 9.0), (2, 1, 4.0), (3, 1, 4.0)], num_chunks=3, num_steps=1) == [None, 8.0, 4.0]
