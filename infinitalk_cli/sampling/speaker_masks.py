"""Where each of two speakers is, on the grid of the latents.

A speaker is a rectangle of the source picture, given as a box or, without boxes, as the left or right half. It follows
the picture through resize and crop by nearest neighbour, in the three roundings of the original programs: to the
resized picture, to the latents, and (within the transformer) to the tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from infinitalk_cli.sampling.settings import InvalidInput

LATENT_PIXELS = 8
TOKEN_LATENTS = 2
DEFAULT_MARGIN = 0.05
"""Share of each side of a half that is left to the background."""


class Box(Protocol):
    """A rectangle in pixels of the source picture, right and bottom exclusive."""

    @property
    def left(self) -> float: ...
    @property
    def top(self) -> float: ...
    @property
    def right(self) -> float: ...
    @property
    def bottom(self) -> float: ...


class Crop(Protocol):
    """How the source picture becomes the video's: resized, then `height` x `width` cut out from (`top`, `left`) on."""

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


@dataclass(frozen=True)
class PixelBox:
    """A `Box` in whole pixels."""

    left: int
    top: int
    right: int
    bottom: int


def speaker_masks(source_height: int, source_width: int, crop: Crop, boxes: Sequence[Box] | None = None) -> Tensor:
    """Masks `(3, height / 8, width / 8)` of the crop, of zeros and ones, float32: speaker 1, speaker 2, background.

    Args: source_height, source_width: of the picture that the boxes refer to. boxes: of both speakers, in order; None
        puts speaker 1 in the left half and speaker 2 in the right.
    Raises: InvalidInput: if a box leaves the picture, or nothing of it is left in the video.
    """
    if boxes is None:
        boxes = default_boxes(source_height, source_width)
    if len(boxes) != 2:
        raise InvalidInput(f"{len(boxes)} boxes for 2 speakers", hint="give one box for each speaker, or none")
    rows = source_positions(source_height, crop.resized_height, crop.top, crop.height)
    columns = source_positions(source_width, crop.resized_width, crop.left, crop.width)
    masks: list[Tensor] = []
    for number, box in enumerate(boxes, start=1):
        _check_inside(number, box, source_height, source_width)
        mask = _inside(rows, box.top, box.bottom)[:, None] & _inside(columns, box.left, box.right)
        if not mask[::TOKEN_LATENTS, ::TOKEN_LATENTS].any():
            raise InvalidInput(
                f"nothing of the box of speaker {number}, {describe(box)}, is left in the video: it shows "
                f"{crop.width} x {crop.height} pixels from ({crop.left}, {crop.top}) on of the picture's "
                f"{source_width} x {source_height}, resized to {crop.resized_width} x {crop.resized_height}",
                hint="make the box larger, or crop the picture around the speakers",
            )
        masks.append(mask)
    return torch.stack([*masks, ~(masks[0] | masks[1])]).float()


def default_boxes(height: int, width: int, margin: float = DEFAULT_MARGIN) -> tuple[PixelBox, PixelBox]:
    """The left and the right half of a picture, each smaller by `margin` of its size on every side."""
    half = width // 2
    top, bottom = int(height * margin), int(height * (1 - margin))
    left, right = int(half * margin), int(half * (1 - margin))
    second_left, second_right = int(half * margin + half), int(half * (1 - margin) + half)
    return PixelBox(left, top, right, bottom), PixelBox(second_left, top, second_right, bottom)


def source_positions(source: int, resized: int, offset: int, target: int) -> Tensor:
    """Source row (or column) that each latent row reads: through the resize, the crop and the step to the latents."""
    positions = torch.arange(source, dtype=torch.float32)
    cropped = nearest(positions, resized)[offset : offset + target]
    return nearest(cropped, target // LATENT_PIXELS)


def nearest(values: Tensor, size: int) -> Tensor:
    """Resample a row of values to `size` of them by nearest neighbour, rounding positions down."""
    return torch.nn.functional.interpolate(values[None, None], size=size, mode="nearest")[0, 0]


def describe(box: Box) -> str:
    """The numbers of a box for a message."""
    return f"left {box.left:g}, top {box.top:g}, right {box.right:g}, bottom {box.bottom:g}"


def _inside(positions: Tensor, start: float, end: float) -> Tensor:
    return (positions >= round(start)) & (positions < round(end))


def _check_inside(number: int, box: Box, height: int, width: int) -> None:
    if 0 <= box.left < box.right <= width and 0 <= box.top < box.bottom <= height:
        return
    raise InvalidInput(
        f"the box of speaker {number}, {describe(box)}, is not a rectangle within the picture's "
        f"{width} x {height} pixels",
        hint="boxes are left, top, right, bottom in pixels of the source picture",
    )
