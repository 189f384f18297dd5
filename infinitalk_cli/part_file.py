"""A file on its way: bytes are appended beside the target, hashed as they pass, and renamed when they are right.

The part file's name carries the beginning of the digest that is wanted, so a part of another version is never
continued. It is written without a buffer: what was received is in the kernel when the process is killed, and the next
attempt begins where the file ends. The digest of what an earlier attempt left is computed once, when the file is
opened; the rest is hashed while it is written, so a finished file is not read again.

A digest is what the hub states: the SHA-256 of large files, git's object name of small ones.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from infinitalk_cli.errors import DoesNotFitError, InputError, InterruptedRunError, WeightsError

READ_BYTES = 4 * 2**20
SHA256_HEX_DIGITS = 64
SHA1_HEX_DIGITS = 40
NAMED_HEX_DIGITS = 16
LARGEST_GIT_BYTES = 64 * 2**20
"""The hub keeps larger files apart and names them by their SHA-256; a second digest would double the time."""

SUFFIX = ".part"


@dataclass(frozen=True)
class Digest:
    """`kind` "git": SHA-1 over git's header and the content. "unknown": the hub's tag is no digest that we know."""

    kind: Literal["sha256", "git", "unknown"]
    value: str


def read_digest(tag: str) -> Digest:
    """What an entity tag of the hub says about the content."""
    if set(tag) <= set("0123456789abcdef"):
        if len(tag) == SHA256_HEX_DIGITS:
            return Digest("sha256", tag)
        if len(tag) == SHA1_HEX_DIGITS:
            return Digest("git", tag)
    return Digest("unknown", tag)


class Hasher:
    """SHA-256 of a content whose length is known beforehand, and git's name for it if it is small."""

    def __init__(self, size: int) -> None:
        self._sha256 = hashlib.sha256()
        self._git = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False) if size <= LARGEST_GIT_BYTES else None

    def update(self, data: bytes) -> None:
        """Take in the next bytes."""
        self._sha256.update(data)
        if self._git is not None:
            self._git.update(data)

    @property
    def sha256(self) -> str:
        """Of everything so far."""
        return self._sha256.hexdigest()

    def agrees_with(self, digest: Digest) -> bool:
        """Whether this is the content that the hub means; a tag that is no digest excludes nothing."""
        if digest.kind == "unknown":
            return True
        found = self._sha256 if digest.kind == "sha256" else self._git
        return found is not None and found.hexdigest() == digest.value


def hash_file(path: Path, on_bytes: Callable[[int], None] = lambda count: None) -> Hasher:
    """Read a file and hash it. Args: on_bytes: told how many more were read; may raise to stop."""
    hasher = Hasher(path.stat().st_size)
    with path.open("rb", buffering=0) as file:
        while data := file.read(READ_BYTES):
            hasher.update(data)
            on_bytes(len(data))
    return hasher


def part_path(target: Path, digest: Digest) -> Path:
    """Where the part of this version of `target` lies."""
    safe = "".join(letter if letter.isalnum() else "-" for letter in digest.value[:NAMED_HEX_DIGITS])
    return target.with_name(f"{target.name}.{safe}{SUFFIX}")


def parts_of(target: Path) -> list[Path]:
    """The parts of every version of `target`."""
    names = (path for path in target.parent.iterdir() if path.name.startswith(f"{target.name}."))
    return sorted(path for path in names if path.suffix == SUFFIX) if target.parent.is_dir() else []


