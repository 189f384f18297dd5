"""A ray marcher and a portrait studio for the people of `portrait_shapes`.

Light as a photographer sets it: a large key light from the upper left, a rim light from behind on the right, bright
surroundings. Skin lets red light travel further than blue, hair shines in bands across its strands (Kajiya and Kay),
eyes mirror the key light. Behind the people lies a room far out of focus. NumPy only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from portrait_shapes import (
    EYE_CENTRE,
    EYE_RADIUS,
    EYE_WIDTH,
    Array,
    Material,
    Person,
    Vector,
    bump,
    distances,
    eye_opening,
    hair,
    head_points,
    mirrored,
    noise,
    smooth,
    speckle,
    strands,
    vector,
)

Index = NDArray[np.int64]


@dataclass(frozen=True)
class Camera:
    """A pinhole camera; `height` is what it sees at the distance of the target, in units of the scene."""

    position: Vector = (0.0, -0.15, 9.0)
    target: Vector = (0.0, -0.38, 0.0)
    height: float = 3.9


def unit(direction: Array) -> Array:
    return direction / np.maximum(np.sqrt((direction * direction).sum(0)), np.float32(1e-9))


KEY, RIM = unit(vector(-0.62, 0.58, 0.72)), unit(vector(0.80, 0.35, -0.50))
KEY_LIGHT, RIM_LIGHT = vector(2.25, 2.06, 1.84), vector(0.95, 1.05, 1.25)
NEAR, FAR = 5.5, 14.0
HIT = 0.0012
BLOCK = 8
"""Rays start where a bundle of 8 x 8 of them first comes near something."""


def camera_rays(camera: Camera, width: int, height: int) -> tuple[Array, Array]:
    """Origin (3,) and directions (3, height, width) of the rays through the pixels' centres."""
    origin, target = np.asarray(camera.position), np.asarray(camera.target)
    forward = (target - origin) / np.linalg.norm(target - origin)
    right = np.cross(forward, (0, 1, 0))
    right /= np.linalg.norm(right)
    up = np.cross(right, forward)
    scale = camera.height / np.linalg.norm(target - origin) / height
    y, x = np.mgrid[0:height, 0:width]
    across, along = (x + 0.5 - width / 2) * scale, (height / 2 - y - 0.5) * scale
    directions = forward[:, None, None] + across * right[:, None, None] + along * up[:, None, None]
    return origin.astype(np.float32), unit(directions.astype(np.float32))


def nearest(points: Array, people: tuple[Person, ...]) -> Array:
    return np.min([distances(points, person).min(0) for person in people], axis=0)


def march(origin: Array, directions: Array, people: tuple[Person, ...], start: Array, spread: float) -> Array:
    """How far each ray goes until it is within `spread` per unit of somebody; at least FAR when it passes."""
    travelled = start.copy()
    active = np.flatnonzero(travelled < FAR)
    for _ in range(120):
        step = nearest(origin[:, None] + travelled[active] * directions[:, active], people)
        arrived = step < np.maximum(np.float32(spread) * travelled[active], np.float32(HIT))
        travelled[active] += np.where(arrived, 0, step * np.float32(0.8))
        active = active[~arrived & (travelled[active] < FAR)]
        if not len(active):
            break
    return travelled


