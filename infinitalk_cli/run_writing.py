"""Chunks into the file: each is encoded and made safe while the next is computed.

One thread encodes, one chunk at a time, so at most one finished chunk waits in memory. Ctrl-C reaches the main thread
alone and can't cut an encoding in half.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress

from infinitalk_cli.errors import InterruptedRunError, MediaError, TalkError
from infinitalk_cli.interrupts import held_interrupts
from infinitalk_cli.media.writer import VideoWriter
from infinitalk_cli.run_errors import foreseen_errors
from infinitalk_cli.sampling.stream import Chunk

GO_ON = "the same command with --resume goes on from there"


def write_chunks(
    writer: VideoWriter,
    chunks: Iterator[Chunk],
    on_kept: Callable[[Chunk], None] = lambda chunk: None,
    on_note: Callable[[str], None] = lambda _: None,
) -> int:
    """Write every chunk as it comes and finish the file; the number of chunks.

    Args: on_kept: told of each chunk once it is on the disk, from the writing thread.
    Raises: InterruptedRunError: after Ctrl-C. MediaError: if the disk takes no more. GpuFailedError,
        OutOfGpuMemoryError: from computing. The chunks done are kept, and the message says where.
    """
    num_chunks = 0
    pending: Future[None] | None = None

    def keep(chunk: Chunk) -> None:
        writer.write(chunk.frames)
        with writer.disk_errors():
            on_kept(chunk)

    with writer, saying_what_is_kept(writer, on_note), foreseen_errors():
        try:
            with ThreadPoolExecutor(max_workers=1, thread_name_prefix="writing") as thread:
                for chunk in chunks:
                    if pending is not None:
                        pending.result()
                    pending = thread.submit(keep, chunk)
                    num_chunks += 1
                    del chunk
                if pending is not None:
                    pending.result()
        except KeyboardInterrupt as interrupt:
            raise stopped(writer, pending) from interrupt
        with suppress(KeyboardInterrupt), held_interrupts():  # nothing is left to stop, but a video to lose
            writer.finish()
    return num_chunks


def stopped(writer: VideoWriter, pending: Future[None] | None) -> InterruptedRunError:
    """The end of a run that was told to stop: what is done is joined to be played, unless Ctrl-C comes again."""
    with suppress(KeyboardInterrupt), held_interrupts():
        wait([pending] if pending else [])
    if not writer.num_frames:
        return InterruptedRunError("stopped before the first chunk was done; nothing was written")
    with suppress(KeyboardInterrupt, MediaError):
        writer.join_part()
    return InterruptedRunError(f"stopped; {writer.kept()}", hint=GO_ON)


@contextmanager
def saying_what_is_kept(writer: VideoWriter, on_note: Callable[[str], None]) -> Generator[None]:
    """Add to a failure where the finished part is and how to go on. `on_note`: told so with what was not foreseen."""
    try:
        yield
    except InterruptedRunError:
        raise
    except TalkError as error:
        kept, hint = writer.kept(), error.hint
        if str(writer.part_path) in error.message:  # it says so itself
            raise
        if writer.num_frames:
            hint = f"{hint}; {GO_ON}" if hint else GO_ON
        raise type(error)(f"{error.message}\n  {kept}", hint=hint) from error
    except Exception:
        on_note(f"note: {writer.kept()}" + (f"; {GO_ON}" if writer.num_frames else ""))
        raise
