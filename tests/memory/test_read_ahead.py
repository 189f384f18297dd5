"""Reading ahead, and its end while somebody still takes blocks."""

from __future__ import annotations

import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path

import pytest
from torch import Tensor

from infinitalk_cli.memory.read_ahead import FileState, HasLeft, ReadAhead, StoredPart, at_once, make_ring
from infinitalk_cli.memory.reading import FileSpan

PIECE_BYTES, NUM_PIECES = 100, 8
LIMIT_S = 20.0


def stored_blocks(path: Path, number: int) -> list[list[StoredPart]]:
    """A file of so many blocks, each of several pieces."""
    block_bytes = PIECE_BYTES * NUM_PIECES
    path.write_bytes(bytes(place % 251 for place in range(number * block_bytes)))
    state = FileState.at(path)
    return [[StoredPart(FileSpan(path, rank * block_bytes, block_bytes), 0, state)] for rank in range(number)]


def test_blocks_come_round_and_round(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    ahead = ReadAhead(stored_blocks(path, 3), make_ring(5, PIECE_BYTES))
    for number in (0, 1, 2, 0, 2, 1):
        read = bytearray()

        def keep(piece: StoredPart, stage: Tensor, read: bytearray = read) -> HasLeft:
            read += bytes(stage.tolist())
            return at_once

        ahead.take(number, keep)
        start = number * PIECE_BYTES * NUM_PIECES
        assert read == path.read_bytes()[start : start + PIECE_BYTES * NUM_PIECES]
    ahead.close()


def test_the_end_comes_while_a_block_is_taken_out_of_turn(tmp_path: Path) -> None:
    """As at the end of a stage on a slow disk: readings are under way, others wait, and the next pass is prepared."""
    ahead = ReadAhead(stored_blocks(tmp_path / "weights", 2), make_ring(NUM_PIECES, PIECE_BYTES))
    has_left = threading.Event()
    ahead.take(0, lambda piece, stage: has_left.wait)  # from now on all readings wait, four of them in threads
    with ThreadPoolExecutor(2) as threads:
        closing = threads.submit(ahead.close)
        time.sleep(0.2)  # until the readings that wait have been called off
        taking = threads.submit(ahead.take, 0, lambda piece, stage: at_once)
        has_left.set()
        closing.result(timeout=LIMIT_S)
        with pytest.raises((CancelledError, RuntimeError)):
            taking.result(timeout=LIMIT_S)
