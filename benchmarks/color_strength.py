"""How strongly the colours of a dubbed video should be held: distance from the source and seams, on a CPU.

    python -m benchmarks.color_strength

No network runs. What a chunk shows are the frames of a source whose light is still or changes, with a small error of
colour on top of the one that the chunk before handed on; then the correction of `media.color` with each strength. So
errors add up as they do in a real run, and light that the correction flattens shows at the seams.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from infinitalk_cli.media.color import match_color, rgb_to_lab
from infinitalk_cli.media.drift import Drift
from infinitalk_cli.media.reference import VIDEO_FPS

PICTURE = Path(__file__).parent.parent / "examples" / "media" / "portrait.jpg"
SIDE = 96
CHUNK_FRAMES, MOTION_FRAMES, NUM_CHUNKS = 81, 9, 10
ERROR = torch.tensor([0.01, -0.003, 0.005])
"""Of red, green and blue, added in each chunk; pictures run from -1 to 1. About 1 unit in Lab."""

GRAIN = 0.004
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
LIGHTS: dict[str, Callable[[float], float]] = {
    "still": lambda seconds: 1.0,
    "halves in a minute": lambda seconds: 1 - 0.5 * seconds / 60,
    "falls by a fifth within 2.5 s and comes back": lambda seconds: 0.9 + 0.1 * math.cos(2 * math.pi * seconds / 5),
}


def source(picture: torch.Tensor, first: int, num_frames: int, light: Callable[[float], float]) -> torch.Tensor:
    """Frames `(1, 3, n, H, W)` of the source video, with the grain of a camera."""
    frames = list[torch.Tensor]()
    for number in range(first, first + num_frames):
        grain = np.random.default_rng(number).normal(0, GRAIN, picture.shape).astype(np.float32)
        frames.append((picture * light(number / VIDEO_FPS) + torch.from_numpy(grain)).clamp(0, 1) * 2 - 1)
    return torch.stack(frames, 1)[None]


def colors(frames: torch.Tensor) -> torch.Tensor:
    """The mean of each frame in Lab, `(3, n)`."""
    return rgb_to_lab((frames[0] + 1) / 2).mean((2, 3))


def stray(picture: torch.Tensor, light: Callable[[float], float], strength: float) -> tuple[float, float]:
    """Largest distance from the source in Lab units, and the largest seam over the usual change of two frames."""
    drift, carried, distance = Drift(), torch.zeros(3), 0.0
    for number in range(NUM_CHUNKS):
        start = number * (CHUNK_FRAMES - MOTION_FRAMES)
        seen = source(picture, start, CHUNK_FRAMES, light)
        made = (seen + (carried + ERROR).view(1, 3, 1, 1, 1)).clamp(-1, 1)
        reference = seen[:, :, :1]
        frames = match_color(made, reference, strength)
        carried = (frames - seen)[0, :, -MOTION_FRAMES:].mean((1, 2, 3))
        new = slice(MOTION_FRAMES if number else 0, None)
        distance = max(distance, (colors(frames) - colors(seen))[:, new].norm(dim=0).max().item())
        drift = drift.after(frames[:, :, new], reference, start + (new.start or 0), continues=number > 0)
    return distance, float(drift.summary()["seam_ratio"] or 0)


def main() -> None:
    """Print the table."""
    with Image.open(PICTURE) as file:
        pixels = np.asarray(file.convert("RGB").resize((SIDE, SIDE)), np.float32) / 255
    picture = torch.from_numpy(pixels).permute(2, 0, 1)
    print("light | strength | largest distance from the source, Lab | seam over the usual change")
    for name, light in LIGHTS.items():
        for strength in STRENGTHS:
            distance, seam = stray(picture, light, strength)
            print(f"{name} | {strength:g} | {distance:.1f} | {seam:.2f}")


if __name__ == "__main__":
    main()
