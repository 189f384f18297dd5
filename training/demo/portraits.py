"""Moving pictures of the cut-out people: rendered in batches on the training device, with everything known about them.

A clip has one or two people in front of a room out of focus. They sway, blink and open their mouths as told. An open
mouth is cut into the closed one: below the line of the lips the picture moves down, above it a little up, and what
opens is dark, with teeth. So lips and chin follow without being drawn.

All numbers come from one generator, so a seed means the same clips on the same device.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from training.demo.cutouts import Cutouts

SMALL_SIZE = 96
"""Side of the cut-outs that serve small figures, so that fine detail does not flicker."""

UPPER, LOWER = 0.25, 0.95
"""How far the lips of a fully open mouth part, in half widths of the mouth at rest."""

PAIR_SIDES = (0.78, 1.02)
"""Least and greatest size of two people, against the picture's."""

INSIDE = (0.20, 0.045, 0.05)
TEETH = (0.80, 0.77, 0.73)
HEAD_ABOVE, HEAD_SIDE, HEAD_BELOW = 0.56, 0.30, 0.24
"""What a box around a head takes up around the mouth, in sides of the cut-out."""


@dataclass(frozen=True)
class Sprites:
    """The cut-outs on the device: `(n, 7, S, S)`: open eyes, closed eyes, alpha, in [0, 1]; large and small."""

    large: Tensor
    small: Tensor
    mouths: Tensor

    @classmethod
    def of(cls, cutouts: Cutouts, device: torch.device) -> Sprites:
        parts = [torch.from_numpy(part).to(device) for part in (cutouts.open_eyes, cutouts.closed_eyes, cutouts.alpha)]
        large = torch.cat([parts[0].permute(0, 3, 1, 2), parts[1].permute(0, 3, 1, 2), parts[2][:, None]], 1) / 255
        small = F.interpolate(large, size=(SMALL_SIZE, SMALL_SIZE), mode="area")
        return cls(large, small, torch.from_numpy(cutouts.mouths).to(device))

    @property
    def num_people(self) -> int:
        return len(self.mouths)


@dataclass(frozen=True)
class Figures:
    """One person per clip: who, how large and where. Lengths in pixels; all `(B,)` but `tint` `(B, 3)`.

    side: of the cut-out. x, y: of the mouth in the reference. flip: -1 for mirrored, else 1.
    """

    number: Tensor
    side: Tensor
    x: Tensor
    y: Tensor
    flip: Tensor
    tint: Tensor

    def boxes(self, scale: Tensor) -> Tensor:
        """Left, top, right, bottom of the head and neck: `(B, 4)`, not cut to the picture.

        Args: scale: `(B,)`, about the mouth: less than 1 for what is smaller than a head.
        """
        across, above, below = (part * scale * self.side for part in (HEAD_SIDE, HEAD_ABOVE, HEAD_BELOW))
        return torch.stack([self.x - across, self.y - above, self.x + across, self.y + below], 1)


@dataclass(frozen=True)
class Motion:
    """How a person moves, per frame `(B, T)`: shift in pixels, angle in radians, blink, opening and width of the mouth.

    `opening` and `width` lie in [0, 1] as `speech.py` has them.
    """

    dx: Tensor
    dy: Tensor
    angle: Tensor
    blink: Tensor
    opening: Tensor
    width: Tensor

    @classmethod
    def at_rest(cls, opening: Tensor) -> Motion:
        """A person who sits still, eyes open, the mouth as given `(B, T)`."""
        none = torch.zeros_like(opening)
        return cls(none, none, none, none, opening, torch.full_like(opening, 0.5))


