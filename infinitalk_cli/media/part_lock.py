"""One writer for a file: a lock that the operating system drops when its holder ends, however it ends.

So the file that a killed run left is free, and that of a run under way is not. Where a file system knows no locks, the
file is used without.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

FAR_BEYOND_THE_END = 2**62
"""Windows lets nobody read locked bytes; so one is locked there that will never be written."""


def open_alone(path: Path) -> BinaryIO:
    """Open a file to be written anew, as its only writer until it is closed.

    Raises: BlockingIOError: if another run is writing it; nothing of it is lost then. OSError: as `open`.
    """
    while True:
        path.touch()
        file = path.open("r+b")
        try:
            _lock(file)
            if _is_at(file, path):
                file.truncate(0)
                return file
        except OSError:
            file.close()
            raise
        file.close()  # its last holder removed it before we got the lock


def is_held(path: Path) -> bool:
    """Whether a run is writing that file now. It is not touched."""
    try:
        with path.open("r+b") as file:
            _lock(file)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def remove(file: BinaryIO, path: Path) -> None:
    """Remove a file of `open_alone` while it is ours, and close it. Windows can do so in the other order alone."""
    if sys.platform == "win32":
        close(file)
    path.unlink(missing_ok=True)
    close(file)


def close(file: BinaryIO) -> None:
    """Let go of it."""
    with suppress(OSError):  # what it still holds is not wanted
        file.close()


def _is_at(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _lock(file: BinaryIO) -> None:
    """Raises: BlockingIOError: if another has it."""
    if sys.platform == "win32":
        import msvcrt

        file.seek(FAR_BEYOND_THE_END)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except PermissionError as error:
            raise BlockingIOError(*error.args) from error
        file.seek(0)
        return
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return  # no locks on this file system
