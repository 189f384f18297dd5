"""The program of every process but the first: load the network, then compute a share of each pass.

Orders come through a pipe, which a thread reads: when the first process is gone, however it went, the pipe ends and so
does this one, at once, even from within a pass that will never complete. Signals that stop the first process (Ctrl-C,
a request to end) are left to it. What goes wrong here is told through the pipe.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch

from infinitalk_cli.errors import TalkError
from infinitalk_cli.models.attention import use_kernel
from infinitalk_cli.models.dit import DiT
from infinitalk_cli.parallel.group import join_group
from infinitalk_cli.parallel.passes import PassMessage, PassReader
from infinitalk_cli.parallel.rank_tokens import divider

LEFT_TO_RANK_0 = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))

Order = Literal["join"] | PassMessage
"""What rank 0 says."""

Build = Callable[[torch.device], AbstractContextManager[DiT]]
"""Loads the network on a device and has it ready inside the `with`. It goes through the pipe: by its name."""


@dataclass(frozen=True)
class Duty:
    """What a process is to do. `meeting`: of `join_group`."""

    rank: int
    num_ranks: int
    device: torch.device
    build: Build
    meeting: Path
    timeout_s: float


@dataclass(frozen=True)
class Failure:
    """What a process says before it ends. `details`: where it happened."""

    error: TalkError
    details: str


def main(descriptor: int) -> NoReturn:
    """Serve until rank 0 ends this process, or is gone. `descriptor`: of the pipe to it."""
    for number in LEFT_TO_RANK_0:
        signal.signal(number, signal.SIG_IGN)
    pipe = Connection(descriptor)
    try:
        duty: Duty = pipe.recv()
        serve(duty, pipe)
    except Exception as error:
        with suppress(OSError):
            pipe.send(Failure(as_talk_error(error), traceback.format_exc()))
    sys.stderr.flush()
    os._exit(1)  # not through torch's tidying up, which may wait for the other ranks


def serve(duty: Duty, pipe: Connection) -> None:
    """Load, join, and compute what is asked, without an end."""
    orders: queue.Queue[Order] = queue.Queue()
    threading.Thread(target=_listen, args=(pipe, orders), daemon=True).start()
    if duty.device.type == "cuda":
        torch.cuda.set_device(duty.device)
    with torch.no_grad(), duty.build(duty.device) as dit:
        pipe.send("ready")
        orders.get()  # to join
        join_group(duty.rank, duty.num_ranks, duty.device, duty.meeting, duty.timeout_s)
        dit.divide_tokens = divider(duty.rank, duty.num_ranks)
        reader = PassReader(duty.device)
        while True:
            order = orders.get()
            assert isinstance(order, PassMessage), order
            with use_kernel(order.kernel):
                dit(**reader.read(order))


def as_talk_error(error: Exception) -> TalkError:
    """The error in a form that rank 0 can show."""
    if isinstance(error, TalkError):
        return error
    return TalkError(f"unexpected: {type(error).__name__}: {error}", hint="TALK_DEBUG=1 shows where; please report it")


def _listen(pipe: Connection, orders: queue.Queue[Any]) -> None:
    while True:
        try:
            orders.put(pipe.recv())
        except (EOFError, OSError):
            os._exit(1)
