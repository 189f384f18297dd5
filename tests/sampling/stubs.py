"""Stand-ins for the networks: as simple as the interface allows, and they remember what they were asked.

A latent frame is the mean of its pixels, eight times smaller. The decoder ignores the latents and paints every frame
with a number, 1000 * chunk + frame, so that a test can tell where a frame of the output comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from infinitalk_cli.sampling.conditioning import Conditioning, ReferenceSource, TensorEmbeds
from infinitalk_cli.sampling.step_cache import Residual
from infinitalk_cli.sampling.stream import Networks

SIZE = 16
"""Pixels on a side: one token."""


@dataclass
class Call:
    """One pass of the transformer."""

    latents: Tensor
    condition: Tensor
    t: float
    context: Any
    audio_tokens: Tensor
    speaker_masks: Tensor | None
    reused: bool
    empty_mask: str


class StubDiT(nn.Module):
    """Velocity by a rule of its inputs; by default nothing moves."""

    def __init__(self, velocity: Callable[[Call], Tensor] = lambda call: torch.zeros_like(call.latents)) -> None:
        super().__init__()
        self.velocity = velocity
        self.calls: list[Call] = []
        self.contexts: list[tuple[Tensor, Tensor]] = []
        self.windows: list[Tensor] = []

    def embed_time(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return t.view(1, 1), (1 + t).view(1, 1, 1)

    def embed_context(self, text: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        self.contexts.append((text, image))
        return self.contexts[-1]

    def embed_audio(self, windows: Tensor) -> Tensor:
        self.windows.append(windows)
        return windows

    def forward(
        self,
        latents: Tensor,
        condition: Tensor,
        t: Tensor,
        context: Any,
        audio_tokens: Tensor,
        *,
        speaker_masks: Tensor | None = None,
        residual: Residual | None = None,
        empty_mask: str = "zero",
    ) -> Tensor:
        reused = False
        if residual is not None:
            reused = residual.reuse
            assert (residual.value is not None) or not reused
            residual.value = torch.zeros(1)
        self.calls.append(
            Call(
                latents.clone(),
                condition,
                float(t),
                context,
                audio_tokens,
                speaker_masks,
                reused,
                empty_mask,
            )
        )
        return self.velocity(self.calls[-1])


class StubVAE(nn.Module):
    """Means in, numbers out."""

    def __init__(self) -> None:
        super().__init__()
        self.encoded: list[Tensor] = []
        self.decoded: list[Tensor] = []
        self.num_frames_decoded = 0

    def encode(self, frames: Tensor) -> Tensor:
        self.encoded.append(frames)
        small = nn.functional.avg_pool3d(frames, (1, 8, 8)).mean(1, keepdim=True)
        num_latents = (frames.shape[2] - 1) // 4 + 1
        groups = [small[:, :, :1], *(small[:, :, 4 * i - 3 : 4 * i + 1] for i in range(1, num_latents))]
        return torch.cat([group.mean(2, keepdim=True) for group in groups], dim=2).repeat(1, 16, 1, 1, 1)

    def decode_stream(self, latents: Tensor) -> Iterator[Tensor]:
        number = 1000.0 * len(self.decoded)
        self.decoded.append(latents)
        height, width = 8 * latents.shape[3], 8 * latents.shape[4]
        for index in range(latents.shape[2]):
            size = 4 if index else 1
            labels = number + torch.arange(size) + (4 * index - 3 if index else 0)
            self.num_frames_decoded += size
            yield labels.view(1, 1, -1, 1, 1).expand(1, 3, -1, height, width).clone()


class StubImageEncoder(nn.Module):
    """The mean of the picture."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def encode(self, frame: Tensor) -> Tensor:
        self.seen.append(frame)
        return frame.mean().view(1, 1, 1)


@dataclass
class Stubs:
    """The three stand-ins and the `Networks` made of them."""

    dit: StubDiT
    vae: StubVAE
    image_encoder: StubImageEncoder
    networks: Networks


def keep_color(frames: Tensor, reference: Tensor, strength: float) -> Tensor:
    """The colour correction of tests that are not about colour."""
    return frames


def make_stubs(
    velocity: Callable[[Call], Tensor] | None = None,
    match_color: Callable[[Tensor, Tensor, float], Tensor] = keep_color,
    on_stage: Callable[[nn.Module], AbstractContextManager[object]] = nullcontext,
) -> Stubs:
    """Fresh stand-ins."""
    dit = StubDiT(velocity) if velocity else StubDiT()
    vae, image_encoder = StubVAE(), StubImageEncoder()
    networks = Networks(
        cast(Any, dit), cast(Any, vae), cast(Any, image_encoder), match_color, torch.device("cpu"), on_stage
    )
    return Stubs(dit, vae, image_encoder, networks)


@dataclass(frozen=True)
class StillReference:
    """One picture for every chunk."""

    picture: Tensor

    def frame(self, chunk_start: int) -> Tensor:
        return self.picture


def numbered_rows(num_frames: int) -> TensorEmbeds:
    """Speech features whose rows hold their own number: `(num_frames, 1, 1)`."""
    return TensorEmbeds(torch.arange(float(num_frames)).view(-1, 1, 1))


def make_conditioning(*num_audio_frames: int, reference: ReferenceSource | None = None) -> Conditioning:
    """Conditioning for speakers of these lengths, with `numbered_rows` for speech."""
    return Conditioning(
        text=torch.ones(3, 2),
        null_text=torch.zeros(1, 2),
        audio=tuple(numbered_rows(count) for count in num_audio_frames),
        reference=reference or StillReference(torch.full((1, 3, 1, SIZE, SIZE), 0.5)),
        height=SIZE,
        width=SIZE,
        speaker_masks=torch.ones(3, SIZE // 8, SIZE // 8) if len(num_audio_frames) == 2 else None,
    )


def labels(frames: Tensor) -> list[int]:
    """The numbers that `StubVAE` painted on frames `(1, 3, n, H, W)`."""
    return [int(label) for label in frames[0, 0, :, 0, 0].tolist()]
