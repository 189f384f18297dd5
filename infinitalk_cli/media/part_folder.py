"""The folder in which a video grows: a file per finished piece, and what the run needs to go on behind the last one.

    talk.part/lock          held by the run that writes here
    talk.part/job.json      what is being made, so that another job is not mistaken for it
    talk.part/carried       what the next chunk needs, of the engine's own form
    talk.part/0001.mp4 ...  the pieces, each complete

Pieces and state get their names only when they are whole and on the disk, the piece first. So a run that was killed at
any moment leaves a state whose pieces are all there, and at most one piece more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from infinitalk_cli.errors import InputError
from infinitalk_cli.media.part_lock import close, open_alone, remove
from infinitalk_cli.media.part_name import LOCK, part_folder_of
from infinitalk_cli.media.segments import sync_to_disk


class PartFolder:
    """The folder of a video in the making, this run's alone until it is closed. `path`: of the folder.

    Leaving a `with` block closes it, and removes it if no piece is in it.
    """

    def __init__(self, output: Path) -> None:
        """Make the folder, and that of `output`, where they are missing.

        Raises: InputError: if nothing can be written there, or another run is writing the same video.
        """
        self.output, self.path = output, part_folder_of(output)
        try:
            if output.is_dir():
                raise InputError(f"{output} is a folder", hint="name a file in it, such as talk.mp4")
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = open_alone(self.path / LOCK)
        except BlockingIOError as error:
            raise InputError(
                f"another run is writing {output}: its folder {self.path} is in use",
                hint="wait for it, or name another file with -o",
            ) from error
        except OSError as error:
            raise InputError(
                f"nothing can be written to {output.parent}: {error.strerror}",
                hint="choose another folder with -o, or change its permissions",
            ) from error

    def __enter__(self) -> PartFolder:
        return self

    def __exit__(self, *_: object) -> None:
        if self.path.exists() and not self.segments():
            self.remove()
        close(self._lock)

    @property
    def carried_path(self) -> Path:
        """Where the engine keeps what the next chunk needs."""
        return self.path / "carried"

    @property
    def job(self) -> dict[str, str] | None:
        """What is being made here; None if that is not known."""
        try:
            content = json.loads((self.path / "job.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return {str(key): str(value) for key, value in content.items()} if isinstance(content, dict) else None

    def segment(self, number: int) -> Path:
        """Where the piece of this number lies, counted from 1."""
        return self.path / f"{number:04}.mp4"

    def segments(self) -> list[Path]:
        """The finished pieces, in order."""
        found = list[Path]()
        while self.segment(len(found) + 1).exists():
            found.append(self.segment(len(found) + 1))
        return found

    def begin(self, job: Mapping[str, str]) -> None:
        """Start anew: nothing of what was here stays."""
        self._clear()
        self.write_whole("job.json", json.dumps(dict(job), indent=2, ensure_ascii=False).encode())

    def keep(self, num_segments: int) -> None:
        """Drop the pieces behind the first `num_segments`."""
        for path in self.segments()[num_segments:]:
            path.unlink()

    def write_whole(self, name: str, content: bytes) -> None:
        """Write a file of this folder, which gets its name when it is on the disk. Raises: OSError: on a full disk."""
        draft = self.path / f"{name}.draft"
        try:
            draft.write_bytes(content)
            sync_to_disk(draft)
            draft.replace(self.path / name)
            sync_to_disk(self.path)
        finally:
            draft.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the folder with all that is in it."""
        self._clear()
        remove(self._lock, self.path / LOCK)
        with suppress(OSError):  # another run may have come in meanwhile
            self.path.rmdir()

    def _clear(self) -> None:
        for path in self.path.iterdir():
            if path.name != LOCK:
                path.unlink()
