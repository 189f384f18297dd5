"""What is known of the files in the weights folder: where each came from and which digest was found when it was read.

The record is one small JSON file in the folder's `.talk/`, replaced whole at each change. A file counts as known while
its length and its time of change are those of the record: then neither the network nor the file itself is needed to
say that it is the right one. A record that can't be read is treated as empty; nothing is lost but the time to hash.

The lock beside it keeps two commands from filling one folder at once. The operating system holds it for the open file,
so that it ends with the process, however that ends.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

from infinitalk_cli.part_file import disk_errors

FOLDER = ".talk"
VERSION = 1
SECONDS_BETWEEN_TRIES = 0.2


@dataclass(frozen=True)
class Entry:
    """One file whose bytes were read.

    `place`: under the weights folder, with forward slashes. `mtime_ns`: its time of change then. `repository`,
    `revision`, `commit`, `path`: where it is on the hub; empty for a file that was found, not fetched. `verified`:
    whether the digest is the one that the hub or a published list states.
    """

    place: str
    size: int
    sha256: str
    mtime_ns: int
    repository: str = ""
    revision: str = ""
    commit: str = ""
    path: str = ""
    verified: bool = True


class Record:
    """The entries of one weights folder, kept on the disk; several threads may add to it."""

    def __init__(self, weights_dir: Path) -> None:
        self._weights_dir = weights_dir
        self._path = weights_dir / FOLDER / "record.json"
        self._lock = Lock()
        self._entries = {entry.place: entry for entry in _read_entries(self._path)}

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All of them, also of files that are gone."""
        return tuple(self._entries.values())

    def of(self, place: str) -> Entry | None:
        """What was recorded of this file, whether or not it still holds."""
        return self._entries.get(place)

    def known(self, place: str) -> Entry | None:
        """The entry of this file if the file has not changed since."""
        entry = self._entries.get(place)
        try:
            found = (self._weights_dir / place).stat()
        except OSError:
            return None
        return entry if entry and (entry.size, entry.mtime_ns) == (found.st_size, found.st_mtime_ns) else None

    def add(self, place: str, sha256: str, **origin: Any) -> Entry:
        """Record the file that is now at `place`, and keep that on the disk. Args: origin: the fields of an `Entry`."""
        found = (self._weights_dir / place).stat()
        entry = Entry(place, found.st_size, sha256, found.st_mtime_ns, **origin)
        with self._lock:
            self._entries[place] = entry
            self._save()
        return entry

    def remove(self, place: str) -> None:
        """Forget a file."""
        with self._lock:
            if self._entries.pop(place, None):
                self._save()

    def _save(self) -> None:
        content = {"version": VERSION, "files": [asdict(entry) for entry in self._entries.values()]}
        draft = self._path.with_suffix(".draft")
        with disk_errors(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            draft.unlink(missing_ok=True)  # a link may lead to a file that is not ours to write
            draft.write_text(json.dumps(content, indent=1), encoding="utf-8")
            draft.replace(self._path)


@contextmanager
def locked(weights_dir: Path, on_wait: Callable[[str], None]) -> Generator[None, None, None]:
    """Be the only command that changes the folder; wait for another one to end.

    Args: on_wait: told once, before waiting.
    Raises: TalkError: if the folder can't be written to.
    """
    path = weights_dir / FOLDER / "lock"
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab+")
    with file:
        if not _try_lock(file):
            on_wait(f"another command is changing {weights_dir}; waiting for it to end")
            while not _try_lock(file):
                time.sleep(SECONDS_BETWEEN_TRIES)
        yield


def _try_lock(file: BinaryIO) -> bool:
    """Lock the open file; where the file system knows no locks, do without."""
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return os.name != "nt"
    return True


def _read_entries(path: Path) -> list[Entry]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["version"] != VERSION:
            return []
        return [_read_entry(item) for item in content["files"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _read_entry(item: dict[str, Any]) -> Entry:
    """An entry whose fields have the right types. Raises: TypeError, KeyError: if they don't."""
    values = {field.name: item[field.name] for field in fields(Entry)}
    wanted = {"size": int, "mtime_ns": int, "verified": bool}
    if any(not isinstance(value, wanted.get(name, str)) for name, value in values.items()):
        raise TypeError("a field of another type")
    return Entry(**values)
