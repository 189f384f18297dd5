"""Makes videos of held-out people and speech with the real chunk loop, and measures them.

`python -m training.demo.evaluate --data DIR --out DIR` reads the weights from the output folder, appends the figures to
`log.jsonl` there and writes a sheet of frames for each kind of video. Guidance and steps are as in the profile `demo`
unless an option says otherwise.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.demo.networks import NUM_STEPS
from training.demo.pace import Log, pick_device
from training.demo.theatre import Ensemble, Theatre, alone, boxed, swapped, together

NUM_SHOWN = 16
"""Frames of a video on the sheet."""


def save_sheet(videos: list[NDArray[np.float32]], path: Path) -> None:
    """A picture with a row of frames for each video: its first four seconds and, of a long one, its last second."""
    rows: list[NDArray[np.uint8]] = []
    for frames in videos:
        at = np.linspace(0, min(len(frames), 100) - 1, NUM_SHOWN).round().astype(int)
        ends = [*at, *(np.array([-17, -9, -1]) + len(frames))] if len(frames) > 120 else at
        rows.append((np.concatenate(list(frames[ends]), axis=1) * 255).round().astype(np.uint8))
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0))) for row in rows]
    Image.fromarray(np.concatenate(padded)).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the demo's weights on held-out people and speech.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--long-seconds", type=float, default=60.0, help="of the video that shows drift; 0 for none")
    parser.add_argument("--sampling-steps", type=int, default=NUM_STEPS)
    parser.add_argument("--audio-guidance", type=float, default=1.0)
    wish = parser.parse_args()
    device = pick_device(wish.device)
    ensemble = Ensemble.of_run(wish.data, wish.out, device)
    theatre = Theatre(ensemble, wish.data, device, steps=wish.sampling_steps, audio_guidance=wish.audio_guidance)
    evaluate(theatre, wish, Log(wish.out / "log.jsonl", "evaluate"))


def evaluate(theatre: Theatre, wish: argparse.Namespace, log: Log) -> None:
    """Videos of one person, of two, and a long one."""
    started = time.monotonic()
    found = {
        "alone": [alone(theatre, seed, wish.seconds, (128, 128)) for seed in range(wish.seeds)],
        "upright": [alone(theatre, 10 + seed, wish.seconds, (144, 112)) for seed in range(min(2, wish.seeds))],
        "together": [together(theatre, seed, min(12.0, wish.seconds)) for seed in range(wish.seeds)],
        "swapped": [swapped(theatre, 2, min(12.0, wish.seconds))],
        "boxed": [boxed(theatre, 2, min(12.0, wish.seconds))],
    }
    if wish.long_seconds:
        found["long"] = [alone(theatre, 1, wish.long_seconds, (128, 128))]
        found["long_uncorrected"] = [alone(theatre, 1, wish.long_seconds, (128, 128), color_strength=0.0)]
        found["no_new_start"] = [alone(theatre, 0, wish.seconds, (128, 128), reanchor_every=None)]
        found["no_fade"] = [alone(theatre, seed, 8.0, (128, 128), cross_fade=False) for seed in range(2)]
        for steps, guidance in ((4, 1.0), (8, 2.0), (16, 1.0)):
            name = f"steps_{steps}_guidance_{guidance:g}"
            changes = {"num_steps": steps, "audio_guidance_scale": guidance}
            found[name] = [alone(theatre, seed, 8.0, (128, 128), **changes) for seed in range(2)]
    save_sheet([result.pop("frames") for results in found.values() for result in results], wish.out / "sheet.png")
    for kind, results in found.items():
        for seed, result in enumerate(results):
            log.write(kind=kind, seed=seed, **result)
    log.write(seconds=time.monotonic() - started)


if __name__ == "__main__":
    main()
