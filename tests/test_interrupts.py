"""A run that is told to stop: whatever comes, and however often, the chunks done are kept."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import av
import pytest
import torch

from infinitalk_cli.errors import InterruptedRunError
from infinitalk_cli.interrupts import OTHER_STOPS, held_interrupts, stops_as_interrupts
from infinitalk_cli.media import writer as writer_module
from infinitalk_cli.media.fragments import copy_to_plain_mp4
from infinitalk_cli.media.writer import VideoWriter
from infinitalk_cli.runner import write_chunks
from infinitalk_cli.sampling.stream import Carried, Chunk

CHUNK_FRAMES = 9


@pytest.fixture(autouse=True)
def python_s_own_handler() -> Iterator[None]:
    """A shell that runs the tests in the background makes them ignore Ctrl-C; undo that."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.fixture
def ctrl_c_while_finishing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Press it in the middle of the writer's last step."""

    def copy(source: Path, target: Path, *, num_samples: int, metadata: dict[str, str]) -> None:
        signal.raise_signal(signal.SIGINT)
        copy_to_plain_mp4(source, target, num_samples=num_samples, metadata=metadata)

    monkeypatch.setattr(writer_module, "copy_to_plain_mp4", copy)


def chunks(num_chunks: int) -> Iterator[Chunk]:
    for index in range(num_chunks):
        frames = torch.zeros(1, 3, CHUNK_FRAMES, 32, 32)
        yield Chunk(index, index * CHUNK_FRAMES, frames, Carried(index + 1, torch.zeros(0)))


def chunks_then_ctrl_c(num_chunks: int) -> Iterator[Chunk]:
    yield from chunks(num_chunks)
    signal.raise_signal(signal.SIGINT)


def num_frames_in(path: Path) -> int:
    with av.open(str(path)) as file:
        return sum(1 for _ in file.decode(video=0))


@pytest.mark.usefixtures("ctrl_c_while_finishing")
def test_a_second_ctrl_c_does_not_lose_the_chunks_done(tmp_path: Path) -> None:
    target = tmp_path / "a.mp4"
    with pytest.raises(InterruptedRunError, match=r"the first 0\.72 s are in .*a\.mp4") as caught:
        write_chunks(VideoWriter(target, height=32, width=32), chunks_then_ctrl_c(2))
    assert caught.value.exit_code == 130
    assert num_frames_in(target) == 2 * CHUNK_FRAMES
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.usefixtures("ctrl_c_while_finishing")
def test_ctrl_c_when_all_is_done_comes_too_late(tmp_path: Path) -> None:
    target = tmp_path / "a.mp4"
    assert write_chunks(VideoWriter(target, height=32, width=32), chunks(2)) == 2
    assert num_frames_in(target) == 2 * CHUNK_FRAMES


@pytest.mark.parametrize("number", OTHER_STOPS)
@pytest.mark.parametrize("ctrl_c", [signal.default_int_handler, signal.SIG_IGN])
def test_another_stop_is_like_ctrl_c_and_waits_like_it(number: signal.Signals, ctrl_c: signal.Handlers) -> None:
    def stop(done: list[str]) -> None:
        with held_interrupts():
            signal.raise_signal(number)
            done.append("frame written")

    signal.signal(signal.SIGINT, ctrl_c)
    done: list[str] = []
    with pytest.raises(KeyboardInterrupt), stops_as_interrupts():
        stop(done)
    assert done
    with pytest.raises(KeyboardInterrupt), stops_as_interrupts():
        signal.raise_signal(number)
    assert signal.getsignal(number) == signal.SIG_DFL


@pytest.mark.parametrize("number", OTHER_STOPS)
def test_a_stop_that_the_parent_ignores_stays_ignored(number: signal.Signals) -> None:
    signal.signal(number, signal.SIG_IGN)
    try:
        with stops_as_interrupts():
            signal.raise_signal(number)
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, signal.SIG_DFL)
