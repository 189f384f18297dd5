"""The loop over chunks: a video of any length, yielded piece by piece at a memory that does not grow.

A chunk is conditioned on pictures that it sees (the reference, or in later MultiTalk chunks the end of the previous
chunk) and starts with latent frames that it is given (the reference picture, then the end of the previous chunk). These
two are all in which the engines differ:

                            InfiniteTalk                   MultiTalk
    sees, first chunk       the reference                  the reference
    sees, later chunks      the reference of that time     the last frames of the chunk before
    given, first chunk      the reference                  nothing
    given, later chunks     the last frames, clean         the last frames, as noisy as the rest

Only those last frames are carried from chunk to chunk: decoded, with corrected colours, not rounded to 8 bits. Where
the source cuts to another scene nothing is carried, and the next chunk starts as the first one did. On demand chunks
start anew within a scene too, and frames that two chunks have in common are blended instead of taken from the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

import torch
from einops import rearrange
from torch import Tensor, nn

from infinitalk_cli.sampling.chunk_plan import ChunkPlan, plan_chunks
from infinitalk_cli.sampling.conditioning import Conditioning, ReversedTail, audio_window
from infinitalk_cli.sampling.denoise import ChunkInputs, KnownLatents, Noise, denoise, embed_passes
from infinitalk_cli.sampling.guidance import is_off, pass_kinds
from infinitalk_cli.sampling.settings import LATENT_STRIDE, InvalidInput, SamplingSettings, num_latent_frames

if TYPE_CHECKING:
    from infinitalk_cli.models.dit import DiT
    from infinitalk_cli.models.image_encoder import ImageEncoder
    from infinitalk_cli.models.vae import VideoVAE

MAX_SPEAKERS = 2
"""The weights know positions for two people."""

OnStep = Callable[[int, int, int, int], None]
"""Told of every step done: chunk, number of chunks, step, number of steps, all counted from 1."""


@dataclass(frozen=True)
class Carried:
    """All that a chunk needs of the chunks before: whoever has it can go on from there, or make the chunk once more.

    `num_done`: chunks before. `noise_state`: of the random numbers. `motion`: their last frames, `(1, 3, n, H, W)`, and
    `color_reference`, `(1, 3, 1, H, W)`, both float32 in [-1, 1] on the CPU; None before the first chunk of a
    scene.
    """

    num_done: int
    noise_state: Tensor
    motion: Tensor | None = None
    color_reference: Tensor | None = None


@dataclass(frozen=True)
class MadeChunk:
    """All frames of a chunk up to the last one that is kept, what it hands on, and the reference that it saw."""

    frames: Tensor
    carried: Carried
    reference: Tensor


Made = TypeVar("Made")
Attempt = Callable[[Callable[[], Made]], Made]
"""Calls what makes something, perhaps more than once."""


def call_once(make: Callable[[], Made]) -> Made:
    """The attempt that does not try again."""
    return make()


@dataclass(frozen=True)
class Networks:
    """What generation calls.

    Args:
        match_color: gives frames `(1, 3, T, H, W)` the colours of a picture `(1, 3, 1, H, W)` with a strength.
        device: where the networks compute.
        on_stage: entered around every use of a network; brings it to the device and may take it away again.
        attempt: calls what makes a chunk, and may call it again: it gives the same each time.
        attempt_vae: the same for what encodes or decodes, each time with the VAE on its stage.
    """

    dit: DiT
    vae: VideoVAE
    image_encoder: ImageEncoder
    match_color: Callable[[Tensor, Tensor, float], Tensor]
    device: torch.device
    on_stage: Callable[[nn.Module], AbstractContextManager[object]] = nullcontext
    attempt: Attempt[MadeChunk] = call_once
    attempt_vae: Attempt[Tensor] = call_once


@dataclass(frozen=True)
class Chunk:
    """A finished piece of the video.

    `start`: number of its first frame in the video. `frames`: `(1, 3, n, H, W)` float32 in [-1, 1] on the CPU, only
    those that the chunks before do not have and that stay in the video. `carried`: what the next chunk needs.
    `reference`: the picture of its time, `(1, 3, 1, H, W)`. `continues`: whether the frames go on where those of the
    chunk before ended, and are not the first of a scene.
    """

    index: int
    start: int
    frames: Tensor
    carried: Carried
    reference: Tensor
    continues: bool


@dataclass(frozen=True)
class View:
    """The pictures that a chunk sees, as the networks see them.

    `pictures`: `(1, 3, k, H, W)`, grey to the end of the chunk. `image`: features of the last one, `(1, 257, width)`.
    `latents`: `(1, 16, T, h, w)` of all. `mask`: `(1, 4, T, h, w)`, 1 where the frames are pictures.
    """

    pictures: Tensor
    image: Tensor
    latents: Tensor
    mask: Tensor


def generate_chunks(
    networks: Networks,
    conditioning: Conditioning,
    settings: SamplingSettings,
    *,
    on_step: OnStep | None = None,
    resume: Carried | None = None,
) -> Iterator[Chunk]:
    """Generate a video chunk by chunk; each is computed when it is asked for.

    Args: resume: go on behind the chunk that carried this; its settings must have been the same.
    Raises: InvalidInput: at once, if the conditioning does not go with the settings.
    """
    check_conditioning(conditioning, settings)
    plan = plan_chunks([embeds.num_frames for embeds in conditioning.audio], settings, conditioning.cuts)
    sampler = ChunkSampler(networks, conditioning, settings, plan, on_step or _ignore_step)
    carried = resume or Carried(0, Noise(settings.seed, networks.device).state)
    return _generate(sampler, carried)


def check_conditioning(conditioning: Conditioning, settings: SamplingSettings) -> None:
    """Raises: InvalidInput: if something is missing or there are too many speakers."""
    num_speakers = len(conditioning.audio)
    if num_speakers > MAX_SPEAKERS:
        raise InvalidInput(f"{num_speakers} speakers, but the weights know {MAX_SPEAKERS}")
    if num_speakers == MAX_SPEAKERS and conditioning.speaker_masks is None:
        raise InvalidInput("two speakers, but no masks that say where they are")
    if conditioning.null_text is None and not is_off(settings.text_guidance_scale):
        raise InvalidInput(f"text guidance {settings.text_guidance_scale} needs a negative prompt, be it empty")


def _generate(sampler: ChunkSampler, carried: Carried) -> Iterator[Chunk]:
    for chunk in sampler.plan[carried.num_done :]:
        made = sampler.networks.attempt(partial(sampler.sample, chunk, carried))
        continues, carried = carried.motion is not None, made.carried
        if chunk.keep:
            kept = made.frames[:, :, chunk.keep.start : chunk.keep.stop]
            yield Chunk(chunk.index, chunk.start + chunk.keep.start, kept, carried, made.reference, continues)
            del kept
        del made  # the next chunk needs no more than what is carried


class ChunkSampler:
    """Makes single chunks of a video. A picture that stays the same is encoded once."""

    def __init__(
        self,
        networks: Networks,
        conditioning: Conditioning,
        settings: SamplingSettings,
        plan: Sequence[ChunkPlan],
        on_step: OnStep,
    ) -> None:
        self.networks, self.conditioning, self.settings, self.plan = networks, conditioning, settings, plan
        self._on_step = on_step
        self._view: View | None = None

    @torch.no_grad()
    def sample(self, chunk: ChunkPlan, carried: Carried) -> MadeChunk:
        """Make a chunk.

        The same arguments give the same frames, so a chunk that failed on the way can be made again.
        """
        # 1. What the chunk sees.
        settings = self.settings
        noise = Noise(settings.seed, self.networks.device, carried.noise_state)
        reference = self.conditioning.reference.frame(chunk.start)
        motion = None if chunk.anew else carried.motion
        view = self._view_of(motion if motion is not None and settings.engine == "multitalk" else reference)

        # 2. From noise to latents.
        start = noise.draw(view.latents.shape)
        known = known_latents(self.networks, settings, view, motion, noise)
        windows = speech_windows(self.conditioning, chunk, settings.chunk_frames)
        with self.networks.on_stage(self.networks.dit):
            inputs = gather_inputs(self.networks.dit, self.conditioning, settings, view, known, windows)
            on_step = partial(self._on_step, chunk.index + 1, len(self.plan))
            latents = denoise(self.networks.dit, start, inputs, settings, on_step)

        # 3. From latents to frames. Nobody needs what the last chunk of a scene has beyond the frames to keep.
        color_reference = carried.color_reference
        if color_reference is None or settings.color_reference == "chunk":
            color_reference = reference
        num_frames = chunk.keep.stop if chunk.ends_scene else settings.chunk_frames
        frames = decode_frames(self.networks, latents, color_reference, settings.color_strength, num_frames)
        handed_on = Carried(carried.num_done + 1, noise.state)
        if not chunk.ends_scene:
            last = frames[:, :, -settings.motion_frames :].clone()
            handed_on = replace(handed_on, motion=last, color_reference=color_reference)
        if settings.cross_fade and carried.motion is not None:
            blend_(frames, carried.motion)
        return MadeChunk(frames, handed_on, reference)

    def _view_of(self, pictures: Tensor) -> View:
        if self._view is None or self._view.pictures is not pictures:
            self._view = encode_view(self.networks, pictures, self.settings.chunk_frames)
        return self._view


def encode_view(networks: Networks, pictures: Tensor, num_frames: int) -> View:
    """Encode pictures `(1, 3, k, H, W)` in [-1, 1] as the first of `num_frames` frames; the others are grey."""
    shown = pictures.to(networks.device)
    num_pictures, height, width = shown.shape[2:]
    frames = shown.new_zeros(1, 3, num_frames, height, width)
    frames[:, :, :num_pictures] = shown
    with networks.on_stage(networks.image_encoder):
        image = networks.image_encoder.encode(shown[:, :, -1])
    latents = encode_frames(networks, frames)
    mask = picture_mask(num_pictures, num_frames).to(latents)
    return View(pictures, image, latents, mask.expand(-1, -1, -1, *latents.shape[3:]))


def picture_mask(num_pictures: int, num_frames: int) -> Tensor:
    """Ones for the first `num_pictures` frames, four frames to a latent frame: `(1, 4, T, 1, 1)`.

    The first frame has a latent frame of its own and fills all four channels of it.
    """
    is_picture = (torch.arange(num_frames) < num_pictures).float()
    repeated = torch.cat([is_picture[:1].repeat(LATENT_STRIDE - 1), is_picture])
    return rearrange(repeated, "(t four) -> 1 four t 1 1", four=LATENT_STRIDE)


def known_latents(
    networks: Networks, settings: SamplingSettings, view: View, motion: Tensor | None, noise: Noise
) -> KnownLatents:
    """The latent frames that a chunk starts with. `motion`: last frames of the chunk before, None for the first one."""
    num_motion = num_latent_frames(settings.motion_frames)
    if settings.engine == "multitalk":
        if motion is None:
            return KnownLatents(view.latents[:, :, :0], noise=None)
        return KnownLatents(view.latents[:, :, :num_motion], noise, is_noised=True)
    if motion is None:
        return KnownLatents(view.latents[:, :, :1], noise=None)
    return KnownLatents(encode_frames(networks, motion.to(networks.device)), noise)


def speech_windows(conditioning: Conditioning, chunk: ChunkPlan, num_frames: int) -> Tensor:
    """What a chunk hears: `(S, num_frames, 5, layers, width)`. Raises: InvalidInput: if it is not finite."""
    speakers = zip(conditioning.audio, chunk.tails, strict=True)
    windows = [audio_window(ReversedTail(embeds, tail), chunk.start, num_frames) for embeds, tail in speakers]
    for number, window in enumerate(windows, start=1):
        if not window.isfinite().all():
            raise InvalidInput(f"the speech of speaker {number} gives no usable features from frame {chunk.start} on")
    return torch.stack(windows)


def gather_inputs(
    dit: DiT,
    conditioning: Conditioning,
    settings: SamplingSettings,
    view: View,
    known: KnownLatents,
    windows: Tensor,
) -> ChunkInputs:
    """Everything that the transformer is told about a chunk, embedded where it does not depend on the step."""
    kinds = pass_kinds(settings.text_guidance_scale, settings.audio_guidance_scale)
    return ChunkInputs(
        condition=torch.cat([view.mask, view.latents], dim=1),
        known=known,
        passes=embed_passes(dit, conditioning, view.image, windows, kinds),
        empty_mask="nan" if settings.compatibility.nan_for_empty_mask else "zero",
    )


def encode_frames(networks: Networks, frames: Tensor) -> Tensor:
    """Encode frames `(1, 3, T, H, W)` on the device."""

    def encode() -> Tensor:
        with networks.on_stage(networks.vae):
            return networks.vae.encode(frames)

    return networks.attempt_vae(encode)


def decode_frames(
    networks: Networks, latents: Tensor, color_reference: Tensor, color_strength: float, num_frames: int
) -> Tensor:
    """Decode the first `num_frames` frames and correct their colours: `(1, 3, num_frames, H, W)` on the CPU.

    They leave the device a few at a time, so that it never holds more of them. A second attempt goes on behind those
    that have left.
    """
    color_reference = color_reference.to(networks.device)
    latents = latents[:, :, : -(-(num_frames - 1) // LATENT_STRIDE) + 1]
    pieces: list[Tensor] = []

    def decode() -> Tensor:
        with networks.on_stage(networks.vae):
            for frames in islice(networks.vae.decode_stream(latents), len(pieces), None):
                if color_strength > 0:
                    frames = networks.match_color(frames, color_reference, color_strength)
                pieces.append(frames.cpu())
        return torch.cat(pieces, dim=2)[:, :, :num_frames]

    return networks.attempt_vae(decode)


def blend_(frames: Tensor, before: Tensor) -> None:
    """Fade the first frames `(1, 3, n, H, W)` in over those that the chunk before has of the same time, in place.

    The very first counts nothing: it comes from a latent of its own, without a past, and differs most.
    """
    num_common = before.shape[2]
    weights = torch.arange(num_common) / num_common
    common = frames[:, :, :num_common]
    frames[:, :, :num_common] = torch.lerp(before, common, weights.view(-1, 1, 1))


def _ignore_step(chunk: int, num_chunks: int, step: int, num_steps: int) -> None:
    """The listener of a run that nobody watches."""
