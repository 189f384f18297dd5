"""Chunks into the file: each is encoded and made safe while the next is computed.

One thread encodes, one chunk at a time, so at most one finished chunk waits in memory. Ctrl-C reaches the main thread
alone and can't cut an encoding in half.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress

from infinitalk_cli.errors import InterruptedRunError, MediaError
from infinitalk_cli.interrupts import held_interrupts
from infinitalk_cli.media.reference import VIDEO_FPS
from infinitalk_cli.media.writer import VideoWriter
from infinitalk_cli.sampling.stream import Chunk


def write_chunks(
    writer: VideoWriter, chunks: Iterator[Chunk], on_kept: Callable[[Chunk], None] = lambda chunk: None
) -> int:
    """Write every chunk as it comes and finish the file; the number of chunks.

    Args: on_kept: told of each chunk once it is on the disk, from the writing thread.
    Raises: InterruptedRunError: after Ctrl-C; the chunks done are kept. MediaError: if the disk takes no more.
    """
    num_chunks = 0
    pending: Future[None] | None = None

    def keep(chunk: Chunk) -> None:
        writer.write(chunk.frames)
        with writer.disk_errors():
            on_kept(chunk)

    with writer:
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
    where = str(writer.pieces_path)
    with suppress(KeyboardInterrupt, MediaError):
        where = str(writer.join_part())
    seconds = writer.num_frames / VIDEO_FPS
    return InterruptedRunError(
        f"stopped; the first {seconds:.2f} s are in {where}", hint="the same command with --resume goes on from there"
    )
