"""Invented people as cut-outs: how a head and shoulders look with open and with closed eyes, and where the mouth is.

`python -m training.demo.people OUT.npz --first 0 --count 150` renders people number 0 to 149 with the ray marcher of
the examples (three seconds each on one core). A number means the same person on every machine. Training moves, colours
and combines the cut-outs and opens their mouths itself (`portraits.py`), so a few hundred people go a long way.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
import portrait_render
from make_media import MAN, WOMAN
from portrait_render import Camera, camera_rays, develop, render, trace
from portrait_shapes import NECK_PIVOT, Person, Pose, head_rotation

from training.demo.cutouts import CUTOUT_SIZE, Cutouts

RAYS = 256
CAMERA = Camera(height=3.6, target=(0.0, -0.35, 0.0))
HELD_OUT = 10_000
"""People from this number on are never trained on."""

MOUTH, MOUTH_CORNERS = (0.0, -0.568, 0.87), ((-0.215, -0.545, 0.78), (0.215, -0.545, 0.78))
"""The middle of the mouth and its corners, in the head's own units."""

SKINS = ((0.60, 0.37, 0.275), (0.46, 0.265, 0.175), (0.66, 0.44, 0.34), (0.36, 0.19, 0.115), (0.55, 0.33, 0.21))
HAIRS = ((0.055, 0.025, 0.013), (0.018, 0.013, 0.010), (0.16, 0.09, 0.035), (0.22, 0.06, 0.02), (0.20, 0.19, 0.18))
IRISES = ((0.10, 0.16, 0.14), (0.11, 0.055, 0.022), (0.08, 0.12, 0.22), (0.07, 0.11, 0.05))


def invent(number: int) -> Person:
    """Person `number`: everything about the looks is drawn from a generator seeded with it."""
    rng = np.random.default_rng(number)

    def near(colour: tuple[float, float, float], spread: float) -> tuple[float, float, float]:
        red, green, blue = np.asarray(colour) * np.exp(rng.normal(0, spread, 3) * 0.4 + rng.normal(0, spread))
        return float(red), float(green), float(blue)

    base = WOMAN if rng.random() < 0.5 else MAN
    skin = near(SKINS[rng.integers(len(SKINS))], 0.10)
    return replace(
        base,
        skin=skin,
        hair=near(HAIRS[rng.integers(len(HAIRS))], 0.25),
        iris=near(IRISES[rng.integers(len(IRISES))], 0.2),
        cloth=tuple(float(part) for part in rng.uniform(0.02, 0.45, 3)),
        lips=(skin[0] * 0.70, skin[1] * float(rng.uniform(0.36, 0.50)), skin[2] * float(rng.uniform(0.45, 0.60))),
        jaw=float(rng.uniform(0.88, 1.16)),
        brow=float(rng.uniform(0.8, 1.5)),
        stubble=float(rng.uniform(0, 0.5)) if base is MAN else 0.0,
        pose=Pose(
            yaw=float(rng.uniform(-0.25, 0.25)),
            nod=float(rng.uniform(-0.05, 0.05)),
            tilt=float(rng.uniform(-0.06, 0.06)),
            gaze=(float(rng.uniform(-0.1, 0.1)), 0.0),
        ),
    )


def example_person(number: int) -> Person:
    """A person of the examples' pictures, in a pose drawn from `number`."""
    rng = np.random.default_rng(number)
    base = WOMAN if number % 2 else MAN
    pose = Pose(yaw=float(rng.uniform(-0.24, 0.24)), tilt=float(rng.uniform(-0.04, 0.04)))
    return replace(base, pose=pose)


def find_mouth(person: Person) -> NDArray[np.float32]:
    """`(4,)`: see `Cutouts.mouths`."""
    middle, left, right = (on_picture(point, person) for point in (MOUTH, *MOUTH_CORNERS))
    return np.array([*middle, *(right - left) / 2], np.float32)


def on_picture(point: tuple[float, float, float], person: Person) -> NDArray[np.float32]:
    """Where a point of the head is seen, in shares of the picture's side."""
    scene = head_rotation(person.pose).T @ (np.asarray(point, np.float32) - NECK_PIVOT) + NECK_PIVOT
    origin, rays = camera_rays(CAMERA, RAYS, RAYS)
    towards = scene - origin
    towards /= np.linalg.norm(towards)
    row, column = np.unravel_index(int((towards @ rays.reshape(3, -1)).argmax()), (RAYS, RAYS))
    return np.array([(column + 0.5) / RAYS, (row + 0.5) / RAYS], np.float32)


def cut_out(person: Person) -> dict[str, NDArray[Any]]:
    """One person's part of `Cutouts`."""
    portrait_render.room = grey_room
    pictures = [
        develop(render((replace(person, pose=replace(person.pose, blink=blink)),), CAMERA, RAYS, RAYS))
        for blink in (0.0, 1.0)
    ]
    hit = trace(*camera_rays(CAMERA, RAYS, RAYS), (person,)) < portrait_render.FAR
    alpha = hit.reshape(RAYS, RAYS).astype(np.uint8) * 255
    opened, closed, alpha = (
        np.asarray(Image.fromarray(part).resize((CUTOUT_SIZE, CUTOUT_SIZE), Image.Resampling.BOX))
        for part in (*pictures, alpha)
    )
    return {"open_eyes": opened, "closed_eyes": closed, "alpha": alpha, "mouths": find_mouth(person)}


def grey_room(width: int, height: int, shift: float = 0.0) -> NDArray[np.float32]:
    """What stands behind a cut-out, so that its edges are neither bright nor dark."""
    del shift
    return np.full((3, height, width), 0.12, np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description="Render invented people as cut-outs.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=150)
    parser.add_argument("--examples", type=int, default=0, help="so many more: the examples' people in other poses")
    wish = parser.parse_args()
    people = [invent(number) for number in range(wish.first, wish.first + wish.count)]
    people += [example_person(number) for number in range(wish.examples)]
    parts: list[dict[str, NDArray[Any]]] = []
    for number, person in enumerate(people):
        parts.append(cut_out(person))
        print(f"{number + 1} of {len(people)}", flush=True)
    Cutouts(**{name: np.stack([part[name] for part in parts]) for name in parts[0]}).save(wish.out)


if __name__ == "__main__":
    main()
