"""Clips for training: moving people with everything that the networks are told about them.

A `ClipMaker` serves one size of picture and one number of people. For the VAE it gives pictures alone. For the
transformer it tells two kinds of clips apart, as the chunk loop does: a first one starts with the reference picture,
which has its mouth mostly closed; in a later one the reference is another moment.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from training.demo.cutouts import Cutouts
from training.demo.portraits import Figures, Motion, Sprites, Studio, mouth_weights
from training.demo.speech import Corpus, mouth_opening, mouth_width

VARIED_SIDES = (0.66, 1.10)
"""Of two people where these vary; see `Studio.pair`."""
SHRUNK_SHARE, MOST_SHRUNK = 0.5, 0.6
"""Of boxes that may be smaller than the head, and how much smaller."""
FULL_MOUTH, MOST_RAISED = 640.0, 3.0
"""Mouths about which less than this is near, in pixels, count more, up to so much: small ones as much as large ones."""
FIRST_SHARE = 0.35
CLOSED_SHARE = 0.85
TRACKS: dict[tuple[Path, bool, str], tuple[Tensor, Tensor]] = {}
"""Mouths of a corpus, opening and width, made once per process."""


@dataclass(frozen=True)
class Shot:
    """What clips show. Height and width in pixels.

    sides: least and greatest size of a single person who fills no picture, in pixels. varied: two people's sizes, and
    boxes about them, vary further than in the scenes that are measured.
    """

    height: int
    width: int
    num_people: int
    num_frames: int
    sides: tuple[float, float] | None = None
    varied: bool = False


@dataclass(frozen=True)
class Filmed:
    """B clips for the transformer.

    frames: `(B, 3, T, H, W)` in [-1, 1]. reference: `(B, 3, 1, H, W)`. is_first: `(B,)`.
    near_mouth: `(B, H, W)`, see `ClipMaker.raised`. masks: `(B, 3, H / 8, W / 8)` of two people, else None.
    """

    frames: Tensor
    reference: Tensor
    is_first: Tensor
    near_mouth: Tensor
    masks: Tensor | None


class ClipMaker:
    """Clips of one kind. tracks: opening and width of the mouths in a corpus."""

    def __init__(self, studio: Studio, shot: Shot, tracks: tuple[Tensor, Tensor]) -> None:
        self.studio = studio
        self.shot = shot
        self.openings, self.widths = tracks

    @classmethod
    def load(cls, data: Path, generator: torch.Generator, shot: Shot, *, held_out: bool = False) -> ClipMaker:
        """With the people and the speech in the folder `data`."""
        device, kind = generator.device, "_held_out" if held_out else ""
        key = (data, held_out, str(device))
        if key not in TRACKS:
            waveforms = Corpus.load(data / f"speech{kind}.npz").waveforms(device)
            TRACKS[key] = mouth_opening(waveforms), mouth_width(waveforms)
        sprites = Sprites.of(Cutouts.load(data / f"people{kind}.npz"), device)
        return cls(Studio(sprites, generator, shot.height, shot.width), shot, TRACKS[key])

    def pictures(self, batch: int) -> tuple[Tensor, Tensor]:
        """Frames `(batch, 3, T, H, W)` in [-1, 1] and how near each pixel is to a mouth `(batch, H, W)`."""
        people = self.cast(batch)
        picture = self.studio.room(batch)
        for figures in people:
            picture = self.studio.place(picture, figures, self.studio.motion(figures, *self.some_speech(batch)))
        return picture * 2 - 1, self.near_mouth(people)

    def cast(self, batch: int) -> tuple[Figures, ...]:
        if self.shot.sides is not None:
            return (self.studio.close(batch, *self.shot.sides),)
        if self.shot.num_people == 1:
            return (self.studio.alone(batch),)
        return self.studio.pair(batch, VARIED_SIDES) if self.shot.varied else self.studio.pair(batch)

    def near_mouth(self, people: tuple[Figures, ...]) -> Tensor:
        return torch.stack([self.near_mouth_of(each) for each in people]).amax(dim=0)

    def near_mouth_of(self, figures: Figures) -> Tensor:
        return mouth_weights(figures, self.studio.sprites, self.studio.height, self.studio.width)

    def raised(self, people: tuple[Figures, ...]) -> Tensor:
        """As `near_mouth`, but small mouths count as much as large ones: above 1 about them."""
        found: list[Tensor] = []
        for each in people:
            near = self.near_mouth_of(each)
            found.append(near * (FULL_MOUTH / near.sum(dim=(1, 2), keepdim=True)).clamp(1, MOST_RAISED))
        return torch.stack(found).amax(dim=0)

    def some_speech(self, batch: int) -> tuple[Tensor, Tensor]:
        """Opening and width of mouths `(batch, T)` from anywhere in the corpus."""
        rows = torch.randint(len(self.openings), (batch,), generator=self.studio.generator, device=self.studio.device)
        limit = self.openings.shape[1] - self.shot.num_frames
        starts = torch.randint(limit, (batch,), generator=self.studio.generator, device=self.studio.device)
        places = starts[:, None] + torch.arange(self.shot.num_frames, device=starts.device)
        return self.openings[rows[:, None], places], self.widths[rows[:, None], places]

    def film(self, mouths: list[tuple[Tensor, Tensor]]) -> Filmed:
        """Clips of people with these mouths: opening and width `(B, T)` for each of them."""
        batch = len(mouths[0][0])
        studio, people = self.studio, self.cast(len(mouths[0][0]))
        is_first = studio.draw(batch, 0, 1) < FIRST_SHARE
        frames = reference = studio.room(batch)
        for figures, (opening, width) in zip(people, mouths, strict=True):
            rest = torch.where(studio.draw(batch, 0, 1) < CLOSED_SHARE, 0.0, studio.draw(batch, 0, 0.8))[:, None]
            motion = studio.motion(figures, opening, width)
            still = Motion.at_rest(rest)
            motion = starting_at(motion, still, is_first)
            frames = studio.place(frames, figures, motion)
            reference = studio.place(reference, figures, still)
        masks = self.masks(people) if self.shot.num_people == 2 else None
        return Filmed(frames * 2 - 1, reference * 2 - 1, is_first, self.raised(people), masks)

    def masks(self, people: tuple[Figures, ...]) -> Tensor:
        """Where the two are: boxes around their heads, or the halves of the picture where these are right."""
        height, width = self.studio.height, self.studio.width
        batch = len(people[0].x)
        scales = [self.shrinking(batch) for _ in people]
        boxes = [each.boxes(scale) for each, scale in zip(people, scales, strict=True)]
        first_is_left = people[0].x < people[1].x
        takes_halves = first_is_left & (self.studio.draw(batch, 0, 1) < 0.6)
        half = width / 2
        halves = [(0.05 * half, 0.95 * half), (1.05 * half, 1.95 * half)]
        rows = (torch.arange(height // 8, device=self.studio.device) + 0.5)[None, :, None] * 8
        columns = (torch.arange(width // 8, device=self.studio.device) + 0.5)[None, None] * 8
        found: list[Tensor] = []
        for box, scale, (left, right) in zip(boxes, scales, halves, strict=True):
            box = box + 0.03 * width * scale[:, None] * self.studio.normal(batch, 4)
            side = torch.tensor([left, 0.05 * height, right, 0.95 * height], device=box.device)
            box = torch.where(takes_halves[:, None], side, box)
            x0, y0, x1, y1 = (part[:, None, None] for part in box.unbind(1))
            found.append((columns >= x0) & (columns < x1) & (rows >= y0) & (rows < y1))
        return torch.stack([*found, ~(found[0] | found[1])], dim=1).float()

    def shrinking(self, batch: int) -> Tensor:
        """How much smaller than the heads boxes are, `(batch,)`."""
        if not self.shot.varied:
            return torch.ones(batch, device=self.studio.device)
        is_shrunk = self.studio.draw(batch, 0, 1) < SHRUNK_SHARE
        return torch.where(is_shrunk, self.studio.draw(batch, MOST_SHRUNK, 1), 1.0)


def starting_at(motion: Motion, still: Motion, is_first: Tensor) -> Motion:
    """Motion that in first clips starts from the reference: place, eyes and mouth of frame 0 are its."""
    first = is_first[:, None]
    frame = torch.arange(motion.opening.shape[1], device=first.device)[None]
    early = first & (frame == 0)
    return replace(
        motion,
        **{name: getattr(motion, name) - first * getattr(motion, name)[:, :1] for name in ("dx", "dy", "angle")},
        blink=motion.blink * ~(first & (frame < 4)),
        **{name: torch.where(early, getattr(still, name), getattr(motion, name)) for name in ("opening", "width")},
    )
