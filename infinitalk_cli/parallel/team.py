"""Rank 0's side of a job on several GPUs: starts the other processes, leads every pass, and sees that nothing hangs.

A rank that fails leaves the others waiting in the middle of a pass, on the GPU, where no exception reaches them. So a
thread listens to all pipes. When one tells of an error, or ends, or a pass lasts beyond reason, the thread keeps the
reason and aborts the group, which frees what waits; the pass then ends in garbage or an exception, and `stage` raises
the reason instead. Every pass is waited for, so that garbage is never taken for a picture; the wait is a thousandth of
the pass.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
from torch import nn

from infinitalk_cli.errors import EnvironmentUnfitError, OutOfGpuMemoryError, TalkError
from infinitalk_cli.models.dit import DiT
from infinitalk_cli.parallel.group import abort_group, apply_settings, check_distributed, join_group
from infinitalk_cli.parallel.passes import PassWriter, broadcast
from infinitalk_cli.parallel.rank_tokens import divider
from infinitalk_cli.parallel.worker import Build, Duty, Failure

STALL_S = 1800.0
"""No pass takes so long: what is under way then will never end."""

LAST_WORDS_S = 3.0
"""How long to wait for the reason of another process when something fails here."""

END_S = 5.0
"""How long to wait for the end of a process that has been killed, or has closed its pipe."""

_POLL_S = 0.001
_PROGRAM = "import sys; sys.path[:] = {path!r}; from infinitalk_cli.parallel.worker import main; main({descriptor})"


@dataclass
class _Member:
    """Another process."""

    rank: int
    process: subprocess.Popen[bytes]
    pipe: Connection
    is_ready: bool = False


@dataclass
class Team:
    """The processes of one job, this one included.

    Args: num_ranks: processes in all. device: of this one; on GPUs rank r computes on the r-th that torch sees.
        build: how the others load the network. stall_s: see `STALL_S`.
    """

    num_ranks: int
    device: torch.device
    build: Build
    stall_s: float = STALL_S
    _members: list[_Member] = field(default_factory=list[_Member])
    _failure: TalkError | None = None
    _pass_began: float | None = None
    _is_closing: bool = False
    _news: threading.Condition = field(default_factory=threading.Condition)

    def __post_init__(self) -> None:
        if self.device.type == "cuda":  # NCCL wants to know which
            self.device = torch.device("cuda", self.device.index or 0)

    @contextmanager
    def running(self) -> Generator[None]:
        """Have the others start and load inside the `with`; at its end they are gone, whatever happens.

        Raises: EnvironmentUnfitError: if this torch or this machine can't.
        """
        check_distributed(self.device)
        if self.device.type == "cuda" and torch.cuda.device_count() < self.num_ranks:
            raise EnvironmentUnfitError(
                f"--gpus {self.num_ranks}: torch sees {torch.cuda.device_count()} of them",
                hint=f"--gpus {max(1, torch.cuda.device_count())}, or let CUDA_VISIBLE_DEVICES name more",
            )
        apply_settings()
        with tempfile.TemporaryDirectory(prefix="talk-ranks-", ignore_cleanup_errors=True) as folder:
            self._folder = Path(folder)
            self._listener = threading.Thread(target=self._listen, daemon=True)
            try:
                for rank in range(1, self.num_ranks):
                    self._members.append(self._start(rank))
                self._listener.start()
                yield
            finally:
                self._close()

    def lead(self, dit: DiT) -> None:
        """Wait until the others have loaded, and compute every pass of `dit` together from now on.

        Raises: TalkError: the reason, if one of them fails.
        """
        self._wait_for(lambda: all(member.is_ready for member in self._members))
        for member in self._members:
            self._send(member, "join")
        self._beside(self._join)
        dit.divide_tokens = divider(0, self.num_ranks)
        self._writer = PassWriter(self.device)
        dit.register_forward_pre_hook(self._begin_pass, with_kwargs=True)
        dit.register_forward_hook(self._end_pass)

    @contextmanager
    def stage(self) -> Generator[None]:
        """Around passes: what fails here because another process failed is told with the reason."""
        try:
            yield
        except Exception as error:
            with self._news:
                self._news.wait_for(lambda: self._failure is not None, LAST_WORDS_S)
            if self._failure is not None:
                raise self._failure from error
            raise

    def _start(self, rank: int) -> _Member:
        ours, theirs = Pipe()
        program = _PROGRAM.format(path=sys.path, descriptor=theirs.fileno())
        with (self._folder / f"{rank}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", program],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=None if os.environ.get("TALK_DEBUG") == "1" else log,
                start_new_session=True,  # Ctrl-C and the closing of the terminal are for this process alone
            )
        theirs.close()
        member = _Member(rank, process, ours)
        device = torch.device("cuda", rank) if self.device.type == "cuda" else self.device
        meeting = self._folder / "meeting"
        self._send(member, Duty(rank, self.num_ranks, device, self.build, meeting, 2 * self.stall_s))
        return member

    def _join(self) -> None:
        join_group(0, self.num_ranks, self.device, self._folder / "meeting", 2 * self.stall_s)

    def _begin_pass(self, dit: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self._raise_failure()
        if self._pass_began is not None:  # tried again with less memory, while the others are still within the last
            self._fail(OutOfGpuMemoryError("memory ran out in a pass that several GPUs share", hint=_HALF_DONE_HINT))
            self._raise_failure()
        message, tensors = self._writer.write(dit, args, kwargs)
        self._pass_began = time.monotonic()
        for member in self._members:
            self._send(member, message)
        broadcast(tensors)

    def _end_pass(self, dit: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        if self.device.type == "cuda":
            done = torch.cuda.Event()
            done.record(torch.cuda.current_stream(self.device))
            while not done.query() and self._failure is None:
                time.sleep(_POLL_S)
        self._raise_failure()
        self._pass_began = None

    def _wait_for(self, is_so: Callable[[], bool]) -> None:
        """Wait until something is so, or another process fails. Ctrl-C gets through."""
        while True:
            with self._news:
                self._news.wait_for(lambda: self._failure is not None or is_so(), 0.2)
            self._raise_failure()
            if is_so():
                return

    def _beside(self, call: Callable[[], None]) -> None:
        """Make a call that can't be interrupted and that may wait for others in vain."""
        outcome: list[Exception | None] = []

        def run() -> None:
            try:
                call()
                outcome.append(None)
            except Exception as error:
                outcome.append(error)
            with self._news:
                self._news.notify_all()

        threading.Thread(target=run, daemon=True).start()
        with self.stage():
            self._wait_for(lambda: bool(outcome))
            if (error := outcome[0]) is not None:
                raise error

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _fail(self, error: TalkError) -> None:
        """Keep the first reason and free what waits."""
        with self._news:
            if self._failure is not None or self._is_closing:
                return
            self._failure = error
            self._news.notify_all()
        abort_group()

    def _send(self, member: _Member, message: object) -> None:
        try:
            member.pipe.send(message)
        except OSError:  # it is gone; `_listen` finds out why
            with self.stage():
                raise

    def _listen(self) -> None:
        """Hear the others, for as long as there is something to hear."""
        while not self._is_closing and self._failure is None:
            for pipe in wait([member.pipe for member in self._members], timeout=0.5):
                member = next(member for member in self._members if member.pipe is pipe)
                self._hear(member)
            began = self._pass_began
            if began is not None and time.monotonic() - began > self.stall_s:
                self._fail(TalkError(f"the GPUs have not finished a pass in {self.stall_s:.0f} s", hint=_STALL_HINT))

    def _hear(self, member: _Member) -> None:
        try:
            message = member.pipe.recv()
        except (EOFError, OSError):
            if not self._is_closing:
                self._fail(self._found_dead(member))
            return
        if isinstance(message, Failure):
            said = message.error
            error = type(said)(f"GPU {member.rank + 1} of {self.num_ranks}: {said.message}", hint=said.hint)
            error.__cause__ = RuntimeError(message.details)
            self._fail(error)
            return
        with self._news:
            member.is_ready = True
            self._news.notify_all()

    def _found_dead(self, member: _Member) -> TalkError:
        """What to say about a process that ended without a word."""
        with suppress(subprocess.TimeoutExpired):
            member.process.wait(END_S)
        code = member.process.returncode
        how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with code {code}"
        lines = (self._folder / f"{member.rank}.log").read_text(errors="replace").strip().splitlines()
        said = f": {lines[-1]}" if lines else ""
        hint = "the system may have run out of memory (RAM)" if code == -9 else "TALK_DEBUG=1 shows what it prints"
        return TalkError(f"the process for GPU {member.rank + 1} of {self.num_ranks} {how}{said}", hint=hint)

    def _close(self) -> None:
        """End the others, who have nothing to lose, and leave the group."""
        with self._news:
            self._is_closing = True
        for member in self._members:
            member.process.kill()
        if self._listener.is_alive():
            self._listener.join(END_S)
        for member in self._members:
            with suppress(subprocess.TimeoutExpired):
                member.process.wait(END_S)
            member.pipe.close()
        abort_group()


_STALL_HINT = "another program may hold one of the GPUs: `talk doctor` shows who; or leave --gpus out"
_HALF_DONE_HINT = "use 8-bit weights (--quant fp8), a smaller --size, or leave --gpus out: one GPU finds what fits"
