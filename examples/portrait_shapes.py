"""The shape of a head and shoulders as a signed distance field, and where its colours are.

An invented person is a few dozen ellipsoids and capsules, smoothly joined and carved. Points come as arrays (3, N), so
that every coordinate is contiguous; a distance is (N,). Units: a head is about 2.3 high; x to the right of the picture,
y up, z towards the camera. Colours are linear RGB.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]
Vector = tuple[float, float, float]


class Material(IntEnum):
    """What a ray has hit."""

    SKIN = 0
    EYE = 1
    HAIR = 2
    CLOTH = 3


@dataclass(frozen=True)
class Pose:
    """How a person holds the head: angles in radians; `blink` and `mouth` from 0 (eyes open, mouth closed) to 1."""

    yaw: float = 0.0
    nod: float = 0.0
    tilt: float = 0.0
    gaze: tuple[float, float] = (0.0, 0.0)
    blink: float = 0.0
    mouth: float = 0.0


@dataclass(frozen=True)
class Person:
    """The looks of one person, and where the head's centre is."""

    skin: Vector
    hair: Vector
    iris: Vector
    cloth: Vector
    lips: Vector
    long_hair: bool
    jaw: float = 1.0  # width against the average
    brow: float = 1.0  # thickness against the average
    stubble: float = 0.0
    position: Vector = (0.0, 0.0, 0.0)
    pose: Pose = field(default_factory=Pose)


EYE_CENTRE: Vector = (0.288, 0.085, 0.530)
EYE_RADIUS = 0.165
EYE_RADII: Vector = (EYE_RADIUS, EYE_RADIUS, EYE_RADIUS)
LID_RADII: Vector = (EYE_RADIUS + 0.02, EYE_RADIUS + 0.02, EYE_RADIUS + 0.02)
EYE_WIDTH = 0.150
NECK_PIVOT = np.array([0, -0.9, -0.2], np.float32)
DETAIL = 0.15
"""Fine relief is added only within this distance of a surface."""


def vector(x: float, y: float, z: float) -> Array:
    return np.array([x, y, z], np.float32)


def ellipsoid(points: Array, centre: Vector, radii: Vector) -> Array:
    x, y, z = ((points[i] - np.float32(centre[i])) / np.float32(radii[i]) for i in range(3))
    inner = np.sqrt(x * x + y * y + z * z)
    x, y, z = (part / np.float32(radius) for part, radius in zip((x, y, z), radii, strict=True))
    return inner * (inner - 1) / np.maximum(np.sqrt(x * x + y * y + z * z), np.float32(1e-6))


def capsule(points: Array, start: Vector, end: Vector, radius: float, end_radius: float | None = None) -> Array:
    """A rod with round ends whose radius runs from `radius` to `end_radius`."""
    along = [np.float32(b - a) for a, b in zip(start, end, strict=True)]
    x, y, z = (points[i] - np.float32(start[i]) for i in range(3))
    length = sum(part * part for part in along)
    share = np.clip((x * along[0] + y * along[1] + z * along[2]) / length, 0, 1)
    thickness = radius + share * np.float32((radius if end_radius is None else end_radius) - radius)
    x, y, z = x - share * along[0], y - share * along[1], z - share * along[2]
    return np.sqrt(x * x + y * y + z * z) - thickness


def join(first: Array, second: Array, width: float) -> Array:
    """The union of two shapes, the seam smoothed over `width`."""
    overlap = np.maximum(np.float32(width) - np.abs(first - second), 0)
    return np.minimum(first, second) - overlap * overlap / np.float32(4 * width)


def carve(shape: Array, tool: Array, width: float) -> Array:
    """`shape` without `tool`, the edge smoothed over `width`."""
    return -join(-shape, tool, width)


def smooth(x: Array, low: float, high: float) -> Array:
    """0 below `low`, 1 above `high`, an S in between."""
    share = np.clip((x - np.float32(low)) / np.float32(high - low), 0, 1)
    return share * share * (3 - 2 * share)


