"""Makes videos of held-out people and speech with the real chunk loop, and measures them.

`python -m training.demo.evaluate --data DIR --out DIR` reads the weights from the output folder, appends the figures to
`log.jsonl` there and writes a sheet of frames for each kind of video. Guidance and steps are as in the profile `demo`
unless an option says otherwise.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from infinitalk_cli.media.color import match_color
from infinitalk_cli.sampling.conditioning import Conditioning, TensorEmbeds
from infinitalk_cli.sampling.settings import SamplingSettings
from infinitalk_cli.sampling.stream import Networks, generate_chunks
from training.demo.clips import ClipMaker
from training.demo.measures import (
    Mouth,
    lab_drift,
    lip_sync,
    mouth_openings,
    opening_in_pauses,
    psnr,
    seam_ratio,
)
from training.demo.networks import (
    AUDIO_FILE,
    CHUNK_FRAMES,
    CROSS_FADE,
    DIT_FILE,
    IMAGE_FILE,
    MOTION_FRAMES,
    NUM_STEPS,
    SHIFT,
    VAE_FILE,
    load_weights,
    new_audio_encoder,
    new_dit,
    new_image_encoder,
    new_vae,
)
from training.demo.pace import Log, pick_device
from training.demo.pool import load_audio, load_prompts
from training.demo.portraits import Figures, Motion
from training.demo.speech import RATE, Corpus, mouth_opening

NUM_SHOWN = 16
"""Frames of a video on the sheet."""


@dataclass(frozen=True)
class Still:
    """A reference picture `(1, 3, 1, H, W)`, the same for all chunks."""

    picture: Tensor

    def frame(self, chunk_start: int) -> Tensor:
        del chunk_start
        return self.picture


@dataclass(frozen=True)
class Scene:
    """A held-out picture, where its mouths are, and the speakers' masks."""

    picture: Tensor
    mouths: list[Mouth]
    masks: Tensor | None