class PartFile(io.RawIOBase):
    """The part of one file, opened to be continued; a binary file to write to.

    `size`: of the whole. `on_bytes`: told of bytes received, and of bytes lost with a negative count. `stopped`: asked
    at each write; a true answer ends the transfer.
    """

    def __init__(
        self,
        target: Path,
        size: int,
        digest: Digest,
        *,
        on_bytes: Callable[[int], None] = lambda count: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__()
        self.target, self.size, self.digest = target, size, digest
        self.path = part_path(target, digest)
        self._on_bytes, self._stopped = on_bytes, stopped
        with disk_errors(self.path):
            target.parent.mkdir(parents=True, exist_ok=True)
            for other in parts_of(target):
                if other != self.path or other.is_symlink():  # a link may lead to a file that is not ours to write
                    other.unlink()
            self._file = self.path.open("ab+", buffering=0)
        self._hasher = Hasher(size)
        self._have = 0
        self._take_up()

    @property
    def have_bytes(self) -> int:
        """Received so far, by this attempt and by earlier ones."""
        return self._have

    def writable(self) -> bool:
        """True: it is a file to write to."""
        return True

    def write(self, data: bytes) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Append. Raises: TalkError: if the disk is full or fails, or the transfer is to stop."""
        if self._stopped():
            raise InterruptedRunError("the download was stopped")
        if self._have + len(data) > self.size:
            raise TooManyBytesError(self.path)
        with disk_errors(self.path):
            rest = memoryview(data)
            while rest:
                rest = rest[self._file.write(rest) :]
        self._hasher.update(data)
        self._have += len(data)
        self._on_bytes(len(data))
        return len(data)

    def tell(self) -> int:
        """Where the next byte goes: the end."""
        return self._have

    def seek(self, offset: int, whence: int = 0) -> int:
        """Only to where it stands or to the beginning, which is followed by `truncate`."""
        assert whence == 0
        assert offset in (0, self._have)
        if offset < self._have:
            self.restart()
        return offset

    def truncate(self, size: int | None = None) -> int:
        """Nothing lies beyond the end."""
        assert size in (None, self._have)
        return self._have

    def restart(self) -> None:
        """Throw away what was received."""
        with disk_errors(self.path):
            self._file.truncate(0)
        self._on_bytes(-self._have)
        self._hasher, self._have = Hasher(self.size), 0

    @property
    def is_right(self) -> bool:
        """Whether everything has been received and is what the hub means."""
        return self._have == self.size and self._hasher.agrees_with(self.digest)

    def finish(self) -> str:
        """Put the complete file in the target's place, durably. Returns: its SHA-256."""
        assert self.is_right
        with disk_errors(self.target):
            os.fsync(self._file.fileno())
            self._file.close()
            self.path.replace(self.target)
        return self._hasher.sha256

    def discard(self) -> None:
        """Delete it."""
        self._file.close()
        with disk_errors(self.path):
            self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the file; what it holds stays on the disk."""
        if hasattr(self, "_file"):
            self._file.close()
        super().close()

    def __enter__(self) -> PartFile:
        return self

    def _take_up(self) -> None:
        """Hash what an earlier attempt left."""
        with disk_errors(self.path):
            self._file.seek(0)
            while self._have <= self.size and (data := self._file.read(READ_BYTES)):
                if self._stopped():
                    raise InterruptedRunError("the download was stopped")
                self._hasher.update(data)
                self._have += len(data)
                self._on_bytes(len(data))
        if self._have > self.size:
            self.restart()


class TooManyBytesError(Exception):
    """The other side sends more than it announced."""


@contextmanager
def disk_errors(path: Path) -> Generator[None, None, None]:
    """A block that writes at `path`: the operating system's complaints become ours."""
    try:
        yield
    except OSError as error:
        raise disk_error(error, path) from error


def disk_error(error: OSError, path: Path) -> DoesNotFitError | InputError | WeightsError:
    """What to tell the user of a failure to write at `path`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        hint = "what was fetched is kept: make room, then run the same command again"
        return DoesNotFitError(f"the disk of {path.parent} is full: {error.strerror}", hint=hint)
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST):
        hint = "name another folder with --weights-dir, or change its permissions"
        return InputError(f"can't write to {path.parent}: {error.strerror}", hint=hint)
    return WeightsError(f"can't write {path}: {error.strerror or error}", hint="check the disk")
