"""Opening a sound or video file through PyAV, with every way of failing turned into an `InputError`.

The name goes to FFmpeg as `file:...` and only the `file` protocol is allowed: neither a name with a colon nor a
playlist inside the file can make it fetch something else. Tags in an old encoding are no reason to refuse a file.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
from av.container import InputContainer
from av.error import FFmpegError, InvalidDataError
from av.frame import Frame
from av.stream import Disposition, Stream
from av.video.stream import VideoStream

from infinitalk_cli.errors import InputError

TEXT_DEMUXERS = frozenset({"tty", "hls", "concat", "dash", "sdp"})
"""Formats FFmpeg sees in plain text: pictures made of letters, and lists of other files."""


def check_file(path: Path, what: str) -> None:
    """Check that `path` is a file with something in it.

    Args: what: for the message, with its article ("a sound file").
    Raises: InputError: if it is missing, a folder or empty.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist; {what} is needed there", hint="check the spelling of the path")
    if not path.is_file():
        raise InputError(f"{path} is not a file; {what} is needed there", hint="name the file, not its folder")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty (0 bytes)", hint="the copy or the download may have failed; fetch it again")


def open_container(path: Path, what: str) -> InputContainer:
    """Open a file for demuxing.

    Raises: InputError: if it is missing, empty, not permitted, or nothing that FFmpeg reads.
    """
    check_file(path, what)
    try:
        container = av.open(
            f"file:{path}",
            "r",
            container_options={"protocol_whitelist": "file"},
            metadata_errors="replace",
        )
    except PermissionError as error:
        raise InputError(f"{path} may not be read: permission denied", hint="change the file's permissions") from error
    except (FFmpegError, OSError) as error:
        raise _unreadable(path, what) from error
    if TEXT_DEMUXERS & set(container.format.name.split(",")):
        container.close()
        raise _unreadable(path, what)
    return container


def find_video(container: InputContainer) -> VideoStream | None:
    """The first video stream that is not a cover picture, or None."""
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            return stream
    return None


def decode_frames(container: InputContainer, stream: Stream) -> Iterator[Frame]:
    """Decode a stream to its end, passing over packets that are damaged, as players do."""
    for packet in container.demux(stream):
        try:
            decoded = packet.decode()
        except InvalidDataError:
            continue
        for frame in decoded:
            if isinstance(frame, Frame):
                yield frame


def _unreadable(path: Path, what: str) -> InputError:
    return InputError(
        f"{path} cannot be read as {what}: the file is damaged or of another kind",
        hint="check that it plays; saving it anew in a common format (WAV, MP3, MP4) usually helps",
    )