def trace(origin: Array, directions: Array, people: tuple[Person, ...]) -> Array:
    """Distance along each ray (N,) to the first surface; first for bundles of rays, then for each."""
    _, height, width = directions.shape
    middle = directions[:, BLOCK // 2 :: BLOCK, BLOCK // 2 :: BLOCK]
    rows, columns = middle.shape[1:]
    spread = float(np.abs(directions[:, 0, BLOCK] - directions[:, 0, 0]).max()) * 1.3
    start = np.full(rows * columns, NEAR, np.float32)
    coarse = march(origin, middle.reshape(3, -1), people, start, spread).reshape(rows, columns)
    fine = np.repeat(np.repeat(coarse - np.float32(0.05), BLOCK, 0), BLOCK, 1)[:height, :width]
    return march(origin, directions.reshape(3, -1), people, fine.reshape(-1), 0.0)


def of_person(points: Array, people: tuple[Person, ...], who: Index) -> Array:
    """Distance (N,) to the person that each point belongs to."""
    found = np.empty(points.shape[1], np.float32)
    for index, person in enumerate(people):
        found[who == index] = distances(points[:, who == index], person).min(0)
    return found


def normals(points: Array, people: tuple[Person, ...], who: Index, width: float) -> Array:
    """The gradient of the distance, from four points around each."""
    corners = np.array([[1, -1, -1], [-1, -1, 1], [-1, 1, -1], [1, 1, 1]], np.float32)
    return unit(sum((c[:, None] * of_person(points + width * c[:, None], people, who) for c in corners), 0 * points))


def occlusion(points: Array, normal: Array, people: tuple[Person, ...]) -> Array:
    """How open the surroundings are, 0 to 1."""
    closed = np.zeros(points.shape[1], np.float32)
    for index, reach in enumerate((0.03, 0.08, 0.18, 0.34)):
        closed += (np.float32(reach) - nearest(points + reach * normal, people)) * np.float32(0.75**index * 1.7)
    return np.clip(1 - closed, 0, 1)


def shadow(points: Array, normal: Array, light: Array, people: tuple[Person, ...]) -> Array:
    """How much of a large light is seen, 0 to 1."""
    seen = np.ones(points.shape[1], np.float32)
    reach = np.full(points.shape[1], 0.05, np.float32)
    active = np.arange(points.shape[1])
    for _ in range(18):
        start = points[:, active] + np.float32(0.02) * normal[:, active]
        gap = nearest(start + reach[active] * light[:, None], people)
        seen[active] = np.minimum(seen[active], np.clip(0.5 + 2.4 * gap / reach[active], 0, 1))
        reach[active] += np.clip(gap, 0.03, 0.3)
        active = active[(seen[active] > 0.01) & (reach[active] < 3)]
    return seen * seen * (3 - 2 * seen)


def mixed(first: Array, second: Array | Vector, share: Array) -> Array:
    """Colours (3, N) moved towards others by `share` (N,)."""
    other = np.asarray(second, np.float32)
    return first + ((other if other.ndim == 2 else other[:, None]) - first) * share


def lip_mask(p: Array, person: Person) -> Array:
    gap = 0.10 * person.pose.mouth
    u = np.abs(p[0]) / np.float32(0.215)
    arch, smile = np.maximum(1 - u * u, 0), 0.55 * p[0] * p[0]
    bow = smile + 0.012 * bump(np.abs(p[0]), 0.055, 0.05) - 0.008 * bump(p[0], 0, 0.03)
    top, bottom = -0.568 + 0.070 * arch ** np.float32(0.8) + bow, -0.568 + smile - gap - 0.100 * arch ** np.float32(0.6)
    return smooth(np.minimum(top - p[1], p[1] - bottom), -0.004, 0.016) * (u < 1) * (p[2] > 0.5)


def brow_mask(p: Array, person: Person) -> Array:
    u = (np.abs(p[0]) - np.float32(0.115)) / np.float32(0.35)
    centre = 0.305 + 0.075 * np.sin(np.clip(u, 0, 1) * 2.3) - 0.06 * u
    half = (0.048 - 0.026 * np.clip(u, 0, 1)) * person.brow
    side = np.sign(p[0])
    hairs = 0.45 * noise(90 * np.abs(p[0]) - 70 * p[1], 12 * p[1], 3 * side, 7)
    inside = (half - np.abs(p[1] - centre)) / half
    dense = smooth(inside + hairs, -0.25, 0.75)
    return dense * smooth(u, -0.08, 0.25) * smooth(-u, -1.10, -0.70) * (p[2] > 0.3)


def fringe_mask(p: Array, f: Array, person: Person) -> Array:
    """Single hairs on the skin along the hairline, so that hair does not end like a cap."""
    around, along = strands(p, person)
    reach = 0.022 + 0.035 * noise(around * 60, along * 2, p[2], 61)
    return smooth(reach - hair(p, f, person), -0.03, 0.05) * smooth(p[1], -0.45, -0.1)


def skin_colour(p: Array, person: Person) -> Array:
    """Colours of the face: blush, lips, brows, lashes, stubble; p: points of the head."""
    f = mirrored(p)
    base = vector(*person.skin)[:, None]
    colour = base * (1 + 0.05 * speckle(p, 5, 11) + 0.04 * speckle(p, 32, 12))
    front = p[2] > 0.3
    blush = 0.42 * bump(f[0], 0.40, 0.18) * bump(p[1], -0.22, 0.16) * front
    blush += 0.45 * bump(p[0], 0, 0.12) * bump(p[1], -0.24, 0.11) * (p[2] > 0.7)
    blush += 0.50 * smooth(f[0], 0.68, 0.78) * bump(p[1], -0.02, 0.30) * (p[1] > -0.4)
    colour = mixed(colour, base * vector(1.06, 0.74, 0.70)[:, None], blush)
    under = 0.40 * bump(f[0], 0.27, 0.13) * bump(p[1], -0.045, 0.045) * front
    colour = mixed(colour, base * vector(0.80, 0.70, 0.74)[:, None], under)
    beard = smooth(-p[1], 0.30, 0.50) * smooth(p[2], -0.2, 0.1) * smooth(p[1], -1.15, -0.95)
    beard *= person.stubble * (0.7 + 0.3 * speckle(p, 70, 14))
    colour = mixed(colour, base * vector(0.50, 0.52, 0.58)[:, None], beard)
    lips = vector(*person.lips)[:, None] * (1 + 0.10 * noise(55 * p[0], 8 * p[1], 8 * p[2], 13))
    colour = mixed(colour, lips, 0.82 * lip_mask(p, person))
    line = bump(p[1] - 0.55 * p[0] * p[0], -0.568 - 0.04 * person.pose.mouth, 0.009) * (p[2] > 0.5)
    colour = mixed(colour, base * 0.12 + 0 * p, 0.75 * line * smooth(-np.abs(p[0]), -0.225, -0.17))
    colour = mixed(colour, vector(*person.hair)[:, None] * 0.6 + 0.004 + 0 * p, 0.85 * brow_mask(p, person))
    colour = mixed(colour, vector(*person.hair)[:, None] + 0 * p, 0.9 * fringe_mask(p, f, person))
    return mixed(colour, (0.012, 0.008, 0.007), lash_mask(p, f, person))


def lash_mask(p: Array, f: Array, person: Person) -> Array:
    """The lids' edges: dark above, faint below; and the fold over the upper lid."""
    opening = eye_opening(f, person.pose.blink)
    near = (np.abs(f[0] - EYE_CENTRE[0]) < EYE_WIDTH * 1.15) & (p[2] > 0.4)
    upper = p[1] > EYE_CENTRE[1] - 0.02 - 0.04 * person.pose.blink
    edge = smooth(-opening, -0.022, -0.004) * np.where(upper, np.float32(0.92), np.float32(0.30))
    fold = 0.38 * bump(opening, 0.046, 0.011) * upper * smooth(p[1], 0.11, 0.14)
    return np.maximum(edge, fold) * near


def eye_colour(p: Array, person: Person) -> tuple[Array, Array]:
    """Colours of the eyeballs, and how far inside the iris each point is (0 to 1)."""
    side = np.where(p[0] > 0, 1, -1).astype(np.float32)
    u = (p[0] - side * np.float32(EYE_CENTRE[0])) / np.float32(EYE_RADIUS) - np.float32(person.pose.gaze[0])
    v = (p[1] - np.float32(EYE_CENTRE[1])) / np.float32(EYE_RADIUS) - np.float32(person.pose.gaze[1])
    radius, angle = np.hypot(u, v), np.arctan2(v, u)
    fibres = 1 + 0.35 * noise(angle * 9, radius * 4, side * 3, 21)
    iris = vector(*person.iris)[:, None] * fibres * (0.6 + 2.0 * radius)
    iris = mixed(iris, (0.010, 0.008, 0.008), smooth(radius, 0.36, 0.46))
    white = np.broadcast_to(vector(0.66, 0.615, 0.58)[:, None], p.shape)
    colour = mixed(white, iris, 1 - smooth(radius, 0.43, 0.48))
    return mixed(colour, (0.004, 0.004, 0.005), 1 - smooth(radius, 0.18, 0.22)), 1 - smooth(radius, 0.40, 0.50)


def facing(normal: Array, light: Array, wrap: Vector = (0.0, 0.0, 0.0)) -> Array:
    """Lambert's law (3, N), softened per colour: in skin red light comes out beyond the edge of the shadow."""
    soft = vector(*wrap)[:, None]
    return np.maximum(light @ normal + soft, 0) / (1 + soft) ** np.float32(1.4)


def gloss(normal: Array, view: Array, light: Array, power: float) -> Array:
    """A normalised Blinn-Phong highlight (N,)."""
    half = np.maximum((normal * unit(light[:, None] - view)).sum(0), 0)
    return np.float32((power + 2) / 8) * half ** np.float32(power) * np.maximum(light @ normal, 0)


def ambient(normal: Array) -> Array:
    """Light from everywhere: a bright wall on the left, a cool room above, a warm floor."""
    up, left = (normal[1] + 1) / 2, (1 - normal[0]) / 2
    floor, ceiling, wall = (vector(0.20, 0.15, 0.12), vector(0.27, 0.30, 0.35), vector(0.20, 0.19, 0.17))
    return floor[:, None] * (1 - up) + ceiling[:, None] * up + wall[:, None] * left


@dataclass(frozen=True)
class Lit:
    """What shading needs to know of points: head coordinates, normals, view directions, light that arrives."""

    p: Array
    normal: Array
    view: Array
    key: Array  # (N,), 0 in shadow, 1 in full light
    open: Array  # (N,), 0 in a crevice, 1 in the open


def shade_skin(lit: Lit, person: Person) -> Array:
    colour, wet = skin_colour(lit.p, person), lip_mask(lit.p, person)
    matt = 1 - brow_mask(lit.p, person)
    reached = lit.key ** vector(0.85, 0.97, 1.0)[:, None]
    light = KEY_LIGHT[:, None] * facing(lit.normal, KEY, (0.30, 0.17, 0.12)) * reached
    light += RIM_LIGHT[:, None] * facing(lit.normal, RIM, (0.2, 0.1, 0.1)) * lit.open
    light += ambient(lit.normal) * lit.open ** vector(0.85, 1.05, 1.12)[:, None]
    shine = 0.016 * gloss(lit.normal, lit.view, KEY, 18) * (1 + 0.8 * wet)
    shine += 0.006 * gloss(lit.normal, lit.view, KEY, 80) * (1 + 3 * wet)
    shine *= lit.key * matt * (0.75 + 0.5 * speckle(lit.p, 70, 31))
    edge = 0.12 * (1 - np.abs((lit.normal * lit.view).sum(0))) ** 4 * lit.open * matt
    return colour * light * 0.72 + shine * KEY_LIGHT[:, None] + edge * ambient(lit.normal)


def shade_eye(lit: Lit, person: Person) -> Array:
    colour, inside = eye_colour(lit.p, person)
    light = KEY_LIGHT[:, None] * facing(lit.normal, KEY, (0.3, 0.25, 0.25)) * (0.35 + 0.65 * lit.key)
    light += ambient(lit.normal)
    deep = smooth(-eye_opening(mirrored(lit.p), person.pose.blink), -0.005, 0.045)
    deep = deep * smooth(EYE_CENTRE[1] + 0.065 - lit.p[1], -0.01, 0.05)
    mirror = lit.view - 2 * (lit.view * lit.normal).sum(0) * lit.normal
    spark = 1.5 * smooth(KEY @ mirror, 0.955, 0.970) + 0.20 * inside * smooth(RIM @ mirror, 0.80, 0.99)
    return colour * light * (0.28 + 0.72 * deep) * 0.72 + spark * vector(1.0, 0.98, 0.95)[:, None]


def shade_hair(lit: Lit, person: Person) -> Array:
    """Kajiya and Kay: light on a strand depends on the angle to its direction."""
    p = lit.p
    around, along = strands(p, person)
    flow = np.stack([np.float32(0.55) * p[0], np.full_like(p[0], -1.0), np.float32(0.45) * p[2] + np.float32(0.2)])
    flow += np.float32(0.22) * np.stack([noise(around * 40, along * 2, p[2], seed) for seed in (41, 42, 43)])
    tangent = unit(flow - (flow * lit.normal).sum(0) * lit.normal)
    outside = smooth(np.hypot(p[0], p[2] + np.float32(0.35)), 0.30, 0.70)
    strand = 1 + 0.30 * outside * noise(around * 95, along * 1.5, p[2] * 2, 44)
    strand += 0.25 * noise(around * 26, along, p[2], 45)
    colour = vector(*person.hair)[:, None] * strand
    total = colour * ambient(lit.normal) * lit.open * 1.2
    for light, power, seen in ((KEY, KEY_LIGHT, 0.12 + 0.88 * lit.key), (RIM, RIM_LIGHT * 1.5, 0.3 + 0.7 * lit.open)):
        toward = smooth(light @ lit.normal, -0.30, 0.75)
        soft = np.sqrt(np.maximum(1 - (light @ tangent) ** 2, 0)) * toward
        across = np.sqrt(np.maximum(1 - (tangent * unit(light[:, None] - lit.view)).sum(0) ** 2, 0))
        band = (0.05 * across**160 + 0.10 * across**30) * toward * strand
        total += power[:, None] * (colour * soft * 0.85 + band * (colour * 4 + 0.10)) * seen
    return total


def shade_cloth(lit: Lit, person: Person) -> Array:
    x, y, _ = lit.p
    knit = 1 + 0.05 * np.sin(x * 120) * np.sin(y * 95 + 2 * np.sin(x * 4)) + 0.10 * speckle(lit.p, 5, 51)
    colour = vector(*person.cloth)[:, None] * knit
    light = KEY_LIGHT[:, None] * facing(lit.normal, KEY, (0.1, 0.1, 0.1)) * lit.key
    light += RIM_LIGHT[:, None] * facing(lit.normal, RIM) * lit.open + ambient(lit.normal) * lit.open
    fuzz = 0.5 * (1 - np.abs((lit.normal * lit.view).sum(0))) ** 3
    return colour * (light * 0.75 + fuzz * ambient(lit.normal))


SHADERS: dict[Material, Callable[[Lit, Person], Array]] = {
    Material.SKIN: shade_skin,
    Material.EYE: shade_eye,
    Material.HAIR: shade_hair,
    Material.CLOTH: shade_cloth,
}

LAMPS = (
    (0.46, 0.17, 0.050, 0.8),
    (0.60, 0.30, 0.036, 0.5),
    (0.36, 0.08, 0.030, 0.35),
    (0.74, 0.12, 0.045, 0.45),
    (-0.98, 0.50, 0.04, 0.3),
    (1.02, 0.24, 0.05, 0.6),
)
"""Out-of-focus lamps: across, down, radius (in picture heights), brightness."""


def room(width: int, height: int, shift: float = 0.0) -> Array:
    """The background (3, height, width): a window on the left, lamps as discs, a warm corner; moved by `shift`."""
    y, x = (np.mgrid[0:height, 0:width] / height).astype(np.float32)
    x = x - np.float32(width / height / 2 - shift)
    colour = np.stack([0.080 - 0.035 * x, 0.078 - 0.030 * x, 0.080 - 0.018 * x])
    window = smooth(0.27 - np.abs(x + 0.60), -0.20, 0.24) * smooth(1.0 - y, 0.0, 0.7)
    bar = 1 - 0.35 * bump(x, -0.58, 0.035) - 0.25 * bump(y, 0.34, 0.03)
    colour += window * bar * vector(0.42, 0.46, 0.50)[:, None, None]
    shelf = smooth(x, 0.12, 0.30) * smooth(y, 0.50, 0.60)
    colour += shelf * (0.022 * vector(1.0, 0.72, 0.48))[:, None, None]
    for across, down, radius, power in LAMPS:
        disc = smooth(radius - np.hypot(x - across, y - down), -0.014, 0.012)
        colour += disc * (power * 0.42 * vector(1.0, 0.70, 0.38))[:, None, None]
    return np.maximum(colour, 0).astype(np.float32)


def render(people: tuple[Person, ...], camera: Camera, width: int, height: int, shift: float = 0.0) -> Array:
    """Linear RGB (3, height, width) of people in front of the room."""
    origin, rays = camera_rays(camera, width, height)
    picture = room(width, height, shift).reshape(3, -1)
    travelled = trace(origin, rays, people)
    hit = np.flatnonzero(travelled < FAR)
    view = rays.reshape(3, -1)[:, hit]
    points = origin[:, None] + travelled[hit] * view
    found = np.stack([distances(points, person) for person in people])
    who, material = found.min(1).argmin(0), found.min(0).argmin(0)
    normal = normals(points, people, who, 0.004)
    key, open_ = shadow(points, normal, KEY, people), occlusion(points, normal, people)
    for index, person in enumerate(people):
        for kind, shade in SHADERS.items():
            mine = (who == index) & (material == kind)
            if mine.any():
                p = head_points(points[:, mine], person)
                lit = Lit(p, normal[:, mine], view[:, mine], key[mine], open_[mine])
                picture[:, hit[mine]] = shade(lit, person)
    return picture.reshape(3, height, width)


def develop(linear: Array, exposure: float = 0.82, grain: float = 0.0, seed: int = 0) -> NDArray[np.uint8]:
    """8-bit sRGB (height, width, 3) from linear light: a soft shoulder for highlights, then grain."""
    light = np.maximum(linear, 0) * exposure
    toned = light * (2.51 * light + 0.03) / (light * (2.43 * light + 0.59) + 0.14)
    coded = np.where(toned <= 0.0031308, 12.92 * toned, 1.055 * np.maximum(toned, 1e-6) ** (1 / 2.4) - 0.055)
    coded = coded + grain * np.random.default_rng(seed).standard_normal(coded.shape[1:])
    return (np.clip(coded, 0, 1) * 255 + 0.5).astype(np.uint8).transpose(1, 2, 0)
