"""The same parts of files over and over, read ahead of who needs them.

Blocks of a network for which RAM has no room are read from their files in every pass. A few threads read them, piece by
piece and in the order in which they compute, into a ring of page-locked RAM: round and round, as far ahead as the ring
is long. So a disk is busy also while blocks compute that are there already, and the next pass finds its beginning read.
Who takes a block gets its pieces in order, and says of each when it may be written over.

A file that was cut, replaced or taken away meanwhile is an error: values of two files in one video would be noise.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import accumulate, chain
from pathlib import Path

from torch import Tensor

from infinitalk_cli.errors import WeightsError
from infinitalk_cli.memory.reading import PIECE_BYTES, FileSpan, page_locked, read_span

RING_PIECES = 32
"""Read ahead, 256 MiB: half an 8-bit block of the published size. RAM for more is better spent on blocks themselves."""
NUM_READERS = 4
"""One alone gets less out of a fast disk than this many at once."""

HasLeft = Callable[[], object]
"""Returns when a piece of RAM may be written over."""


@dataclass(frozen=True)
class FileState:
    """By which a file that was changed or replaced is known."""

    num_bytes: int
    mtime_ns: int

    @classmethod
    def of(cls, descriptor: int) -> FileState:
        """Of an open file."""
        found = os.fstat(descriptor)
        return cls(found.st_size, found.st_mtime_ns)

    @classmethod
    def at(cls, path: Path) -> FileState:
        """Of the file that is there now. Raises: OSError."""
        with path.open("rb") as file:
            return cls.of(file.fileno())


@dataclass(frozen=True)
class StoredPart:
    """Bytes of a block that lie in a file. `start`: where they belong in the packed block. `state`: of the file."""

    source: FileSpan
    start: int
    state: FileState

    def pieces(self, piece_bytes: int) -> Iterator[StoredPart]:
        """The same in pieces that are read one at a time."""
        for begin in range(0, self.source.num_bytes, piece_bytes):
            length = min(piece_bytes, self.source.num_bytes - begin)
            span = FileSpan(self.source.path, self.source.start + begin, length)
            yield StoredPart(span, self.start + begin, self.state)


def make_ring(num_pieces: int = RING_PIECES, piece_bytes: int = PIECE_BYTES) -> tuple[Tensor, ...]:
    """Pieces of RAM to read into, page-locked where there is a GPU that could fetch them."""
    return page_locked(num_pieces * piece_bytes).split(piece_bytes)


@dataclass(frozen=True)
class _Reading:
    """A piece on its way into RAM. `number`: of the piece. `has_left`: of what was in that RAM before."""

    number: int
    stage: Tensor
    has_left: HasLeft
    done: Future[None]


class ReadAhead:
    """Reads blocks from files, in a circle. To be used by one thread at a time, and closed in the end.

    Args: blocks: what of each is in files, in the order in which they are taken. ring: equal pieces of RAM for it.
    """

    def __init__(self, blocks: Sequence[Sequence[StoredPart]], ring: Sequence[Tensor]) -> None:
        piece_bytes = ring[0].numel()
        pieces = [[piece for part in parts for piece in part.pieces(piece_bytes)] for parts in blocks]
        self._pieces = list(chain.from_iterable(pieces))
        self._begins = list(accumulate(map(len, pieces), initial=0))
        self._stop = threading.Event()
        self._threads = ThreadPoolExecutor(NUM_READERS, thread_name_prefix="read-ahead")
        self._under_way = deque(self._begin(number, stage, at_once) for number, stage in enumerate(ring))

    def take(self, number: int, send: Callable[[StoredPart, Tensor], HasLeft]) -> None:
        """Hand a block out: `send` is called for its pieces, in order, with their bytes.

        Raises: WeightsError: a file has changed, has gone or can't be read. CancelledError, RuntimeError: it was closed
        meanwhile.
        """
        first, end = self._begins[number], self._begins[number + 1]
        if self._under_way[0].number != first:  # another block than the next: a pass was left early
            self._begin_again(first)
        for piece in self._pieces[first:end]:
            reading = self._under_way.popleft()
            try:
                reading.done.result()
            except OSError as error:
                raise _unreadable(piece.source.path, error) from error
            has_left = send(piece, reading.stage[: piece.source.num_bytes])
            self._under_way.append(self._begin(reading.number + len(self._under_way) + 1, reading.stage, has_left))

    def close(self) -> None:
        """End the threads; what they have begun to read is read to its end. Who takes a block then gets an error."""
        self._stop.set()
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _begin(self, number: int, stage: Tensor, has_left: HasLeft) -> _Reading:
        number %= len(self._pieces)
        done = self._threads.submit(self._read, self._pieces[number], stage, has_left)
        return _Reading(number, stage, has_left, done)

    def _begin_again(self, first: int) -> None:
        """Forget what is under way and read on from a piece."""
        dropped = list(self._under_way)
        wait([reading.done for reading in dropped if not reading.done.cancel()])  # `wait` knows no others' end
        self._under_way = deque(
            self._begin(first + place, reading.stage, reading.has_left) for place, reading in enumerate(dropped)
        )

    def _read(self, piece: StoredPart, stage: Tensor, has_left: HasLeft) -> None:
        has_left()
        if self._stop.is_set():
            return
        with piece.source.path.open("rb", buffering=0) as file:
            if FileState.of(file.fileno()) != piece.state:
                raise OSError(None, "it has changed since the run began")
            read_span(piece.source, file, stage[: piece.source.num_bytes])


def at_once() -> None:
    """Nothing is in the way."""


def _unreadable(path: Path, error: OSError) -> WeightsError:
    return WeightsError(
        f"{path}, from which blocks of the transformer are read in every pass: {error.strerror or error}",
        hint="chunks that are done are kept. When the file is as it was (`talk weights verify` checks it),"
        " the same command with --resume goes on",
    )
