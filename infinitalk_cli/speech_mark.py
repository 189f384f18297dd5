"""How speech that was made from text is told from a recording: by a mark behind its samples, with their digest.

Such a file lies beside the video under its name, and is made again with it. A recording of that name would be lost
then, so only what bears the mark, and has not been edited since, is ever replaced.
"""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

HEAD_BYTES = 12
"""`RIFF`, the length of what follows, which the mark changes, and `WAVE`."""

HASHED_AT_ONCE = 2**20


def mark_speech(path: Path) -> None:
    """Put the mark into a WAV file, as a comment that players pass over or show. Raises: OSError: if it can't be."""
    length = path.stat().st_size
    with path.open("r+b") as file:
        mark = _mark(path, length)
        file.seek(length)
        file.write(mark)
        file.seek(4)
        file.write(struct.pack("<I", length + len(mark) - 8))


def is_marked_speech(path: Path) -> bool:
    """Whether a file is speech made from text, as it was made. One that can't be read is not known to be."""
    try:
        length = path.stat().st_size - len(_chunk(""))
        if length < HEAD_BYTES:
            return False
        with path.open("rb") as file:
            file.seek(length)
            end = file.read()
        return end == _mark(path, length)
    except OSError:
        return False


def _mark(path: Path, length: int) -> bytes:
    """The mark of the samples that lie between the head and `length`."""
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        position = file.seek(HEAD_BYTES)
        while data := file.read(min(HASHED_AT_ONCE, length - position)):
            hasher.update(data)
            position += len(data)
    return _chunk(hasher.hexdigest())


def _chunk(digest: str) -> bytes:
    """A RIFF list with one comment, equally long for every digest."""
    text = f"spoken by talk from text, sha256 {digest:64}".encode() + b"\0"
    text += b"\0" * (len(text) % 2)
    comment = b"ICMT" + struct.pack("<I", len(text)) + text
    return b"LIST" + struct.pack("<I", 4 + len(comment)) + b"INFO" + comment
