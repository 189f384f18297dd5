"""Carry out a plan: several files at a time, each resumable, checked and recorded on its own.

Every file goes the same way: its bytes come into a part file beside its place (or are linked from the hub's cache on
this machine, or are there already), their digest is compared with the hub's, the part is renamed, the record is
written. A kill between any two of these steps costs the next run a hash at most. Wrong bytes are thrown away and
fetched once more; wrong twice is an error. One file's failure doesn't stop the others, unless the cause is the disk or
the connection.
"""

from __future__ import annotations

import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event, Lock, Thread

from infinitalk_cli.download_plan import Plan, PlannedFile
from infinitalk_cli.errors import InterruptedRunError, WeightsError
from infinitalk_cli.file_headers import header_problem
from infinitalk_cli.hub import Hub, RemoteFile, UnreachableError
from infinitalk_cli.part_file import Digest, PartFile, disk_errors, hash_file, part_path, read_digest
from infinitalk_cli.progress import OnProgress, Progress, ignore_progress
from infinitalk_cli.weights_record import Record

NUM_PARALLEL = 4
SECONDS_BETWEEN_REPORTS = 0.2
SPEED_OVER_S = 10.0
LEAVE_AFTER_S = 3.0
"""How long an interrupted command waits for its transfers to notice; part files are in order at any moment."""


@dataclass
class Meter:
    """Bytes done out of a total, counted by many threads, read by one."""

    total_bytes: int
    stage: str = "download"
    _done_bytes: int = 0
    _lock: Lock = field(default_factory=Lock)
    _started_s: float = field(default_factory=lambda: time.monotonic())
    _samples: deque[tuple[float, int]] = field(default_factory=lambda: deque[tuple[float, int]]())

    def add(self, count: int) -> None:
        """Count bytes; a negative count takes back."""
        with self._lock:
            self._done_bytes += count

    def telling(self, on_progress: OnProgress, message: str = "") -> Callable[[int], None]:
        """A counter that tells at once where the work is."""

        def count(num_bytes: int) -> None:
            self.add(num_bytes)
            on_progress(self.read(message))

        return count

    def read(self, message: str = "") -> Progress:
        """Where the work is now, its speed over the last seconds and the time left at that speed."""
        now_s, done = time.monotonic(), self._done_bytes
        self._samples.append((now_s, done))
        while now_s - self._samples[0][0] > SPEED_OVER_S:
            self._samples.popleft()
        then_s, then = self._samples[0]
        speed = max(done - then, 0) / (now_s - then_s) if now_s > then_s else 0.0
        unit, factor = ("GB", 1e9) if self.total_bytes >= 1e9 else ("MB", 1e6)
        return Progress(
            stage=self.stage,
            fraction=min(done / self.total_bytes, 1.0) if self.total_bytes else 1.0,
            elapsed_s=now_s - self._started_s,
            eta_s=(self.total_bytes - done) / speed if speed else None,
            message=message,
            amount=f"{done / factor:.1f} of {self.total_bytes / factor:.1f} {unit} at {speed / 1e6:.1f} MB/s",
        )


@dataclass(frozen=True)
class Outcome:
    """What a download did. `fetched_bytes`: over the network; `linked_bytes`: taken from the hub's cache. `set_aside`:
    where files went that were in the way and that nobody had recorded."""

    fetched_bytes: int
    linked_bytes: int
    elapsed_s: float
    set_aside: tuple[str, ...] = ()


def run_plan(
    plan: Plan,
    record: Record,
    hub: Hub,
    *,
    stop: Event,
    on_progress: OnProgress = ignore_progress,
    num_parallel: int = NUM_PARALLEL,
) -> Outcome:
    """Make the plan true.

    Args: stop: also given to the hub, so that transfers end when it is set.
    Raises: TalkError: after the other files are done; what was fetched is kept. InterruptedRunError: on Ctrl-C.
    """
    started_s = time.monotonic()
    todo = sorted((file for file in plan.files if file.state != "have"), key=lambda file: -file.num_bytes)
    crew = Crew(plan.weights_dir, record, hub, Meter(sum(file.num_bytes for file in todo)), stop)
    for file in plan.files:
        if file.state == "have" and file.remote is not None:
            crew.confirm(file, file.remote)
    crew.work(todo, num_parallel, on_progress)
    elapsed_s = time.monotonic() - started_s
    return Outcome(crew.fetched_bytes, crew.linked_bytes, elapsed_s, tuple(map(str, crew.set_aside)))


