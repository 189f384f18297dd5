"""Where in the source picture each speaker is: boxes and mask images read, checked and brought to the picture's size.

A box or a mask may be painted wrong in ways that would give a video in which the wrong face speaks, without a word. So
what overlaps, lies outside, holds nothing or has another shape than the picture is refused, by name. Neither torch nor
weights are needed here: `talk preview` draws what this module finds.
"""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt

from infinitalk_cli.errors import InputError
from infinitalk_cli.job import Job, Speaker
from infinitalk_cli.media.image import read_image
from infinitalk_cli.sampling.settings import InvalidInput
from infinitalk_cli.sampling.speaker_boxes import Box, check_inside, default_boxes, describe

Area = npt.NDArray[np.bool_]
"""`(height, width)` of the source picture: true where the speaker is."""

BLACK = (0, 0, 0)
WHITE_FROM = 128
"""Greys from here on are white: the speaker."""

LARGEST_SHARED = 0.01
"""Share of the smaller of two masks that may be the other's too: outlines drawn by hand touch. Boxes may not."""


def speaker_areas(job: Job, height: int, width: int) -> tuple[Area, ...]:
    """The part of the picture of each of two speakers; nothing for one, who has all of it.

    Args: height, width: of the source picture. Raises: InputError: for a box or mask that can't be meant.
    """
    if job.num_speakers == 1:
        return ()
    halves = default_boxes(height, width)
    areas: list[Area] = []
    for number, (speaker, half) in enumerate(zip(job.speakers, halves, strict=True), start=1):
        if speaker.everywhere_else:
            areas.append(_the_rest(job, areas[0]))
        elif speaker.mask is not None:
            areas.append(read_mask(speaker.mask, number, height, width))
        else:
            areas.append(_area_of_box(number, speaker.box or half, height, width))
    _refuse_overlap(job.speakers, areas)
    return tuple(areas)


def read_mask(path: Path, number: int, height: int, width: int) -> Area:
    """The mask image of speaker `number`, by nearest neighbour at the size of the picture.

    Raises: InputError: if it is no picture, holds nothing white, or has another shape than the picture.
    """
    image = read_image(path, background=BLACK).convert("L")
    if abs(image.width - image.height * width / height) > 1 and abs(image.height - image.width * height / width) > 1:
        raise InputError(
            f"the mask of speaker {number}, {path}, is {image.width} x {image.height}; the picture is "
            f"{width} x {height}, which is another shape",
            hint="paint the mask over the whole picture and save it with the picture's size, or any with its shape",
        )
    values = np.asarray(image)
    rows = np.arange(height) * image.height // height
    columns = np.arange(width) * image.width // width
    area = values[rows][:, columns] >= WHITE_FROM
    if not area.any():
        raise InputError(
            f"the mask of speaker {number}, {path}, holds nothing white",
            hint="white is where the speaker is, black (or nothing) everything else",
        )
    return area


def _area_of_box(number: int, box: Box, height: int, width: int) -> Area:
    try:
        check_inside(number, box, height, width)
    except InvalidInput as error:
        raise InputError(error.message, hint=error.hint) from error
    area = np.zeros((height, width), np.bool_)
    area[round(box.top) : round(box.bottom), round(box.left) : round(box.right)] = True
    return area


def _the_rest(job: Job, chosen: Area) -> Area:
    if chosen.all():
        what = "box" if job.speakers[0].box else "mask"
        raise InputError(
            f"the {what} of the only speaker is the whole picture, so nobody is left to keep silent",
            hint=f"leave the {what} out: without one the only speaker has the whole picture",
        )
    return ~chosen


def _refuse_overlap(speakers: tuple[Speaker, ...], areas: list[Area]) -> None:
    for (one, first), (other, second) in combinations(zip(speakers, areas, strict=True), 2):
        shared = int((first & second).sum())
        if one.box and other.box and shared:
            rows, columns = np.nonzero(first & second)
            box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            raise InputError(
                f"the boxes of speakers 1 and 2 overlap: both hold {box[0]}, {box[1]}, {box[2]}, {box[3]} "
                f"(speaker 1: {describe(one.box)}; speaker 2: {describe(other.box)})",
                hint="part them: what is in both could follow either voice",
            )
        if shared > LARGEST_SHARED * min(first.sum(), second.sum()):
            raise InputError(
                f"the places of speakers 1 and 2 overlap: {shared / min(first.sum(), second.sum()):.0%} of the smaller "
                f"one is the other's too",
                hint="part them: what is in both could follow either voice",
            )
