"""The two forms of the mp4: fragments while it is being written, one index in front when it is done.

AAC starts with 1024 samples of encoder delay. The index says to skip them, so that sound and picture start together; a
fragmented file can say so only if its `moov` box is written after the first packets, hence `delay_moov`.

FFmpeg forgets a failed write that happens while it closes a file. Both forms are therefore looked at afterwards: an mp4
is a row of boxes, each with its length, that must end exactly where the file ends.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from pathlib import Path

import av

FRAGMENTED = "frag_keyframe+delay_moov+default_base_moof"
"""FFmpeg's flags for the first form: every key frame starts a fragment, which is `moof` and `mdat`."""

LONG_FORM = 1
"""In place of a box's length: the length follows in eight bytes."""


def copy_to_plain_mp4(source: Path, target: Path, *, num_samples: int, metadata: Mapping[str, str]) -> None:
    """Write the streams of `source` to `target` as they are, with one index, at the front.

    Args: num_samples: length of the sound; the last AAC packet is filled up, and fragments may forget how far.
    Raises: OSError: if the disk takes no more.
    """
    with av.open(str(source), "r") as fragments:
        # A timescale in which the sound's length is exact; the default of 1000 cuts up to a millisecond.
        timescale = fragments.streams.audio[0].rate if fragments.streams.audio else 12_800
        options = {"movflags": "faststart", "movie_timescale": str(timescale)}
        with av.open(str(target), "w", format="mp4", options=options) as plain:
            plain.metadata.update(metadata)
            copies = {stream.index: plain.add_stream_from_template(stream) for stream in fragments.streams}
            for packet in fragments.demux():
                if packet.dts is not None and packet.pts is not None:
                    if packet.stream.type == "audio" and packet.duration:
                        packet.duration = max(1, min(packet.duration, num_samples - packet.pts))
                    packet.stream = copies[packet.stream.index]
                    plain.mux(packet)
    kinds = dict(complete_boxes(target))
    if not {b"moov", b"mdat"} <= kinds.keys() or max(kinds.values()) != target.stat().st_size:
        raise OSError(errno.ENOSPC, "the file came out incomplete, as on a full disk")


def cut_to_fragments(path: Path) -> bool:
    """Cut a fragmented mp4 whose writing broke off after its last complete fragment.

    Returns: whether any fragment is left; if none is, the file is removed.
    """
    if not path.exists():
        return False
    boxes = list(complete_boxes(path))
    ends = [end for kind, end in boxes if kind == b"mdat"]
    if not ends or b"moov" not in dict(boxes):
        path.unlink()
        return False
    with path.open("r+b") as file:
        file.truncate(ends[-1])
    return True


def complete_boxes(path: Path) -> Iterator[tuple[bytes, int]]:
    """Yield the kind of each box at the top level of an mp4 and the byte after it, up to the first incomplete one."""
    size, position = path.stat().st_size, 0
    with path.open("rb") as file:
        while position + 8 <= size:
            file.seek(position)
            length, kind = int.from_bytes(file.read(4), "big"), file.read(4)
            if length == LONG_FORM:
                length = int.from_bytes(file.read(8), "big")
            position += length
            if length < 8 or position > size:
                return
            yield kind, position