class Theatre:
    """The trained networks and the held-out material."""

    def __init__(self, wish: argparse.Namespace, device: torch.device) -> None:
        self.wish = wish
        self.device = device
        self.dit, self.vae, self.image_encoder = new_dit(0), new_vae(0), new_image_encoder(0)
        self.audio_encoder = new_audio_encoder(0).to(device)
        load_weights(self.dit, wish.out / DIT_FILE)
        load_weights(self.vae, wish.out / VAE_FILE)
        load_weights(self.image_encoder, wish.data / IMAGE_FILE)
        load_audio(self.audio_encoder, wish.out / AUDIO_FILE)
        self.text = load_prompts(wish.data, torch.device("cpu"))[1][:16]
        self.speech = Corpus.load(wish.data / "speech_held_out.npz").waveforms(torch.device("cpu"))

    def scene(self, seed: int, height: int, width: int, num_people: int) -> Scene:
        """A picture of held-out people with closed mouths."""
        generator = torch.Generator().manual_seed(seed)
        maker = ClipMaker.load(self.wish.data, generator, height, width, num_people, num_frames=33, held_out=True)
        people = maker.cast(1)
        still = Motion.at_rest(torch.zeros(1, 1))
        picture = maker.studio.room(1)
        for figures in people:
            picture = maker.studio.place(picture, figures, still)
        masks = maker.masks(people)[0] if num_people == 2 else None
        return Scene(picture * 2 - 1, [self.mouth(maker, figures) for figures in people], masks)

    def mouth(self, maker: ClipMaker, figures: Figures) -> Mouth:
        reach = maker.studio.sprites.mouths[figures.number[0], 2:].norm() * figures.side[0]
        return Mouth(float(figures.x[0]), float(figures.y[0]), float(reach))

    def said(self, number: int, seconds: float) -> Tensor:
        """So many seconds of held-out speech `(n,)`, clip after clip from this one on."""
        clips = [self.speech[(number + more) % len(self.speech)] for more in range(int(seconds // 12) + 1)]
        return torch.cat(clips)[: int(seconds * RATE)]

    def play(self, scene: Scene, speech: list[Tensor], seed: int, **changes: Any) -> NDArray[np.float32]:
        """The video `(T, H, W, 3)` in [0, 1]."""
        settings: dict[str, Any] = {
            "bucket_set": "demo",
            "chunk_frames": CHUNK_FRAMES,
            "motion_frames": MOTION_FRAMES,
            "max_frames": len(speech[0]) * 25 // RATE,
            "num_steps": self.wish.sampling_steps,
            "shift": SHIFT,
            "text_guidance_scale": 1.0,
            "audio_guidance_scale": self.wish.audio_guidance,
            "cross_fade": CROSS_FADE,
            "seed": seed,
        }
        conditioning = Conditioning(
            text=self.text,
            audio=tuple(TensorEmbeds(self.audio_encoder.embed(waveform).cpu()) for waveform in speech),
            reference=Still(scene.picture),
            speaker_masks=scene.masks,
            height=scene.picture.shape[3],
            width=scene.picture.shape[4],
        )
        networks = Networks(
            dit=self.dit.to(self.device).eval(),
            vae=self.vae.to(self.device).eval(),
            image_encoder=self.image_encoder.to(self.device),
            match_color=match_color,
            device=self.device,
        )
        chunks = generate_chunks(networks, conditioning, SamplingSettings(**{**settings, **changes}))
        frames = torch.cat([chunk.frames[0] for chunk in chunks], dim=1)
        return ((frames.permute(1, 2, 3, 0) + 1) / 2).numpy()


def envelope_of(waveform: Tensor) -> NDArray[np.float64]:
    return mouth_opening(waveform[None])[0].double().numpy()


def alone(theatre: Theatre, seed: int, seconds: float, shape: tuple[int, int], **changes: Any) -> dict[str, Any]:
    """One person: figures, and the frames under `frames`."""
    scene, speech = theatre.scene(seed, *shape, 1), theatre.said(seed, seconds)
    frames = theatre.play(scene, [speech], seed, **changes)
    openings, envelope = mouth_openings(frames, scene.mouths[0]), envelope_of(speech)
    sync, chunk = lip_sync(openings, envelope), CHUNK_FRAMES
    other = envelope_of(theatre.said(seed + 5, seconds))
    borders = range(CHUNK_FRAMES, len(frames), CHUNK_FRAMES - MOTION_FRAMES)
    reference = (scene.picture[0, :, 0].permute(1, 2, 0).numpy() + 1) / 2
    corner = (slice(None), slice(0, shape[0] // 3), slice(0, shape[1] // 6))
    return {
        "frames": frames,
        "sync": sync.correlation,
        "lag": sync.best_lag,
        "sync_first": lip_sync(openings[:chunk], envelope[:chunk]).correlation,
        "sync_last": lip_sync(openings[-2 * chunk :], envelope[-2 * chunk :]).correlation,
        "sync_other": lip_sync(openings, other).correlation,
        "pause": opening_in_pauses(openings, envelope),
        "seam": float(np.median([seam_ratio(frames, border) for border in borders])) if len(borders) else 1.0,
        "seam_worst": max((seam_ratio(frames, border) for border in borders), default=1.0),
        "lab_end": lab_drift(frames[-25:], reference),
        "corner_psnr_end": psnr(frames[-25:][corner], np.broadcast_to(reference, frames[-25:].shape)[corner]),
    }


def together(theatre: Theatre, seed: int, seconds: float, **changes: Any) -> dict[str, Any]:
    """Two people who speak at once: how each follows the own voice and the other's."""
    scene = theatre.scene(seed, 96, 160, 2)
    speech = [theatre.said(seed, seconds), theatre.said(seed + 3, seconds)]
    frames = theatre.play(scene, speech, seed, **changes)
    openings = [mouth_openings(frames, mouth) for mouth in scene.mouths]
    envelopes = [envelope_of(waveform) for waveform in speech]
    return {
        "frames": frames,
        **{
            f"mouth_{mouth + 1}_voice_{voice + 1}": lip_sync(openings[mouth], envelopes[voice]).correlation
            for mouth in range(2)
            for voice in range(2)
        },
        "voices": lip_sync(*envelopes).correlation,
    }


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
    torch.set_grad_enabled(False)
    theatre = Theatre(wish, pick_device(wish.device))
    evaluate(theatre, wish, Log(wish.out / "log.jsonl", "evaluate"))


def evaluate(theatre: Theatre, wish: argparse.Namespace, log: Log) -> None:
    """Videos of one person, of two, and a long one."""
    started = time.monotonic()
    found = {
        "alone": [alone(theatre, seed, wish.seconds, (128, 128)) for seed in range(wish.seeds)],
        "upright": [alone(theatre, 10 + seed, wish.seconds, (144, 112)) for seed in range(min(2, wish.seeds))],
        "together": [together(theatre, seed, min(12.0, wish.seconds)) for seed in range(wish.seeds)],
    }
    if wish.long_seconds:
        found["long"] = [alone(theatre, 1, wish.long_seconds, (128, 128))]
        found["long_uncorrected"] = [alone(theatre, 1, wish.long_seconds, (128, 128), color_strength=0.0)]
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
