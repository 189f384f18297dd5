"""Videos of held-out people and speech by the real chunk loop, and what they are measured by.

The networks may be those of a training run or those of the package. What is played is drawn, so the place of each mouth
and the sound that opens it are known. `evaluate.py` measures a training run so, `tests/quality` the package.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from infinitalk_cli.demo_package import locate_demo
from infinitalk_cli.media.color import match_color
from infinitalk_cli.models.audio_encoder import AudioEncoder
from infinitalk_cli.models.dit import DiT
from infinitalk_cli.models.image_encoder import ImageEncoder
from infinitalk_cli.models.vae import VideoVAE
from infinitalk_cli.networks import build_audio_encoder, build_dit, build_image_encoder, build_text_encoder, build_vae
from infinitalk_cli.sampling.conditioning import Conditioning, TensorEmbeds
from infinitalk_cli.sampling.settings import SamplingSettings
from infinitalk_cli.sampling.stream import Networks, generate_chunks
from infinitalk_cli.weights import Quant
from training.demo.clips import ClipMaker, Shot
from training.demo.frozen import PROMPTS
from training.demo.measures import (
    Mouth,
    lab_drift,
    lip_sync,
    mouth_openings,
    opening_in_pauses,
    psnr,
    step_ratios,
)
from training.demo.networks import (
    AUDIO_FILE,
    CHUNK_FRAMES,
    CROSS_FADE,
    DIT_FILE,
    IMAGE_FILE,
    MOTION_FRAMES,
    NUM_STEPS,
    REANCHOR_EVERY,
    SHIFT,
    VAE_FILE,
    load_weights,
    new_audio_encoder,
    new_dit,
    new_image_encoder,
    new_vae,
)
from training.demo.pool import load_audio, load_prompts
from training.demo.portraits import Figures, Motion
from training.demo.speech import RATE, Corpus, mouth_opening

Video = NDArray[np.float32]
"""`(T, H, W, 3)` in [0, 1]."""

PROMPT = "A person talks."
SHAPE_OF_TWO = (96, 160)
MOST_ALIKE = 0.15
"""Correlation of two voices that are heard at once."""
SPEECH_OF_ANOTHER = 5
"""So many clips further on in the corpus begins the speech that a mouth must not follow."""


@dataclass(frozen=True)
class Ensemble:
    """The networks of a video, and the features of its prompt."""

    dit: DiT
    vae: VideoVAE
    image_encoder: ImageEncoder
    audio_encoder: AudioEncoder
    text: Tensor

    @classmethod
    def of_run(cls, data: Path, out: Path, device: torch.device) -> Ensemble:
        """What a training run has left in `out`."""
        dit, vae, image_encoder = new_dit(0), new_vae(0), new_image_encoder(0)
        audio_encoder = new_audio_encoder(0)
        load_weights(dit, out / DIT_FILE)
        load_weights(vae, out / VAE_FILE)
        load_weights(image_encoder, data / IMAGE_FILE)
        load_audio(audio_encoder, out / AUDIO_FILE)
        padded = load_prompts(data, torch.device("cpu"))[PROMPTS.index(PROMPT)]
        networks = (dit.to(device).eval(), vae.to(device).eval(), image_encoder.to(device), audio_encoder.to(device))
        return cls(*networks, padded[padded.any(dim=1)])

    @classmethod
    def of_package(cls, device: torch.device, quant: Quant = "none") -> Ensemble:
        """What `talk demo` loads. Args: quant: to which the transformer is rounded."""
        files, exact = locate_demo(num_speakers=2, quant=quant), torch.float32
        return cls(
            build_dit(files, dtype=exact, device=device),
            build_vae(files, dtype=exact, device=device),
            build_image_encoder(files, dtype=exact, device=device),
            build_audio_encoder(files, device=device),
            build_text_encoder(files, dtype=exact).encode(PROMPT),
        )


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

    @property
    def shown(self) -> Video:
        """The picture `(H, W, 3)` in [0, 1]."""
        return ((self.picture[0, :, 0].permute(1, 2, 0) + 1) / 2).numpy()


@dataclass(frozen=True)
class Theatre:
    """Networks, and a folder with held-out people and speech. `steps`, `audio_guidance`: as the demo samples."""

    ensemble: Ensemble
    data: Path
    device: torch.device
    steps: int = NUM_STEPS
    audio_guidance: float = 1.0

    def with_networks(self, ensemble: Ensemble) -> Theatre:
        return replace(self, ensemble=ensemble)

    def scene(self, seed: int, height: int, width: int, num_people: int) -> Scene:
        """A picture of held-out people with closed mouths."""
        generator = torch.Generator().manual_seed(seed)
        maker = ClipMaker.load(self.data, generator, Shot(height, width, num_people, CHUNK_FRAMES), held_out=True)
        people = maker.cast(1)
        still = Motion.at_rest(torch.zeros(1, 1))
        picture = maker.studio.room(1)
        for figures in people:
            picture = maker.studio.place(picture, figures, still)
        masks = maker.masks(people)[0] if num_people == 2 else None
        return Scene(picture * 2 - 1, [find_mouth(maker, figures) for figures in people], masks)

    def said(self, number: int, seconds: float) -> Tensor:
        """So many seconds of held-out speech `(n,)`, clip after clip from this one on."""
        speech = Corpus.load(self.data / "speech_held_out.npz").waveforms(torch.device("cpu"))
        clips = [speech[(number + more) % len(speech)] for more in range(int(seconds // 12) + 1)]
        return torch.cat(clips)[: int(seconds * RATE)]

    def play(self, scene: Scene, speech: list[Tensor], seed: int, **changes: Any) -> Video:
        """The video of a scene. Args: speech: of each mouth. changes: of `SamplingSettings`."""
        settings: dict[str, Any] = {
            "bucket_set": "demo",
            "chunk_frames": CHUNK_FRAMES,
            "motion_frames": MOTION_FRAMES,
            "max_frames": len(speech[0]) * 25 // RATE,
            "num_steps": self.steps,
            "shift": SHIFT,
            "text_guidance_scale": 1.0,
            "audio_guidance_scale": self.audio_guidance,
            "cross_fade": CROSS_FADE,
            "reanchor_every": REANCHOR_EVERY,
            "seed": seed,
        }
        cast = self.ensemble
        conditioning = Conditioning(
            text=cast.text,
            audio=tuple(TensorEmbeds(cast.audio_encoder.embed(waveform).cpu()) for waveform in speech),
            reference=Still(scene.picture),
            speaker_masks=scene.masks,
            height=scene.picture.shape[3],
            width=scene.picture.shape[4],
        )
        networks = Networks(
            dit=cast.dit,
            vae=cast.vae,
            image_encoder=cast.image_encoder,
            match_color=match_color,
            device=self.device,
        )
        with torch.no_grad():
            chunks = generate_chunks(networks, conditioning, SamplingSettings(**{**settings, **changes}))
            frames = torch.cat([chunk.frames[0] for chunk in chunks], dim=1)
        return ((frames.permute(1, 2, 3, 0) + 1) / 2).numpy()


def find_mouth(maker: ClipMaker, figures: Figures) -> Mouth:
    """Where a person's mouth is in the picture."""
    reach = maker.studio.sprites.mouths[figures.number[0], 2:].norm() * figures.side[0]
    return Mouth(float(figures.x[0]), float(figures.y[0]), float(reach))


