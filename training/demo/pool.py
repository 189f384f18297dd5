"""Encoded clips on the training device: filmed once, drawn from many times, replaced bit by bit.

A transformer step takes a few hundredths of a second; filming and encoding its clips takes several times that. So many
thousand clips are kept as latents, 150 kB each, and the oldest give way to fresh ones.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from infinitalk_cli.models.audio_encoder import AudioEncoder
from infinitalk_cli.models.fused import plain_forms
from infinitalk_cli.models.image_encoder import ImageEncoder
from infinitalk_cli.models.vae import VideoVAE
from infinitalk_cli.sampling.stream import picture_mask
from training.demo.clips import ClipMaker, Filmed, Shot
from training.demo.networks import (
    AUDIO_FILE,
    CHUNK_FRAMES,
    DIT,
    IMAGE_FILE,
    MOTION_FRAMES,
    VAE_FILE,
    load_weights,
    new_audio_encoder,
    new_image_encoder,
    new_vae,
    published_audio_names,
)
from training.demo.speech import Corpus, disturbed, mouth_opening, mouth_width
from training.demo.train_audio import layer_states
from training.demo.train_vae import convolve_as_pictures
from training.demo.wear import worn

SHAPES = (
    (128, 128, 1, 0.30),
    (144, 112, 1, 0.08),
    (112, 144, 1, 0.07),
    (160, 96, 1, 0.05),
    (96, 160, 2, 0.34),
    (112, 144, 2, 0.16),
)
"""Height, width, people, share of the clips."""

FILMED_AT_ONCE = 128
VERSIONS = 6
"""Disturbed forms of each speech clip."""
NUM_KNOWN = (MOTION_FRAMES - 1) // 4 + 1


@dataclass(frozen=True)
class Batch:
    """B clips of one shape as a training step needs them; see `Clips` for the forms.

    known: `(B, 16, 3, H, W)`: the motion latents, worn and after a way through the VAE. near_mouth: on the latent grid.
    """

    latents: Tensor
    known: Tensor
    condition: Tensor
    image: Tensor
    windows: Tensor
    is_first: Tensor
    near_mouth: Tensor
    members: Tensor | None

    @property
    def num_people(self) -> int:
        return 1 if self.members is None else 2


@dataclass(frozen=True)
class Heard:
    """Speech features of every track, `(n, frames, layers, dim)` 16-bit, and what mouths do: `(n, frames)`."""

    features: Tensor
    openings: Tensor
    widths: Tensor

    @classmethod
    @torch.no_grad()
    def build(cls, data: Path, encoder: AudioEncoder, generator: torch.Generator, versions: int) -> Heard:
        """Every clip of the corpus as it is and disturbed, and a silent one at the end."""
        clean = Corpus.load(data / "speech.npz").waveforms(generator.device)
        parts: list[tuple[Tensor, ...]] = []
        for version in range(versions + 1):
            for some in clean.split(16) if version < versions else [torch.zeros_like(clean[:1])]:
                heard, speech = disturbed(some, generator) if 0 < version < versions else (some, some)
                opening = mouth_opening(speech)
                states = layer_states(encoder, heard, opening.shape[1])
                parts.append((states.half(), opening, mouth_width(speech)))
        features, openings, widths = (torch.cat(part) for part in zip(*parts, strict=True))
        return cls(features, openings, widths)

    def windows(self, rows: Tensor, starts: Tensor, num_frames: int) -> Tensor:
        """`(B, num_frames, 5, layers, dim)` of tracks `rows` `(B,)` from frames `starts` `(B,)` on."""
        centers = starts[:, None] + torch.arange(num_frames, device=rows.device)
        places = centers[:, :, None] + torch.arange(-2, 3, device=rows.device)
        places = places.clamp(0, self.features.shape[1] - 1)
        return self.features[rows[:, None, None], places].float()

    def mouths(self, rows: Tensor, starts: Tensor, num_frames: int) -> tuple[Tensor, Tensor]:
        """Opening and width `(B, num_frames)`."""
        places = starts[:, None] + torch.arange(num_frames, device=rows.device)
        return self.openings[rows[:, None], places], self.widths[rows[:, None], places]


class Shelf:
    """The clips of one shape: a ring of fixed size."""

    def __init__(self, maker: ClipMaker, share: float, capacity: int) -> None:
        self.maker = maker
        self.share = share
        self.capacity = capacity
        self.tensors: dict[str, Tensor] = {}
        self.filled = 0
        self.next = 0

    def put(self, tensors: dict[str, Tensor]) -> None:
        """Add clips in place of the oldest."""
        if not self.tensors:
            self.tensors = {n: t.new_zeros((self.capacity, *t.shape[1:])) for n, t in tensors.items()}
        size = len(next(iter(tensors.values())))
        places = (self.next + torch.arange(size)) % self.capacity
        for name, tensor in tensors.items():
            self.tensors[name][places.to(tensor.device)] = tensor
        self.next = (self.next + size) % self.capacity
        self.filled = min(self.capacity, self.filled + size)


class Pool:
    """All shelves, and the networks that fill them."""

    def __init__(
        self,
        shelves: list[Shelf],
        vae: VideoVAE,
        image_encoder: ImageEncoder,
        heard: Heard,
        prompts: list[Tensor],
        generator: torch.Generator,
        batch: int,
    ) -> None:
        self.shelves = shelves
        self.vae = vae
        self.image_encoder = image_encoder
        self.heard = heard
        self.prompts = prompts
        self.generator = generator
        self.chances = torch.Generator().manual_seed(generator.initial_seed())
        self.shares = torch.tensor([shelf.share for shelf in shelves])
        self.batch = batch
        self.num_filmed = 0

    @classmethod
    def build(
        cls, data: Path, trained: Path, generator: torch.Generator, batch: int, size: int, limit_s: float
    ) -> Pool:
        """Filled with `size` clips, or as many as there is time for."""
        convolve_as_pictures()
        device = generator.device
        vae, image_encoder = new_vae(0).to(device), new_image_encoder(0).to(device)
        encoder = new_audio_encoder(0).to(device)
        load_weights(vae, trained / VAE_FILE)
        load_weights(image_encoder, data / IMAGE_FILE)
        load_audio(encoder, trained / AUDIO_FILE)
        heard = Heard.build(data, encoder, generator, VERSIONS)
        shelves = [
            Shelf(
                ClipMaker.load(data, generator, Shot(height, width, people, CHUNK_FRAMES, varied=True)),
                share,
                max(batch, int(size * share)),
            )
            for height, width, people, share in SHAPES
        ]
        pool = cls(shelves, vae, image_encoder, heard, load_prompts(data, device), generator, batch)
        began = time.monotonic()
        while len(pool) < sum(shelf.capacity for shelf in shelves):
            pool.refresh()
            if time.monotonic() - began > limit_s and all(shelf.filled for shelf in shelves):
                break
        return pool

    def __len__(self) -> int:
        return sum(shelf.filled for shelf in self.shelves)

    def refresh(self) -> None:
        """Film a batch for the shelf that is least full, or for a random one."""
        emptiest = min(self.shelves, key=lambda shelf: shelf.filled / shelf.capacity)
        shelf = emptiest if emptiest.filled < emptiest.capacity else self.shelves[self.some_shelf()]
        with torch.no_grad(), plain_forms():
            shelf.put(self.film(shelf.maker))
        self.num_filmed += self.batch

    def some_shelf(self) -> int:
        return int(torch.multinomial(self.shares, 1, generator=self.chances))

    def film(self, maker: ClipMaker) -> dict[str, Tensor]:
        """A batch of new clips, encoded."""
        people = maker.shot.num_people
        rows, starts = self.some_tracks(people)
        mouths = [self.heard.mouths(rows[:, n], starts[:, n], CHUNK_FRAMES) for n in range(people)]
        filmed = maker.film(mouths)
        latents = self.encode(filmed.frames)
        known = self.encode(worn(self.decode(latents[:, :, :NUM_KNOWN]), self.generator))
        grey = torch.zeros_like(filmed.frames[:, :, 1:])
        tensors = {
            "latents": latents,
            "known": known,
            "condition": self.encode(torch.cat([filmed.reference, grey], dim=2)),
            "image": self.see(filmed),
            "rows": rows,
            "starts": starts,
            "is_first": filmed.is_first,
            "near_mouth": F.avg_pool2d(filmed.near_mouth[:, None], 8)[:, 0],
        }
        if filmed.masks is not None:
            tensors["members"] = (filmed.masks[:, :, ::2, ::2].flatten(2) > 0).transpose(1, 2).float()
        return tensors

    def some_tracks(self, people: int) -> tuple[Tensor, Tensor]:
        """For each clip and person a track and its first frame, `(B, people)`; often one of two is silent."""
        device, count = self.generator.device, len(self.heard.openings)
        shape = (self.batch, people)
        rows = torch.randint(count - 1, shape, generator=self.generator, device=device)
        limit = self.heard.openings.shape[1] - CHUNK_FRAMES
        starts = torch.randint(limit, shape, generator=self.generator, device=device)
        at_start = torch.rand(shape, generator=self.generator, device=device) < 0.1
        starts = torch.where(at_start, 0, starts)
        if people == 2:
            silent = torch.rand(self.batch, generator=self.generator, device=device) < 0.4
            who = torch.randint(2, (self.batch,), generator=self.generator, device=device)
            is_silent = silent[:, None] & (torch.arange(2, device=device)[None] == who[:, None])
            rows = torch.where(is_silent, count - 1, rows)
        return rows, starts

    def encode(self, frames: Tensor) -> Tensor:
        """Latents, 16-bit."""
        with torch.autocast(frames.device.type, torch.bfloat16, enabled=frames.is_cuda):
            return self.vae.encode(frames).half()

    def decode(self, latents: Tensor) -> Tensor:
        with torch.autocast(latents.device.type, torch.bfloat16, enabled=latents.is_cuda):
            return self.vae.decode(latents)

    def see(self, filmed: Filmed) -> Tensor:
        """CLIP's features of the references `(B, n, dim)`, 16-bit."""
        return self.image_encoder.encode(filmed.reference[:, :, 0]).half()

    def prompt(self, reads: bool) -> Tensor:
        """A random prompt's features, padded; without reading, the empty one."""
        if not reads:
            return self.prompts[0]
        return self.prompts[int(torch.randint(len(self.prompts), (), generator=self.chances))]

    def draw(self, size: int) -> Batch:
        """Random clips of a random shape."""
        shelf = self.shelves[self.some_shelf()]
        places = torch.randint(shelf.filled, (size,), generator=self.generator, device=self.generator.device)
        found = {name: tensor[places] for name, tensor in shelf.tensors.items()}
        rows, starts = found["rows"], found["starts"]
        windows = [self.heard.windows(rows[:, n], starts[:, n], CHUNK_FRAMES) for n in range(rows.shape[1])]
        condition = found["condition"].float()
        mask = picture_mask(1, CHUNK_FRAMES).to(condition).expand(size, -1, -1, *condition.shape[3:])
        return Batch(
            latents=found["latents"].float(),
            known=found["known"].float(),
            condition=torch.cat([mask, condition], dim=1),
            image=found["image"].float(),
            windows=torch.stack(windows, dim=1),
            is_first=found["is_first"],
            near_mouth=found["near_mouth"],
            members=found.get("members"),
        )


def load_audio(encoder: AudioEncoder, path: Path) -> None:
    """Fill a wav2vec2 from its published names."""
    stored = load_file(path)
    state = encoder.state_dict()
    encoder.load_state_dict(
        {name: stored[next(iter(published_audio_names({name: state[name]})))].float() for name in state}
    )


def load_prompts(data: Path, device: torch.device) -> list[Tensor]:
    """Features of some prompts, the empty one first, each padded to the transformer's length."""
    with np.load(data / "prompts.npz") as stored:
        found = [torch.from_numpy(stored[name]).float().to(device) for name in sorted(stored.files)]
    return [F.pad(text, (0, 0, 0, DIT.text_len - len(text))) for text in found]
