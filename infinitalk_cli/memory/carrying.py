"""Blocks that the GPU can't fetch by itself, carried to it by a thread.

Copies from RAM that is not page-locked are the driver's own work, during which the caller waits, and behind it all
computing that it has not asked for yet. So a thread copies such a block piece by piece into two locked pieces that take
turns: while one is on its way to the GPU the other is filled. The caller waits no longer than until the block it needs
has been sent, and that while the one before is computed. The same thread sends what is read from files in every pass
(`read_ahead.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from infinitalk_cli.memory.read_ahead import HasLeft, StoredPart
from infinitalk_cli.memory.reading import PIECE_BYTES, page_locked


class Carrier:
    """Copies on a stream of a GPU, from any RAM, one block after the other."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._stream = stream
        self._stages = [(page_locked(PIECE_BYTES), torch.cuda.Event()) for _ in range(2)]
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="carrier")

    def carry(self, send: Callable[[], None], *, free: torch.cuda.Event, full: torch.cuda.Event) -> Future[None]:
        """Have the thread send a block.

        Args: send: asks for the copies, on the stream. free: recorded already; the target may be written to behind it.
            full: recorded behind the copies, when the result is there.
        """
        return self._thread.submit(self._carry, send, free, full)

    def _carry(self, send: Callable[[], None], free: torch.cuda.Event, full: torch.cuda.Event) -> None:
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(free)
            send()
            full.record(self._stream)

    def send_in_pieces(self, source: Tensor, target: Tensor) -> None:
        """Copy bytes that the GPU can't fetch. To be called by `send`."""
        for start in range(0, source.numel(), PIECE_BYTES):
            piece = source[start : start + PIECE_BYTES]
            stage, has_left = self._stages[0]
            self._stages.reverse()
            has_left.synchronize()
            locked = stage[: piece.numel()]
            locked.copy_(piece)
            target[start : start + piece.numel()].copy_(locked, non_blocking=True)
            has_left.record(self._stream)

    def send_stored(self, target: Tensor, piece: StoredPart, read: Tensor) -> HasLeft:
        """Copy bytes that were read from a file to their place in the packed block `target`. To be called by `send`."""
        target[piece.start : piece.start + read.numel()].copy_(read, non_blocking=True)
        has_left = torch.cuda.Event(blocking=True)
        has_left.record(self._stream)
        return has_left.synchronize
