"""A run that is told to stop: whatever comes, and however often, the chunks done are kept."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import pytest
import torch

from infinitalk_cli.errors import DoesNotFitError, GpuFailedError, InterruptedRunError, MediaError
from infinitalk_cli.interrupts import OTHER_STOPS, held_interrupts, stops_as_interrupts
from infinitalk_cli.media import writer as writer_module
from infinitalk_cli.media.part_folder import PartFolder
from infinitalk_cli.media.segments import Picture, join_segments
from infinitalk_cli.media.writer import VideoWriter
from infinitalk_cli.run_writing import write_chunks
from infinitalk_cli.sampling.stream import Carried, Chunk

CHUNK_FRAMES = 9


@pytest.fixture(autouse=True)
def python_s_own_handler() -> Iterator[None]:
    """A shell that runs the tests in the background makes them ignore Ctrl-C; undo that."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.fixture
def ctrl_c_while_joining(monkeypatch: pytest.MonkeyPatch) -> None:
    """Press it in the middle of the writer's last step."""

    def join(*args: Any, **options: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        join_segments(*args, **options)

    monkeypatch.setattr(writer_module, "join_segments", join)


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[VideoWriter]:
    """Of a small video `a.mp4`."""
    with PartFolder(tmp_path / "a.mp4") as folder:
        yield VideoWriter(folder, Picture(32, 32))


def chunks(num_chunks: int) -> Iterator[Chunk]:
    for index in range(num_chunks):
        frames = torch.zeros(1, 3, CHUNK_FRAMES, 32, 32)
        carried = Carried(index + 1, torch.zeros(0))
        yield Chunk(index, index * CHUNK_FRAMES, frames, carried, frames[:, :, :1], continues=index > 0)


def chunks_then_ctrl_c(num_chunks: int) -> Iterator[Chunk]:
    yield from chunks(num_chunks)
    signal.raise_signal(signal.SIGINT)


def num_frames_in(path: Path) -> int:
    with av.open(str(path)) as file:
        return sum(1 for _ in file.decode(video=0))


def test_ctrl_c_keeps_the_chunks_done_and_says_how_to_go_on(writer: VideoWriter) -> None:
    with pytest.raises(InterruptedRunError, match=r"the first 0\.72 s are .* played: .*a\.part\.mp4$") as caught:
        write_chunks(writer, chunks_then_ctrl_c(2))
    assert caught.value.exit_code == 130
    assert "--resume" in caught.value.hint
    assert num_frames_in(writer.part_path) == 2 * CHUNK_FRAMES
    assert not writer.path.exists()


@pytest.mark.usefixtures("ctrl_c_while_joining")
def test_a_second_ctrl_c_does_not_lose_the_chunks_done(writer: VideoWriter) -> None:
    with pytest.raises(InterruptedRunError, match=r"the first 0\.72 s are .*a\.part/0001\.mp4 to 0002"):
        write_chunks(writer, chunks_then_ctrl_c(2))
    pieces = sorted(writer.path.with_name("a.part").glob("*.mp4"))
    assert [num_frames_in(piece) for piece in pieces] == [CHUNK_FRAMES] * 2


@pytest.mark.usefixtures("ctrl_c_while_joining")
def test_ctrl_c_when_all_is_done_comes_too_late(writer: VideoWriter) -> None:
    assert write_chunks(writer, chunks(2)) == 2
    assert num_frames_in(writer.path) == 2 * CHUNK_FRAMES


def test_a_chunk_is_written_while_the_next_is_computed(writer: VideoWriter) -> None:
    written, seen = threading.Event(), list[bool]()

    def computing() -> Iterator[Chunk]:
        for chunk in chunks(2):
            yield chunk
            seen.append(written.wait(timeout=20))

    assert write_chunks(writer, computing(), lambda chunk: written.set()) == 2
    assert seen == [True, True]


def test_a_failure_to_write_ends_the_run_and_keeps_the_chunks_before(writer: VideoWriter) -> None:
    def fail_at_the_second(chunk: Chunk) -> None:
        if chunk.index == 1:
            raise OSError(28, "No space left on device")

    with pytest.raises(
        MediaError, match=r"No space left .*\n  the first 0\.72 s are .* played: .*a\.part\.mp4$"
    ) as caught:
        write_chunks(writer, chunks(9), fail_at_the_second)
    assert "--resume" in caught.value.hint
    assert num_frames_in(writer.path.with_name("a.part") / "0001.mp4") == CHUNK_FRAMES
    assert num_frames_in(writer.part_path) == 2 * CHUNK_FRAMES


def test_a_disk_too_full_to_join_the_chunks_done_leaves_them_to_be_played(
    writer: VideoWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer_module, "join_segments", full)
    with pytest.raises(MediaError, match=r"the first 1\.08 s are .*a\.part.0001\.mp4 to 0003\.mp4$") as caught:
        write_chunks(writer, chunks(3))
    assert "free some disk space" in caught.value.hint
    assert "--resume" in caught.value.hint


def gpu_errors() -> Iterator[RuntimeError]:
    yield RuntimeError("CUDA error: device-side assert triggered\nCUDA kernel errors might be reported later")
    yield RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered")
    yield RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED")
    if hasattr(torch, "AcceleratorError"):
        yield torch.AcceleratorError("GPU is lost")


@pytest.mark.parametrize("error", list(gpu_errors()), ids=lambda error: str(error)[:24])
def test_a_gpu_that_fails_in_chunk_2_ends_with_what_is_done_and_how_to_go_on(
    writer: VideoWriter, error: RuntimeError
) -> None:
    def failing() -> Iterator[Chunk]:
        yield from chunks(1)
        raise error

    with pytest.raises(GpuFailedError, match=r"the GPU failed: .*\n  the first 0\.36 s are .*a\.part\.mp4$") as caught:
        write_chunks(writer, failing())
    assert caught.value.exit_code == 3
    assert "talk doctor" in caught.value.hint
    assert "--resume" in caught.value.hint
    assert num_frames_in(writer.part_path) == CHUNK_FRAMES


def test_ram_that_torch_does_not_get_is_no_mistake_of_ours(writer: VideoWriter) -> None:
    def failing() -> Iterator[Chunk]:
        yield from chunks(1)
        torch.empty(2**60, dtype=torch.uint8)

    with pytest.raises(DoesNotFitError, match=r"too little memory \(RAM\)\n  the first 0\.36 s are") as caught:
        write_chunks(writer, failing())
    assert caught.value.exit_code == 6
    assert "--frames" in caught.value.hint
    assert "--resume" in caught.value.hint


def test_a_failure_that_nobody_foresaw_still_says_where_the_part_is(writer: VideoWriter) -> None:
    def failing() -> Iterator[Chunk]:
        yield from chunks(2)
        raise ZeroDivisionError

    notes = list[str]()
    with pytest.raises(ZeroDivisionError):
        write_chunks(writer, failing(), on_note=notes.append)
    assert "a.part.mp4" in notes[0]
    assert "--resume" in notes[0]


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
