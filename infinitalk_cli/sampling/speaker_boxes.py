"""Rectangles of the source picture in which speakers are: what a box is, and the halves that stand in for one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from infinitalk_cli.sampling.settings import InvalidInput

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


@dataclass(frozen=True)
class PixelBox:
    """A `Box` in whole pixels."""

    left: int
    top: int
    right: int
    bottom: int


def default_boxes(height: int, width: int, margin: float = DEFAULT_MARGIN) -> tuple[PixelBox, PixelBox]:
    """The left and the right half of a picture, each smaller by `margin` of its size on every side."""
    half = width // 2
    top, bottom = int(height * margin), int(height * (1 - margin))
    left, right = int(half * margin), int(half * (1 - margin))
    second_left, second_right = int(half * margin + half), int(half * (1 - margin) + half)
    return PixelBox(left, top, right, bottom), PixelBox(second_left, top, second_right, bottom)


def check_inside(number: int, box: Box, height: int, width: int) -> None:
    """Raises: InvalidInput: if the box of speaker `number` leaves the picture."""
    if 0 <= box.left < box.right <= width and 0 <= box.top < box.bottom <= height:
        return
    raise InvalidInput(
        f"the box of speaker {number}, {describe(box)}, is not a rectangle within the picture's "
        f"{width} x {height} pixels",
        hint="boxes are left, top, right, bottom in pixels of the source picture",
    )


def describe(box: Box) -> str:
    """The numbers of a box for a message."""
    return f"left {box.left:g}, top {box.top:g}, right {box.right:g}, bottom {box.bottom:g}"