class Crew:
    """The threads of one download and what they share."""

    def __init__(self, weights_dir: Path, record: Record, hub: Hub, meter: Meter, stop: Event) -> None:
        self._weights_dir, self._record, self._hub, self._meter, self._stop = weights_dir, record, hub, meter, stop
        self._running: dict[str, None] = {}
        self._errors: list[Exception] = []
        self._lock = Lock()
        self.fetched_bytes = 0
        self.linked_bytes = 0
        self.set_aside: list[Path] = []

    def work(self, todo: Sequence[PlannedFile], num_parallel: int, on_progress: OnProgress) -> None:
        """Do all files, the largest first. Raises: TalkError: the troubles that there were."""
        queue: SimpleQueue[PlannedFile] = SimpleQueue()
        for file in todo:
            queue.put(file)
        threads = [
            Thread(target=self._work_through, args=(queue,), daemon=True) for _ in range(min(num_parallel, len(todo)))
        ]
        try:
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads):
                on_progress(self._meter.read(self._message()))
                _join(threads, SECONDS_BETWEEN_REPORTS)
        except KeyboardInterrupt as error:
            self._stop.set()
            _join(threads, LEAVE_AFTER_S)
            hint = "what was fetched is kept: the same command goes on from there"
            raise InterruptedRunError("the download was stopped", hint=hint) from error
        _raise_all(self._errors)

    def confirm(self, file: PlannedFile, remote: RemoteFile) -> None:
        """Record that a file that was found is the hub's."""
        entry = self._record.known(file.file.place)
        if entry is not None:
            self._note(file, remote, entry.sha256)

    def _message(self) -> str:
        names = [place.rpartition("/")[2] for place in list(self._running)]
        return f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else "".join(names)

    def _work_through(self, queue: SimpleQueue[PlannedFile]) -> None:
        while not self._stop.is_set():
            try:
                file = queue.get_nowait()
            except Empty:
                return
            self._running[file.file.place] = None
            try:
                self._obtain(file)
            except Exception as error:  # handed over: it is raised in the thread that asked for the files
                self._errors.append(error)
                if not isinstance(error, WeightsError) or isinstance(error, UnreachableError):
                    self._stop.set()
            finally:
                del self._running[file.file.place]

    def _obtain(self, file: PlannedFile) -> None:
        """Have the right file at its place, by the cheapest way that works."""
        if file.state == "check" and self._accept(file, file.place):
            return
        if file.cached is not None and self._accept(file, file.cached):
            return
        if file.remote is None:
            raise WeightsError(f"{file.cached or file.place} is damaged, and offline it can't be fetched again")
        self._fetch(file, file.remote)

    def _accept(self, file: PlannedFile, path: Path) -> bool:
        """Hash a file that is there already; record it if it is right."""
        try:
            hasher = hash_file(path, self._count)
        except OSError as error:
            raise WeightsError(f"can't read {path}: {error.strerror}", hint="check the disk") from error
        wanted = file.remote.digest if file.remote else self._digest_offline(file, path)
        if not hasher.agrees_with(wanted) or (wanted.kind == "unknown" and header_problem(path) is not None):
            self._meter.add(-file.num_bytes)
            return False
        if path != file.place:
            with disk_errors(file.place):
                file.place.parent.mkdir(parents=True, exist_ok=True)
                place_link(path, file.place)
            with self._lock:
                self.linked_bytes += file.num_bytes
        self._note(file, file.remote, hasher.sha256, verified=file.remote is not None or wanted.kind != "unknown")
        return True

    def _digest_offline(self, file: PlannedFile, path: Path) -> Digest:
        """What a file's content must be as far as this machine knows: the hub's cache names contents by their digests,
        and what was verified once is recorded."""
        if path == file.cached:
            return read_digest(path.name)
        entry = self._record.of(file.file.place)
        return Digest("sha256", entry.sha256) if entry and entry.verified else Digest("unknown", "")

    def _fetch(self, file: PlannedFile, remote: RemoteFile) -> None:
        """Fetch a file; what turns out wrong is fetched a second time."""
        adopt_cut_file(file.place, remote)
        with PartFile(file.place, remote.size, remote.digest, on_bytes=self._count, stopped=self._stop.is_set) as part:
            for _ in range(2):
                before = part.have_bytes
                try:
                    self._hub.fetch(remote, part)
                finally:
                    with self._lock:
                        self.fetched_bytes += max(part.have_bytes - before, 0)
                if part.is_right:
                    self._set_aside(file)
                    self._note(file, remote, part.finish())
                    return
                part.restart()
            part.discard()
        raise WeightsError(
            f"{remote.path} of {remote.repository} arrived damaged twice; it was deleted",
            hint="a proxy or a mirror changes it: try another network, or another HF_ENDPOINT",
        )

    def _set_aside(self, file: PlannedFile) -> None:
        """Keep sound weights that are in the way under another name: they are somebody's, who did not get them here."""
        place = file.place
        if place.suffix != ".safetensors" or place.is_symlink() or not place.is_file():
            return
        if self._record.of(file.file.place) is None and header_problem(place) is None:
            aside = place.with_name(f"{place.name}.{int(place.stat().st_mtime)}.other")
            with disk_errors(place):
                place.replace(aside)
            self.set_aside.append(aside)

    def _count(self, count: int) -> None:
        if self._stop.is_set():
            raise InterruptedRunError("the download was stopped")
        self._meter.add(count)

    def _note(self, file: PlannedFile, remote: RemoteFile | None, sha256: str, *, verified: bool = True) -> None:
        self._record.add(file.file.place, sha256, verified=verified, **(remote.origin if remote else {}))


