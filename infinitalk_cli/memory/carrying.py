"""Blocks in RAM that the GPU can't fetch by itself, carried to it by a thread.

Copies from RAM that is not page-locked are the driver's own work, during which the caller waits, and behind it all
computing that it has not asked for yet. So a thread copies such a block piece by piece into two locked pieces that take
turns: while one is on its way to the GPU the other is filled. The caller waits no longer than until the block it needs
has been sent, and that while the one before is computed.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from infinitalk_cli.memory.reading import PIECE_BYTES, page_locked


class Carrier:
    """Copies on a stream of a GPU, from any RAM, one block after the other."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._stream = stream
        self._stages = [(page_locked(PIECE_BYTES), torch.cuda.Event()) for _ in range(2)]
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="carrier")

    def carry(
        self, source: Tensor, target: Tensor, *, is_locked: bool, free: torch.cuda.Event, full: torch.cuda.Event
    ) -> Future[None]:
        """Copy the bytes `source` to the front of `target`.

        Args: is_locked: the GPU can fetch them by itself. free: recorded already; `target` may be written to behind
            it. full: recorded behind the copy, when the result is there.
        """
        send = self._send_whole if is_locked else self._send_in_pieces
        return self._thread.submit(self._carry, send, source, target, free, full)

    def _carry(
        self,
        send: Callable[[Tensor, Tensor], None],
        source: Tensor,
        target: Tensor,
        free: torch.cuda.Event,
        full: torch.cuda.Event,
    ) -> None:
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(free)
            send(source, target[: source.numel()])
            full.record(self._stream)

    @staticmethod
    def _send_whole(source: Tensor, target: Tensor) -> None:
        target.copy_(source, non_blocking=True)

    def _send_in_pieces(self, source: Tensor, target: Tensor) -> None:
        for start in range(0, source.numel(), PIECE_BYTES):
            piece = source[start : start + PIECE_BYTES]
            stage, has_left = self._stages[0]
            self._stages.reverse()
            has_left.synchronize()
            locked = stage[: piece.numel()]
            locked.copy_(piece)
            target[start : start + piece.numel()].copy_(locked, non_blocking=True)
            has_left.record(self._stream)
