"""What a finished video tells of the run that made it, where the same job has nothing left to do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from infinitalk_cli.job_record import is_record, record_places
from infinitalk_cli.media.container import open_container
from infinitalk_cli.media.reference import VIDEO_FPS
from infinitalk_cli.request import GenerateRequest, GenerateResult


def finished_result(request: GenerateRequest) -> GenerateResult:
    """The result of the run that made the video which is there: of its record, or what the mp4 itself shows.

    Raises: InputError: if that can't be read.
    """
    for path in filter(is_record, record_places(request.output)):
        try:
            return _told(json.loads(path.read_text(encoding="utf-8")), path, request.output)
        except (OSError, ValueError, KeyError, TypeError):
            continue  # damaged, or of another video
    return _seen(request.output)


def _told(record: Mapping[str, Any], path: Path, output: Path) -> GenerateResult:
    if record["video"] != output.name:
        raise ValueError
    made, peaks = record["made"], record["peak_bytes"]
    return GenerateResult(
        output=output,
        width=made["width"],
        height=made["height"],
        num_frames=made["num_frames"],
        fps=made["fps"],
        num_chunks=made["num_chunks"],
        elapsed_s=sum(record["seconds"].values()),
        ram_peak_bytes=peaks["ram"],
        vram_peak_bytes=peaks["gpu"],
        drift=record["drift"],
        record=path,
        skipped=True,
    )


def _seen(output: Path) -> GenerateResult:
    """How many chunks there were, and what they took, an mp4 does not show."""
    with open_container(output, "a video") as container:
        video = container.streams.video[0]
        return GenerateResult(
            output, video.width, video.height, video.frames, VIDEO_FPS, num_chunks=0, elapsed_s=0.0, skipped=True
        )
