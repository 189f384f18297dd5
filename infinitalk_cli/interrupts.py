"""Ctrl-C at the right moment, and other ways to be told to stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

OTHER_STOPS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
"""A request to end, and a terminal that was closed, which Windows does not tell."""


@contextmanager
def held_interrupts() -> Generator[None]:
    """Let Ctrl-C wait until the block ends: a frame that only half reached the encoder could not be mended.

    Raises: KeyboardInterrupt: after the block, if Ctrl-C was pressed within.
    """
    if threading.current_thread() is not threading.main_thread():  # signals reach the main thread alone
        yield
        return
    was_pressed = threading.Event()
    handler = signal.signal(signal.SIGINT, lambda *_: was_pressed.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if was_pressed.is_set():
        raise KeyboardInterrupt


@contextmanager
def stops_as_interrupts() -> Generator[None]:
    """Take a request to end, or a closed terminal, for Ctrl-C until the block ends.

    Where the parent has chosen otherwise (`nohup` ignores closed terminals) that stays.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours = [number for number in OTHER_STOPS if signal.getsignal(number) == signal.SIG_DFL]
    for number in ours:
        signal.signal(number, _as_interrupt)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _as_interrupt(number: int, frame: FrameType | None) -> None:
    """Do what Ctrl-C would do now, which `held_interrupts` may have changed, even where Ctrl-C itself is ignored."""
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler):
        raise KeyboardInterrupt
    handler(number, frame)
