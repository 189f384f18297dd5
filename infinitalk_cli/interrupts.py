"""Ctrl-C at the right moment."""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager


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
