"""One chunk from noise to latents: the loop over the steps, and what happens within one.

What does not depend on the step (text, picture and speech as the network reads them) is embedded once per chunk. Random
numbers are drawn in the order of the original programs, so the same seed gives the same video.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from infinitalk_cli.sampling.conditioning import Conditioning
from infinitalk_cli.sampling.guidance import Guidance, PassKind
from infinitalk_cli.sampling.schedule import TIME_SCALE, get_timesteps
from infinitalk_cli.sampling.settings import SamplingSettings
from infinitalk_cli.sampling.step_cache import COEFFICIENTS, Residual, StepCache, steps_that_reuse

if TYPE_CHECKING:
    from infinitalk_cli.models.dit import DiT
    from infinitalk_cli.models.dit_layers import Context

READ_PROMPT: tuple[PassKind, ...] = ("cond", "drop_audio")
HEAR_SPEECH: tuple[PassKind, ...] = ("cond", "drop_text")


class Noise:
    """Normal numbers from a seed, or from a `state` on. Drawn on the CPU: a seed means the same on every device."""

    def __init__(self, seed: int, device: torch.device, state: Tensor | None = None) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        if state is not None:
            self._generator.set_state(state)
        self._device = device

    @property
    def state(self) -> Tensor:
        """Where the row of numbers stands: bytes, for a further `Noise` that goes on from here."""
        return self._generator.get_state()

    def draw(self, shape: Sequence[int]) -> Tensor:
        """Float32 numbers of this shape, on the device."""
        return torch.randn(shape, generator=self._generator, dtype=torch.float32).to(self._device)


@dataclass(frozen=True)
class KnownLatents:
    """The first latent frames of a chunk, which are given and not sampled.

    Args:
        clean: `(1, C, n, H, W)`; n may be 0.
        noise: source of `n` frames of noise before the first step and after every step; None draws nothing.
        is_noised: whether the network sees them as noisy as the other frames (MultiTalk) or clean (InfiniteTalk, which
            draws the noise and throws it away).
    """

    clean: Tensor
    noise: Noise | None
    is_noised: bool = False

    def at(self, t: float) -> Tensor:
        """The known frames as the network is to see them at time `t`; to be called once per time, in order."""
        drawn = self.noise.draw(self.clean.shape) if self.noise else None
        if drawn is None or not self.is_noised:
            return self.clean
        return (1 - t) * self.clean + t * drawn


@dataclass(frozen=True)
class Pass:
    """What tells one pass of the network from the others of its step."""

    kind: PassKind
    context: Context
    audio_tokens: Tensor
    speaker_masks: Tensor | None


@dataclass(frozen=True)
class ChunkInputs:
    """All that the network is told about a chunk. `condition`: `(1, 20, T, H, W)`, 4 mask then 16 latent channels."""

    condition: Tensor
    known: KnownLatents
    passes: tuple[Pass, ...]
    empty_mask: Literal["zero", "nan"] = "zero"


def denoise(
    dit: DiT, noise: Tensor, inputs: ChunkInputs, settings: SamplingSettings, on_step: Callable[[int, int], None]
) -> Tensor:
    """Carry `noise` `(1, C, T, H, W)` along the guided velocity to clean latents of the same shape.

    Args: on_step: told of the steps done and of all.
    """
    timesteps = get_timesteps(settings.num_steps, settings.shift)
    guidance = Guidance(settings.text_guidance_scale, settings.audio_guidance_scale, settings.apg)
    cache = StepCache(plan_reuse(dit, timesteps, settings))
    num_known = inputs.known.clean.shape[2]

    latents = noise
    for step, (t, t_next) in enumerate(pairwise(timesteps)):
        latents[:, :, :num_known] = inputs.known.at(t)
        residuals: dict[PassKind, Residual | None] = {kind: cache.residual(step, kind) for kind in guidance.kinds}
        velocity = guided_velocity(dit, latents, t, inputs, guidance, residuals)
        latents = latents + (t_next - t) * velocity
        on_step(step + 1, settings.num_steps)
    latents[:, :, :num_known] = inputs.known.at(timesteps[-1])
    return latents


def guided_velocity(
    dit: DiT,
    latents: Tensor,
    t: float,
    inputs: ChunkInputs,
    guidance: Guidance,
    residuals: Mapping[PassKind, Residual | None],
) -> Tensor:
    """The velocity at time `t` after guidance: one call of the network per pass."""
    time = torch.tensor(t * TIME_SCALE, dtype=torch.float32, device=latents.device)
    velocities: dict[PassKind, Tensor] = {
        each.kind: dit(
            latents,
            inputs.condition,
            time,
            each.context,
            each.audio_tokens,
            speaker_masks=each.speaker_masks,
            residual=residuals[each.kind],
            empty_mask=inputs.empty_mask,
        )
        for each in inputs.passes
    }
    return guidance.combine(velocities)


def embed_passes(
    dit: DiT, conditioning: Conditioning, image: Tensor, windows: Tensor, kinds: Sequence[PassKind]
) -> tuple[Pass, ...]:
    """Embed what the passes of a chunk read and hear, each variant once.

    Without speech a pass hears one speaker whose features are zero, however many speakers there are.
    Args: image: image features. windows: of every speaker, `(S, F, 5, layers, width)`.
    """
    contexts = {
        reads_prompt: dit.embed_context(_text(conditioning, reads_prompt), image)
        for reads_prompt in {kind in READ_PROMPT for kind in kinds}
    }
    tokens = {
        hears_speech: dit.embed_audio(windows if hears_speech else torch.zeros_like(windows[:1]))
        for hears_speech in {kind in HEAR_SPEECH for kind in kinds}
    }
    return tuple(
        Pass(
            kind=kind,
            context=contexts[kind in READ_PROMPT],
            audio_tokens=tokens[kind in HEAR_SPEECH],
            speaker_masks=conditioning.speaker_masks if kind in HEAR_SPEECH else None,
        )
        for kind in kinds
    )


def plan_reuse(dit: DiT, timesteps: Sequence[float], settings: SamplingSettings) -> list[bool]:
    """Per step, whether the blocks are skipped; no step if the step cache is off."""
    if settings.step_cache_threshold is None:
        return [False] * settings.num_steps
    times = torch.tensor(timesteps[:-1]) * TIME_SCALE
    embeddings = [dit.embed_time(t)[1] for t in times]
    return steps_that_reuse(embeddings, settings.step_cache_threshold, COEFFICIENTS[settings.bucket_set])


def _text(conditioning: Conditioning, reads_prompt: bool) -> Tensor:
    if reads_prompt:
        return conditioning.text
    assert conditioning.null_text is not None, "text guidance needs the negative prompt's features"
    return conditioning.null_text