class Studio:
    """Draws clips of pictures `height` x `width` with one generator."""

    def __init__(self, sprites: Sprites, generator: torch.Generator, height: int, width: int) -> None:
        self.sprites = sprites
        self.generator = generator
        self.device = generator.device
        self.height = height
        self.width = width

    def draw(self, batch: int, low: float, high: float) -> Tensor:
        """`(batch,)` uniform numbers."""
        return low + (high - low) * torch.rand(batch, generator=self.generator, device=self.device)

    def room(self, batch: int) -> Tensor:
        """Backgrounds `(batch, 3, 1, H, W)`: a gradient of muted colours, lamps and windows out of focus."""
        rows, columns = self.grid()
        tone = self.draw(batch, 0.12, 0.75)[:, None] + 0.06 * self.normal(batch, 3)
        other = tone + 0.22 * self.normal(batch, 1) + 0.05 * self.normal(batch, 3)
        turn = self.draw(batch, 0, 6.2832)[:, None, None]
        share = (turn.cos() * (columns / self.width - 0.5) + turn.sin() * (rows / self.height - 0.5)) + 0.5
        picture = torch.lerp(tone[:, :, None, None], other[:, :, None, None], share.clamp(0, 1)[:, None])
        for shape in range(5):
            x, y = self.draw(batch, 0, self.width), self.draw(batch, 0, 0.9 * self.height)
            size = self.draw(batch, 0.02, 0.10 if shape < 3 else 0.30) * self.height
            across, along = (columns - x[:, None, None]).abs(), (rows - y[:, None, None]).abs()
            away = (across.square() + along.square()).sqrt() if shape < 3 else across
            soft = self.draw(batch, 1.0, 2.0 if shape < 3 else 12.0)[:, None, None]
            cover = ((size[:, None, None] - away) / soft + 0.5).clamp(0, 1) * self.draw(batch, -0.6, 0.8)[:, None, None]
            colour = (tone + 0.35 * self.normal(batch, 1) + 0.08 * self.normal(batch, 3))[:, :, None, None]
            picture = torch.lerp(picture, colour, cover.clamp_min(0)[:, None])
        return picture.clamp(0.02, 0.98)[:, :, None]

    def normal(self, batch: int, parts: int) -> Tensor:
        """`(batch, parts)` normal numbers."""
        return torch.randn(batch, parts, generator=self.generator, device=self.device)

    def grid(self) -> tuple[Tensor, Tensor]:
        """Rows `(H, 1)` and columns `(1, W)` of the pixels' centres."""
        rows = torch.arange(self.height, device=self.device, dtype=torch.float32) + 0.5
        columns = torch.arange(self.width, device=self.device, dtype=torch.float32) + 0.5
        return rows[:, None], columns[None]

    def alone(self, batch: int) -> Figures:
        """One person per clip, somewhere about the middle."""
        side = min(self.height, self.width * 1.15) * self.draw(batch, 0.82, 1.35)
        x = self.width * 0.5 + self.width * self.draw(batch, -0.12, 0.12)
        y = self.height * 0.5 + side * self.draw(batch, -0.02, 0.16)
        return self.figures(batch, side, x, y)

    def close(self, batch: int, low: float, high: float) -> Figures:
        """One person per clip, of this size in pixels, the mouth anywhere but at the edge."""
        side = self.draw(batch, low, high)
        x, y = self.width * self.draw(batch, 0.15, 0.85), self.height * self.draw(batch, 0.25, 0.9)
        return self.figures(batch, side, x, y)

    def pair(self, batch: int, sides: tuple[float, float] = PAIR_SIDES) -> tuple[Figures, Figures]:
        """Two people per clip who do not hide each other's head; who of them is on the left is open."""
        side = min(self.height, self.width * 0.62) * self.draw(batch, *sides)
        first_is_left = self.draw(batch, 0, 1) < 0.5
        people: list[Figures] = []
        for is_left in (first_is_left, ~first_is_left):
            x = self.width * torch.where(is_left, 0.27, 0.73) + self.width * self.draw(batch, -0.035, 0.035)
            own_side = side * self.draw(batch, 0.92, 1.08)
            y = self.height * 0.5 + own_side * self.draw(batch, -0.06, 0.16)
            people.append(self.figures(batch, own_side, x, y))
        return people[0], people[1]

    def figures(self, batch: int, side: Tensor, x: Tensor, y: Tensor) -> Figures:
        """Random people of this size at these places, colours a little changed."""
        number = torch.randint(self.sprites.num_people, (batch,), generator=self.generator, device=self.device)
        flip = torch.where(self.draw(batch, 0, 1) < 0.5, -1.0, 1.0)
        tint = 1 + 0.08 * self.normal(batch, 1) + 0.05 * self.normal(batch, 3)
        return Figures(number, side, x, y, flip, tint.clamp(0.75, 1.25))

    def motion(self, figures: Figures, opening: Tensor, width: Tensor) -> Motion:
        """Sway and blinks at random around the place in `figures`, the mouth as given `(B, T)`."""
        batch, num_frames = opening.shape
        time = torch.arange(num_frames, device=self.device) / 25
        dx, dy, angle = (self.wave(batch, time) for _ in range(3))
        reach = 0.012 * figures.side[:, None]
        start = self.draw(batch, -1.5, 4.0)[:, None]
        blink = (1 - ((time - start).abs() - 0.06).clamp_min(0) / 0.08).clamp(0, 1)
        return Motion(dx * reach, dy * reach * 0.7, 0.025 * angle, blink, opening, width)

    def wave(self, batch: int, time: Tensor) -> Tensor:
        """A slow swing between -1 and 1: `(batch, T)`."""
        hertz, phase = self.draw(batch, 0.10, 0.35)[:, None], self.draw(batch, 0, 6.2832)[:, None]
        return (6.2832 * hertz * time + phase).sin() * self.draw(batch, 0.2, 1.0)[:, None]

    def place(self, picture: Tensor, figures: Figures, motion: Motion) -> Tensor:
        """Put people into pictures `(B, 3, 1 or T, H, W)` in [0, 1]: `(B, 3, T, H, W)`."""
        batch, num_frames = motion.opening.shape
        is_small = float(figures.side.mean()) < 1.2 * SMALL_SIZE
        sheets = (self.sprites.small if is_small else self.sprites.large)[figures.number]
        mouth = self.sprites.mouths[figures.number]
        across, down, cover, teeth = self.mouth_coordinates(figures, motion, mouth)
        where = on_sheet(across, down, mouth) * 2 - 1  # (B, T, H, W, 2)
        sheets = sheets[:, None].expand(-1, num_frames, -1, -1, -1).flatten(0, 1)
        seen = F.grid_sample(sheets, where.flatten(0, 1), padding_mode="border", align_corners=False)
        seen = seen.unflatten(0, (batch, num_frames)).transpose(1, 2)
        person = torch.lerp(seen[:, 0:3], seen[:, 3:6], motion.blink[:, None, :, None, None])
        person = (person * figures.tint[:, :, None, None, None]).clamp(0, 1)
        inside = torch.lerp(colour(INSIDE, person), colour(TEETH, person), teeth[:, None])
        return torch.lerp(picture, torch.lerp(person, inside, cover[:, None]), seen[:, 6:7])

    def mouth_coordinates(self, figures: Figures, motion: Motion, mouth: Tensor) -> tuple[Tensor, ...]:
        """For every pixel, `(B, T, H, W)` each: where on the resting face it comes from, across and down from the
        mouth's middle in half widths of the mouth; how much of the gap covers it; how much of that are teeth.
        """
        rows, columns = self.grid()
        half = (mouth[:, 2:].norm(dim=1) * figures.side)[:, None, None, None]
        tilt = torch.atan2(mouth[:, 3], mouth[:, 2]) * figures.flip
        angle = (tilt[:, None] + motion.angle)[..., None, None]
        x = columns - (figures.x[:, None] + motion.dx)[..., None, None]
        y = rows - (figures.y[:, None] + motion.dy)[..., None, None]
        across = (x * angle.cos() + y * angle.sin()) / half * figures.flip[:, None, None, None]
        down = (y * angle.cos() - x * angle.sin()) / half

        wide = 0.72 + 0.46 * motion.width[..., None, None]
        near = torch.exp(-(across.square() + down.square()) / 3)
        across = across / (1 + (wide - 1) * near)
        profile = (1 - across.square()).clamp_min(0) ** 0.7 * motion.opening[..., None, None]
        top, bottom = -UPPER * profile, LOWER * profile
        gap = (bottom - top) * half
        cover = (torch.minimum(down - top, bottom - down) * half + 0.5).clamp(0, 1) * gap.clamp(0, 1)
        teeth = ((top + 0.24 * (bottom - top) - down) * half + 0.5).clamp(0, 1) * ((gap - 2.5) / 2).clamp(0, 1)
        middle = (top + bottom) / 2
        lower = down - bottom * torch.exp(-((down - bottom) / 2.0).square())
        upper = down - top * torch.exp(-((down - top) / 0.8).square())
        return across, torch.where(down > middle, lower, upper), cover, teeth