def bump(x: Array, centre: float, width: float) -> Array:
    """A bell of height 1."""
    return np.exp(-np.square((x - np.float32(centre)) / np.float32(width)))


def noise(x: Array, y: Array, z: Array, seed: int) -> Array:
    """Smooth random values in [-1, 1] with cells of one unit."""
    cells = [np.floor(part).astype(np.int64) for part in (x, y, z)]
    shares = [(part - cell).astype(np.float32) for part, cell in zip((x, y, z), cells, strict=True)]
    shares = [share * share * (3 - 2 * share) for share in shares]
    total = np.zeros(x.shape, np.float32)
    for corner in range(8):
        steps = (corner & 1, corner >> 1 & 1, corner >> 2 & 1)
        weight = np.float32(1.0)
        mixed = np.int64(seed * 2654435761)
        for cell, share, step, prime in zip(cells, shares, steps, (73856093, 19349663, 83492791), strict=True):
            weight = weight * (share if step else 1 - share)
            mixed = mixed + (cell + step) * prime
        mixed = mixed & 0xFFFFFFFF
        for _ in range(2):
            mixed = ((mixed ^ (mixed >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
        total += weight * ((mixed ^ (mixed >> 16)).astype(np.float32) / np.float32(0x7FFFFFFF) - 1)
    return total


def speckle(points: Array, scale: float, seed: int) -> Array:
    """Noise at points (3, N), `scale` cells to a unit."""
    x, y, z = scale * points
    return noise(x, y, z, seed)


def head_rotation(pose: Pose) -> Array:
    """The matrix from directions of the scene to directions of the head."""
    (cy, sy), (cn, sn), (ct, st) = ((np.cos(a), np.sin(a)) for a in (pose.yaw, pose.nod, pose.tilt))
    yaw = np.array([[cy, 0, -sy], [0, 1, 0], [sy, 0, cy]])
    nod = np.array([[1, 0, 0], [0, cn, sn], [0, -sn, cn]])
    tilt = np.array([[ct, st, 0], [-st, ct, 0], [0, 0, 1]])
    return (tilt @ nod @ yaw).astype(np.float32)


def placed(points: Array, person: Person) -> Array:
    """Points of the scene relative to the person."""
    return points - vector(*person.position)[:, None]


def head_points(points: Array, person: Person) -> Array:
    """Points of the scene in the head's own coordinates: turned back about the neck."""
    return head_rotation(person.pose) @ (placed(points, person) - NECK_PIVOT[:, None]) + NECK_PIVOT[:, None]


def mirrored(points: Array) -> Array:
    """Both halves folded onto the one with positive x, without a crease in the middle."""
    return np.stack([np.sqrt(points[0] * points[0] + np.float32(0.0009)), points[1], points[2]])


def eye_opening(f: Array, blink: float) -> Array:
    """Distance to the gap between the lids as seen from the front: negative where the eyeball shows."""
    u = (f[0] - np.float32(EYE_CENTRE[0])) / np.float32(EYE_WIDTH)
    v = f[1] - np.float32(EYE_CENTRE[1]) - np.float32(0.016) * u
    arch = np.maximum(1 - np.abs(u) ** np.float32(2.3), np.float32(-0.6))
    return np.maximum(v - np.float32(0.068 - 0.112 * blink) * arch, np.float32(-0.046) * arch - v) * np.float32(0.85)


def skull(p: Array, f: Array, person: Person) -> Array:
    """The bare head; p: points of the head, f: the same, mirrored."""
    jaw = person.jaw
    d = ellipsoid(p, (0, 0.36, -0.14), (0.74, 0.82, 0.90))
    d = join(d, ellipsoid(p, (0, -0.12, 0.12), (0.58, 0.66, 0.66)), 0.28)
    d = join(d, ellipsoid(p, (0, -0.80, 0.46), (0.19 * jaw, 0.17, 0.20)), 0.34)
    d = join(d, capsule(f, (0.40 * jaw, -0.36, -0.02), (0.14 * jaw, -0.77, 0.38), 0.16, 0.14), 0.26)
    d = join(d, ellipsoid(f, (0.36, -0.14, 0.50), (0.19, 0.14, 0.17)), 0.22)
    d = join(d, ellipsoid(f, (0.23, 0.29, 0.62), (0.25, 0.07, 0.13)), 0.16)
    d = carve(d, ellipsoid(f, (0.29, 0.09, 0.86), (0.19, 0.115, 0.20)), 0.14)
    ear = carve(
        ellipsoid(f, (0.735, -0.02, -0.10), (0.075, 0.23, 0.14)),
        ellipsoid(f, (0.80, 0.0, -0.03), (0.04, 0.14, 0.08)),
        0.05,
    )
    return join(d, ear, 0.07)


def with_features(d: Array, p: Array, f: Array, person: Person) -> Array:
    """Lids, nose and mouth added to the skull at distance `d`."""
    d = join(d, ellipsoid(f, EYE_CENTRE, LID_RADII), 0.06)
    d = carve(d, np.maximum(eye_opening(f, person.pose.blink), np.float32(0.45) - f[2]), 0.012)
    d = join(d, capsule(p, (0, 0.20, 0.69), (0, -0.19, 0.905), 0.048, 0.070), 0.13)
    d = join(d, ellipsoid(p, (0, -0.220, 0.920), (0.086, 0.080, 0.095)), 0.08)
    d = join(d, ellipsoid(f, (0.088, -0.258, 0.82), (0.056, 0.056, 0.09)), 0.05)
    d = carve(d, ellipsoid(f, (0.054, -0.325, 0.89), (0.027, 0.020, 0.05)), 0.025)
    gap = 0.10 * person.pose.mouth
    d = join(d, ellipsoid(p, (0, -0.56, 0.64), (0.24, 0.17, 0.16)), 0.14)
    d = carve(d, ellipsoid(p, (0, -0.42, 0.86), (0.022, 0.07, 0.04)), 0.05)
    d = join(d, ellipsoid(f, (0.060, -0.520 + gap * 0.2, 0.790), (0.120, 0.044, 0.066)), 0.040)
    d = join(d, ellipsoid(p, (0, -0.624 - gap, 0.782), (0.145, 0.056, 0.070)), 0.045)
    bend = np.float32(-0.568 - gap * 0.4) + np.float32(0.55) * f[0] * f[0]
    u, v = f[0] / np.float32(0.215), (p[1] - bend) / np.float32(0.004 + gap * 0.55)
    w = (p[2] - np.float32(0.86)) / np.float32(0.12)
    slit = (np.sqrt(u * u + v * v + w * w) - 1) * np.float32(0.004 + gap * 0.5)
    return carve(d, slit, 0.016)


def neck(q: Array, jaw: float) -> Array:
    return capsule(q, (0, -0.70, -0.24), (0, -1.65, -0.36), 0.34 * jaw, 0.37 * jaw)


def body(q: Array) -> Array:
    """Shoulders and chest; q: points relative to the person."""
    f = mirrored(q)
    d = ellipsoid(q, (0, -2.60, -0.38), (1.16, 1.15, 0.58))
    d = join(d, capsule(f, (0.20, -1.38, -0.45), (1.12, -1.84, -0.45), 0.26, 0.33), 0.42)
    return join(d, capsule(f, (1.20, -1.92, -0.43), (1.38, -3.4, -0.33), 0.33, 0.31), 0.2)


def cloth(q: Array) -> Array:
    """A pullover: the body a little thicker, open around the neck, with a rim."""
    opening = capsule(q, (0, -1.0, -0.32), (0, -1.38, -0.20), 0.43)
    d = body(q) - np.float32(0.040) - np.float32(0.028) * smooth(-opening, -0.13, -0.10)
    near = np.abs(d) < DETAIL
    x, y, z = q[:, near]
    d[near] += np.float32(0.022) * noise(2.3 * x + 0.8 * y, 1.1 * y - 0.4 * x, 2 * z, 5)
    return carve(d, opening, 0.04)


def hair(p: Array, f: Array, person: Person) -> Array:
    """Hair over the cranium, open at the face; long hair falls to the shoulders."""
    d = long_hair(p, f) if person.long_hair else short_hair(p, f)
    near = np.abs(d) < DETAIL
    d[near] += relief(p[:, near], person)
    return d


def long_hair(p: Array, f: Array) -> Array:
    d = ellipsoid(p, (0, 0.42, -0.20), (0.84, 0.86, 0.95))
    d = join(d, ellipsoid(p, (0, -0.42, -0.30), (0.82, 1.30, 0.60)), 0.25)
    d = join(d, capsule(f, (0.66, 0.20, 0.10), (0.60, -1.25, 0.16), 0.16, 0.15), 0.22)
    d = carve(d, ellipsoid(p, (0, -0.42, 0.98), (0.60, 1.06, 0.76)), 0.12)
    d = carve(d, ellipsoid(p, (-0.10, 0.52, 1.02), (0.42, 0.40, 0.46)), 0.16)
    d = carve(d, ellipsoid(p, (0, -1.10, 0.40), (0.40, 0.75, 0.60)), 0.16)
    return carve(d, p[1] + np.float32(1.42), 0.16)


def short_hair(p: Array, f: Array) -> Array:
    d = ellipsoid(p, (0, 0.37, -0.15), (0.765, 0.845, 0.925))
    d = join(d, ellipsoid(p, (0.04, 0.66, -0.05), (0.70, 0.56, 0.83)), 0.12)
    d = carve(d, ellipsoid(p, (0, -0.20, 1.04), (0.66, 1.10, 0.68)), 0.10)
    below = np.float32(0.06) - p[1] - np.float32(0.60) * np.maximum(-p[2] - np.float32(0.1), 0)
    sideburn = np.maximum(np.float32(-0.16) - p[1], np.abs(p[2] - np.float32(0.13)) - np.float32(0.09))
    return np.maximum(d, np.minimum(below, sideburn))


def strands(p: Array, person: Person) -> tuple[Array, Array]:
    """Coordinates across and along the hair, which falls from the crown on all sides."""
    around = np.arctan2(p[0] + np.float32(0.10), p[2] + np.float32(0.35))
    if not person.long_hair:
        around = around + np.float32(0.9) * smooth(p[1], 0.35, 1.2) * (p[0] + np.float32(0.3))
    return around, p[1] + np.float32(0.5) * p[2]


def relief(p: Array, person: Person) -> Array:
    """The height of locks and strands on the hair's surface, none near the axis that strands turn around."""
    around, along = strands(p, person)
    wavy = around + np.float32(0.10) * noise(along * 1.6, around * 2, p[2], 4)
    locks = noise(wavy * 8, along * 0.9, p[2] * 0.5, 2) + np.float32(0.6) * noise(wavy * 17, along * 1.1, p[2], 6)
    fine = noise(wavy * 42, along * 1.6, p[2], 3)
    outside = smooth(np.hypot(p[0], p[2] + np.float32(0.35)), 0.30, 0.70)
    return outside * (np.float32(0.017) * locks + np.float32(0.007) * fine)


def distances(points: Array, person: Person) -> Array:
    """Distances (4, N) of points of the scene to each material of a person."""
    q, p = placed(points, person), head_points(points, person)
    f = mirrored(p)
    skin = with_features(skull(p, f, person), p, f, person)
    skin = join(join(skin, neck(q, person.jaw), 0.16), body(q), 0.18)
    return np.stack([skin, ellipsoid(f, EYE_CENTRE, EYE_RADII), hair(p, f, person), cloth(q)])
