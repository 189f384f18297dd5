"""Writing the mp4: finished pieces of the video gather in a folder beside the target and become one file in the end.

`write` encodes a piece and returns when it is safe on the disk. `finish` joins the pieces, with the sound, as
`name.part.mp4` and renames that to the target: whoever looks sees no file or a whole one. A writer that is left without
that still joins what is there, to be played, and leaves the pieces for a later run that goes on.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

import torch
from av.error import FFmpegError

from infinitalk_cli.errors import MediaError
from infinitalk_cli.media.part_folder import PartFolder
from infinitalk_cli.media.part_name import part_path_of, real_path_of
from infinitalk_cli.media.segments import Picture, Pixels, join_segments, write_segment
from infinitalk_cli.media.sound_track import SoundTrack

FRAMES_AT_ONCE = 8
"""Frames converted to 8 bits together."""


class VideoWriter:
    """An mp4 in the making. `num_frames`: frames written so far, those of an earlier run included.

    `path`: of the video, `part_path`: of a part that can be played, `pieces_path`: of the folder of finished pieces.

    Leaving a `with` block without `finish`, by an error say, joins what is there to a part file that can be played.
    """

    def __init__(
        self,
        folder: PartFolder,
        picture: Picture,
        *,
        sound: SoundTrack | None = None,
        metadata: Mapping[str, str] | None = None,
        overwrite: bool = True,
        num_frames: int = 0,
    ) -> None:
        """Go on in `folder`, behind the pieces that are there.

        Args: metadata: tags such as `title` and `comment`. num_frames: in the pieces that are there.
            overwrite: whether a file that is at the target in the end may be replaced.
        """
        if picture.height % 2 or picture.width % 2:
            raise ValueError(f"the size must be even for yuv420p, not {picture.height} x {picture.width}")
        self.path, self.part_path, self.pieces_path = folder.output, part_path_of(folder.output), folder.path
        self.num_frames = num_frames
        self._folder, self._picture, self._sound = folder, picture, sound
        self._metadata, self._overwrite = dict(metadata or {}), overwrite
        self._num_segments = len(folder.segments())
        self._ended = self._joined = False

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._ended or self.num_frames == 0:
            return
        with suppress(MediaError):  # one error is under way already
            self.join_part()

    def write(self, frames: torch.Tensor | Pixels) -> None:
        """Add a piece; it is on the disk when this returns.

        Args: frames: `(1, 3, n, H, W)` in [-1, 1], rounded to 8 bits here, or `(n, H, W, 3)` RGB of 8 bits.
        Raises: MediaError: if the disk takes no more; the pieces before stay.
        """
        number = self._num_segments + 1
        with self.disk_errors():
            self.num_frames += write_segment(self._folder.segment(number), _as_pixels(frames), self._picture)
        self._num_segments = number

    def finish(self) -> Path:
        """Join the pieces, the sound cut to their length, put the file at the target and remove the pieces.

        Raises: MediaError: if there is no frame, the disk takes no more, or a file that must stay is there by now; the
            pieces then stay.
        """
        if self.num_frames == 0:
            raise MediaError(f"no frame was finished, so {self.path} is not written", hint="start it again")
        self.join_part()
        if not self._overwrite and self.path.exists():
            raise MediaError(
                f"{self.path} came to be there meanwhile and is not replaced; the video is in {self.part_path}",
                hint="rename that file, which can be played as it is",
            )
        with self.disk_errors():
            self.part_path.replace(real_path_of(self.path))
        self._folder.remove()
        return self.path

    def join_part(self) -> Path:
        """Join the pieces so far to a part file that can be played; they stay. Raises: MediaError: on a full disk."""
        self._ended = True
        with self.disk_errors():
            join_segments(
                self._folder.segments(),
                self.part_path,
                num_frames=self.num_frames,
                fps=self._picture.fps,
                sound=self._sound,
                metadata=self._metadata,
            )
        self._joined = True
        return self.part_path

    def kept(self) -> str:
        """What of a video that failed can be played, in words: one file, or the pieces where no disk is left to join.

        Joins them unless that was tried before.
        """
        if self.num_frames == 0:
            return "nothing was finished"
        if not self._ended:
            with suppress(MediaError):
                self.join_part()
        first, *more = self._folder.segments()
        pieces = f"{first} to {more[-1].name}" if more else str(first)
        seconds = self.num_frames / self._picture.fps
        return f"the first {seconds:.2f} s are finished and can be played: {self.part_path if self._joined else pieces}"

    @contextmanager
    def disk_errors(self) -> Generator[None]:
        """Say a failure to write as a `MediaError`."""
        try:
            yield
        except (FFmpegError, OSError) as error:
            raise MediaError(
                f"writing {self.path} failed: {error.strerror}",
                hint="free some disk space, or choose another folder with -o",
            ) from error


def to_pixels(frames: torch.Tensor) -> Pixels:
    """`(1, 3, n, H, W)` in [-1, 1] to `(n, H, W, 3)` RGB of 8 bits, rounded."""
    levels = frames[0].float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    return levels.permute(1, 2, 3, 0).contiguous().cpu().numpy()


def _as_pixels(frames: torch.Tensor | Pixels) -> Iterator[Pixels]:
    """Yield single frames `(H, W, 3)`."""
    if not isinstance(frames, torch.Tensor):
        yield from frames
        return
    for start in range(0, frames.shape[2], FRAMES_AT_ONCE):
        yield from to_pixels(frames[:, :, start : start + FRAMES_AT_ONCE])