def envelope_of(waveform: Tensor) -> NDArray[np.float64]:
    """How far speech `(n,)` opens a mouth in every frame."""
    return mouth_opening(waveform[None])[0].double().numpy()


def alone(theatre: Theatre, seed: int, seconds: float, shape: tuple[int, int], **changes: Any) -> dict[str, Any]:
    """One person: figures, and the frames under `frames`."""
    scene, speech = theatre.scene(seed, *shape, 1), theatre.said(seed, seconds)
    frames = theatre.play(scene, [speech], seed, **changes)
    other = envelope_of(theatre.said(seed + SPEECH_OF_ANOTHER, seconds))
    return {"frames": frames, **figures_of(frames, scene, envelope_of(speech), other)}


def figures_of(
    frames: Video, scene: Scene, envelope: NDArray[np.float64], other: NDArray[np.float64]
) -> dict[str, float]:
    """What a video of one person is worth. Args: other: speech that was not heard."""
    openings, chunk = mouth_openings(frames, scene.mouths[0]), CHUNK_FRAMES
    sync = lip_sync(openings, envelope)
    steps = step_ratios(frames)
    ends = np.arange(chunk, len(frames), chunk - MOTION_FRAMES)  # of what two chunks share and the blend goes over
    seams = np.maximum(steps[ends - MOTION_FRAMES], steps[ends])
    height, width = frames.shape[1:3]
    corner = (slice(None), slice(0, height // 3), slice(0, width // 6))
    return {
        "sync": sync.correlation,
        "lag": sync.best_lag,
        "sync_first": lip_sync(openings[:chunk], envelope[:chunk]).correlation,
        "sync_last": lip_sync(openings[-2 * chunk :], envelope[-2 * chunk :]).correlation,
        "sync_other": lip_sync(openings, other).correlation,
        "pause": opening_in_pauses(openings, envelope),
        "seam": float(np.median(seams)) if len(seams) else 1.0,
        "seam_worst": float(seams.max(initial=1.0)),
        "lab_end": lab_drift(frames[-25:], scene.shown),
        "corner_psnr_end": psnr(frames[-25:][corner], np.broadcast_to(scene.shown, frames[-25:].shape)[corner]),
    }


def together(theatre: Theatre, seed: int, seconds: float, **changes: Any) -> dict[str, Any]:
    """Two people who speak at once: how each follows the own voice and the other's."""
    scene, speech = theatre.scene(seed, *SHAPE_OF_TWO, 2), voices_of_two(theatre, seed, seconds)
    frames = theatre.play(scene, speech, seed, **changes)
    return {"frames": frames, **who_follows_whom(frames, scene, speech)}


def swapped(theatre: Theatre, seed: int, seconds: float) -> dict[str, Any]:
    """The same with each other's voice."""
    scene, speech = theatre.scene(seed, *SHAPE_OF_TWO, 2), voices_of_two(theatre, seed, seconds)[::-1]
    frames = theatre.play(scene, speech, seed)
    return {"frames": frames, **who_follows_whom(frames, scene, speech)}


def boxed(theatre: Theatre, seed: int, seconds: float) -> dict[str, Any]:
    """The same with the first speaker on the right, and boxes no larger than the faces."""
    scene, speech = theatre.scene(seed, *SHAPE_OF_TWO, 2), voices_of_two(theatre, seed, seconds)
    mouths = sorted(scene.mouths, key=lambda mouth: -mouth.x)
    boxes = [face_box(mouth) for mouth in mouths]
    masks = torch.stack([*boxes, 1 - sum(boxes, torch.zeros_like(boxes[0])).clamp(max=1)])
    placed = replace(scene, mouths=mouths, masks=masks)
    frames = theatre.play(placed, speech, seed)
    return {"frames": frames, **who_follows_whom(frames, placed, speech)}


def face_box(mouth: Mouth) -> Tensor:
    """A square with the mouth in its lower half, on the grid of the latents `(H / 8, W / 8)`."""
    reach = 3.4 * mouth.half_width
    rows, columns = ((torch.arange(side // 8) + 0.5) * 8 for side in SHAPE_OF_TWO)
    across, down = columns[None] - mouth.x, rows[:, None] - (mouth.y - 0.4 * reach)
    return (across.abs() < reach).float() * (down.abs() < reach)


def voices_of_two(theatre: Theatre, seed: int, seconds: float) -> list[Tensor]:
    """What two people say at once: the second, what is not open and closed at the same times as the first by chance.

    Of two clips of this corpus it happens that they correlate by nearly 0.5, and then so does a mouth with the other's
    voice that follows its own without a fault.
    """
    first = theatre.said(seed, seconds)
    others = (theatre.said(number, seconds) for number in itertools.count(seed + 3))
    alike = (lip_sync(envelope_of(first), envelope_of(other)).correlation for other in others)
    number = next(number for number, found in enumerate(alike, seed + 3) if abs(found) < MOST_ALIKE)
    return [first, theatre.said(number, seconds)]


def who_follows_whom(frames: Video, scene: Scene, speech: list[Tensor]) -> dict[str, float]:
    """The correlation of each of two mouths with each of two voices, and that of the voices."""
    openings = [mouth_openings(frames, mouth) for mouth in scene.mouths]
    envelopes = [envelope_of(waveform) for waveform in speech]
    found = {
        f"mouth_{mouth + 1}_voice_{voice + 1}": lip_sync(openings[mouth], envelopes[voice]).correlation
        for mouth in range(2)
        for voice in range(2)
    }
    return {**found, "voices": lip_sync(*envelopes).correlation}