def adopt_cut_file(place: Path, remote: RemoteFile) -> None:
    """Let a file that another program left unfinished at its place be the part to go on from.

    Only one that is shorter than it should be, that its header shows to be cut, and that has no other name.
    """
    part = part_path(place, remote.digest)
    if place.is_symlink() or not place.is_file() or part.exists():
        return
    found = place.stat()
    if found.st_nlink == 1 and 0 < found.st_size < remote.size and header_problem(place) is not None:
        with disk_errors(place):
            place.replace(part)


def place_link(source: Path, place: Path) -> None:
    """Have the content of `source` at `place` too: the same file where the disk is the same, else a symbolic link, and
    a copy where neither is possible. What was at `place` is replaced at once."""
    draft = place.with_name(f"{place.name}.draft")
    with suppress(FileNotFoundError):
        draft.unlink()
    for make in (os.link, os.symlink, shutil.copyfile):
        try:
            make(source.resolve(), draft)
            break
        except OSError:
            if make is shutil.copyfile:
                raise
    draft.replace(place)


def _join(threads: Sequence[Thread], seconds: float) -> None:
    deadline_s = time.monotonic() + seconds
    for thread in (thread for thread in threads if thread.ident is not None):  # an interrupt may come while they start
        thread.join(max(deadline_s - time.monotonic(), 0))


def _raise_all(errors: Sequence[Exception]) -> None:
    """The disk's troubles first, for they are the cause of others; else one error that names all."""
    if not errors:
        return
    lasting = [error for error in errors if not isinstance(error, (WeightsError, InterruptedRunError))]
    if lasting:
        raise lasting[0]
    told = [error for error in errors if isinstance(error, WeightsError)]
    if len(told) == 1:
        raise told[0]
    hints = dict.fromkeys(error.hint for error in told if error.hint)
    raise WeightsError("\n  ".join(dict.fromkeys(error.message for error in told)), hint="; ".join(hints))
