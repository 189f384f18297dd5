"""Where each of two speakers is, on the grid of the latents.

A speaker is a part of the source picture: a mask, a box, or without either the left or right half. It follows the
picture through resize and crop by nearest neighbour, in the three roundings of the original programs: to the
resized picture, to the latents, and (within the transformer) to the tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from infinitalk_cli.sampling.settings import InvalidInput
from infinitalk_cli.sampling.speaker_boxes import Box, check_inside, default_boxes, describe

LATENT_PIXELS = 8
TOKEN_LATENTS = 2


class Crop(Protocol):
    """How the source picture becomes the video's: resized, then `height` x `width` cut out from (`top`, `left`) on.

    A negative `top` or `left` is room that the picture leaves.
    """

    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def resized_height(self) -> int: ...
    @property
    def resized_width(self) -> int: ...
    @property
    def top(self) -> int: ...
    @property
    def left(self) -> int: ...


def speaker_masks(
    source_height: int, source_width: int, crop: Crop, places: Sequence[Box | Tensor] | None = None
) -> Tensor:
    """Masks `(3, height / 8, width / 8)` of the crop, of zeros and ones, float32: speaker 1, speaker 2, background.

    Args: source_height, source_width: of the picture that the places refer to. places: of both speakers, in order: a
        box, or `(source_height, source_width)` of true and false; None puts speaker 1 in the left half and speaker 2
        in the right.
    Raises: InvalidInput: if a box leaves the picture, or nothing of a place is left in the video.
    """
    if places is None:
        places = default_boxes(source_height, source_width)
    if len(places) != 2:
        raise InvalidInput(f"{len(places)} boxes for 2 speakers", hint="give one box for each speaker, or none")
    rows = source_positions(source_height, crop.resized_height, crop.top, crop.height)
    columns = source_positions(source_width, crop.resized_width, crop.left, crop.width)
    masks: list[Tensor] = []
    for number, place in enumerate(places, start=1):
        if isinstance(place, Tensor):
            mask, what = place[rows.long()][:, columns.long()] & (rows >= 0)[:, None] & (columns >= 0), "mask"
        else:
            check_inside(number, place, source_height, source_width)
            mask = _inside(rows, place.top, place.bottom)[:, None] & _inside(columns, place.left, place.right)
            what = f"box, {describe(place)},"
        if not mask[::TOKEN_LATENTS, ::TOKEN_LATENTS].any():
            raise InvalidInput(
                f"nothing of the {what} of speaker {number} is left in the video: it shows "
                f"{crop.width} x {crop.height} pixels from ({crop.left}, {crop.top}) on of the picture's "
                f"{source_width} x {source_height}, resized to {crop.resized_width} x {crop.resized_height}",
                hint="make it larger, or crop the picture around the speakers; `talk preview` draws it",
            )
        masks.append(mask)
    return torch.stack([*masks, ~(masks[0] | masks[1])]).float()


def source_positions(source: int, resized: int, offset: int, target: int) -> Tensor:
    """Source row (or column) that each latent row reads: through the resize, the crop and the step to the latents.

    -1 where the picture leaves room.
    """
    positions = torch.arange(source, dtype=torch.float32)
    before, after = max(-offset, 0), max(offset + target - resized, 0)
    placed = torch.nn.functional.pad(nearest(positions, resized), (before, after), value=-1.0)
    cropped = placed[offset + before : offset + before + target]
    return nearest(cropped, target // LATENT_PIXELS)


def nearest(values: Tensor, size: int) -> Tensor:
    """Resample a row of values to `size` of them by nearest neighbour, rounding positions down."""
    return torch.nn.functional.interpolate(values[None, None], size=size, mode="nearest")[0, 0]


def _inside(positions: Tensor, start: float, end: float) -> Tensor:
    return (positions >= round(start)) & (positions < round(end))