def on_sheet(across: Tensor, down: Tensor, mouth: Tensor) -> Tensor:
    """Places on the cut-out `(B, T, H, W, 2)` in [0, 1] of coordinates from the mouth."""
    x0, y0, ex, ey = (mouth[:, part, None, None, None] for part in range(4))
    return torch.stack([x0 + across * ex - down * ey, y0 + across * ey + down * ex], dim=-1)


def colour(values: tuple[float, float, float], like: Tensor) -> Tensor:
    return torch.tensor(values, device=like.device, dtype=like.dtype)[None, :, None, None, None]


def mouth_weights(figures: Figures, sprites: Sprites, height: int, width: int) -> Tensor:
    """How near to the mouth each pixel is, 1 there and 0 far away: `(B, height, width)`."""
    rows = torch.arange(height, device=figures.x.device)[:, None] + 0.5
    columns = torch.arange(width, device=figures.x.device)[None] + 0.5
    half = (sprites.mouths[figures.number, 2:].norm(dim=1) * figures.side)[:, None, None]
    across = (columns - figures.x[:, None, None]) / (1.4 * half + 3)
    down = (rows - figures.y[:, None, None] - 0.35 * half) / (1.3 * half + 3)
    return torch.exp(-((across.square() + down.square()) ** 2))
