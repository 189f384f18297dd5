"""How far a run is: the one value that passes from the engine to whoever shows it, beside a note now and then.

The engine calls `on_progress(Progress(...))`; the console draws it, a script or a test records it. Every value stands
alone, so that a viewer may drop as many as it likes. Nothing of ours is imported here, nor anything heavy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """One moment of a run.

    `stage`: a short word, such as "weights", "text", "audio" or "video". `chunk` and `step`: the running ones counted
    from 1, 0 before the first. `num_chunks`, `num_steps`: 0 where the stage has none. `fraction`: of the whole run,
    0 to 1. `eta_s`: seconds left, None while unknown. `ram_bytes`, `vram_bytes`: in use now, None where not measured.
    `message`: what the stage is doing, in a few words. `amount`: how much of it is done, in numbers that change all
    the time: "3.2 of 31.9 GB at 85 MB/s".
    """

    stage: str
    chunk: int = 0
    num_chunks: int = 0
    step: int = 0
    num_steps: int = 0
    fraction: float = 0.0
    elapsed_s: float = 0.0
    eta_s: float | None = None
    ram_bytes: int | None = None
    vram_bytes: int | None = None
    message: str = ""
    amount: str = ""


OnProgress = Callable[[Progress], None]
OnNote = Callable[[str], None]
"""Told, in a line, of something that a user should know and that is no error."""


def ignore_progress(progress: Progress) -> None:
    """The listener of a run that nobody watches."""
