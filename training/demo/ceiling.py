"""What the VAE alone leaves of moving mouths: held-out clips, drawn, through it and back.

`python -m training.demo.ceiling --data DIR --out DIR` appends the figures to `log.jsonl` in the output folder. No video
of the chunk loop can be better than this, so it tells whether it is the VAE or the transformer that limits.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from infinitalk_cli.models.vae import VideoVAE
from training.demo.clips import ClipMaker, Shot
from training.demo.measures import lip_sync, mouth_openings
from training.demo.networks import CHUNK_FRAMES, VAE_FILE, load_weights, new_vae
from training.demo.pace import Log, pick_device
from training.demo.portraits import Motion
from training.demo.speech import HOP, Corpus, mouth_opening, mouth_width
from training.demo.theatre import Video, envelope_of, find_mouth

NUM_CHUNKS = 6
SHAPES = ((128, 128, 1), (96, 160, 2))


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what the VAE leaves of mouths.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seeds", type=int, default=5)
    wish = parser.parse_args()
    device = pick_device(wish.device)
    vae = new_vae(0)
    load_weights(vae, wish.out / VAE_FILE)
    log = Log(wish.out / "log.jsonl", "ceiling")
    for shape in SHAPES:
        for seed in range(wish.seeds):
            log.write(people=shape[2], seed=seed, **left_of_mouths(vae.to(device).eval(), wish.data, shape, seed))


@torch.no_grad()
def left_of_mouths(vae: VideoVAE, data: Path, shape: tuple[int, int, int], seed: int) -> dict[str, float]:
    """The scene of this seed as `theatre.py` has it, everybody sitting still but for the mouth.

    For each person the mouth's half width in pixels and the correlation with the voice, drawn and after the VAE; and
    how much more the picture changes where a latent follows another than within one.
    """
    generator = torch.Generator().manual_seed(seed)
    maker = ClipMaker.load(data, generator, Shot(*shape, CHUNK_FRAMES), held_out=True)
    people = maker.cast(1)
    length = NUM_CHUNKS * CHUNK_FRAMES * HOP
    speech = Corpus.load(data / "speech_held_out.npz").waveforms(torch.device("cpu"))
    voices = [speech[(seed + 3 * number) % len(speech), :length] for number in range(len(people))]
    picture = maker.studio.room(1)
    for figures, voice in zip(people, voices, strict=True):
        motion = replace(Motion.at_rest(mouth_opening(voice[None])), width=mouth_width(voice[None]))
        picture = maker.studio.place(picture, figures, motion)
    device = vae.conv1.weight.device
    chunks = (picture * 2 - 1).split(CHUNK_FRAMES, dim=2)
    drawn = shown(picture * 2 - 1)
    coded = shown(torch.cat([vae.decode(vae.encode(chunk.to(device))).cpu() for chunk in chunks], dim=2))
    found = {"step": step_ratio(coded)}
    for number, (figures, voice) in enumerate(zip(people, voices, strict=True), start=1):
        mouth, envelope = find_mouth(maker, figures), envelope_of(voice)
        found[f"half_{number}"] = mouth.half_width
        found[f"drawn_{number}"] = lip_sync(mouth_openings(drawn, mouth), envelope).correlation
        found[f"coded_{number}"] = lip_sync(mouth_openings(coded, mouth), envelope).correlation
    return found


def shown(frames: Tensor) -> Video:
    """Frames `(1, 3, T, H, W)` in [-1, 1] as a video."""
    return ((frames[0].permute(1, 2, 3, 0) + 1) / 2).numpy()


def step_ratio(video: Video) -> float:
    """The mean change at the start of a latent over that within one; a chunk's first two latents are left out."""
    changes = np.abs(np.diff(video, axis=0)).mean(axis=(1, 2, 3))
    place = np.arange(1, len(video)) % CHUNK_FRAMES
    starts = place % 4 == 1
    return float(changes[starts & (place > 4)].mean() / changes[~starts & (place > 4)].mean())


if __name__ == "__main__":
    main()
