"""Which files are pictures, videos and sounds, by their first bytes or their names."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic")
VIDEO_ENDINGS = (".mp4", ".avi", ".mov", ".mkv", ".flv", ".wmv", ".webm", ".mpeg", ".mpg", ".ts", ".m4v")
SOUND_ENDINGS = (".wav", ".mp3", ".flac", ".ogg", ".opus", ".m4a", ".aac", ".wma", ".aiff")


def is_video_file(path: Path) -> bool:
    """Whether the first bytes are those of a video; where they tell nothing, the name decides."""
    with path.open("rb") as stream:
        head = stream.read(16)
    if head[4:8] == b"ftyp":
        return head[8:12] not in (b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1")
    if head.startswith((b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*")) or head[8:12] == b"WEBP":
        return False
    if head.startswith((b"\x1aE\xdf\xa3", b"FLV", b"\0\0\1\xba", b"\0\0\1\xb3", b"0&\xb2u")) or head[8:12] == b"AVI ":
        return True
    return path.suffix.lower() in VIDEO_ENDINGS


def media_hint(names: Sequence[str], speech: str = "--audio speech.wav") -> str:
    """The command that was meant where media stand in place of a job file; "" where they are none.

    Args: speech: what to say where none of them is a sound.
    """
    options = {
        option: next((name for name in names if Path(name).suffix.lower() in endings), None)
        for option, endings in (
            ("--image", PICTURE_ENDINGS),
            ("--video", VIDEO_ENDINGS),
            ("--audio", SOUND_ENDINGS),
        )
    }
    if not any(options.values()):
        return ""
    if options["--image"]:
        options["--video"] = None
    elif not options["--video"]:
        options["--image"] = "face.png"
    words = [f"{option} {shlex.quote(name)}" for option, name in options.items() if name]
    return " ".join(["talk generate", *words, *([] if options["--audio"] else [speech])])
