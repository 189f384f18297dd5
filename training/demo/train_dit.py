"""Trains the transformer: noise to moving people whose mouths follow the speech.

`python -m training.demo.train_dit --data DIR --out DIR --minutes 7.5` reads the VAE and the audio encoder from the
output folder and writes `dit.safetensors` there, about every two minutes and at the end.

Clips are filmed, encoded and kept on the device (`pool.py`); some of the time goes into fresh ones. A step is flow
matching as the sampler has it: latents between clean and noise at a time drawn with the schedule's shift, known frames
clean, the velocity `noise - clean` as the target. What is about a mouth counts more. Speech or prompt are left out of
some batches, so that guidance has something to compare with. Two speakers need the tokens to know their own region
(`batched.routing_loss`).

Several GPUs train one transformer together, one process each (`pace.Crew`), on clips of their own. The blocks are not
compiled then: that takes half the time of a step, but two minutes of each process before the first one.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from infinitalk_cli.models.dit import DiT
from infinitalk_cli.models.fused import plain_forms
from training.demo.batched import BlockPass, Clips, predict, routing_loss, run_block
from training.demo.networks import DIT_FILE, SHIFT, load_weights, new_dit, save_half
from training.demo.pace import Averaged, Crew, Log, Pace, optimizer_for, pick_device, take_step
from training.demo.pool import FILMED_AT_ONCE, Batch, Pool

PEAK = 1.2e-3
MOUTH_WEIGHT = 8.0
ROUTING_WEIGHT = 0.1
NO_SPEECH_SHARE, NO_TEXT_SHARE = 0.06, 0.15
KNOWN_NOISE = 0.08
"""Largest deviation of the noise on motion latents: in the loop they come from generated frames."""
FILL_SHARE, FRESH_SHARE = 0.08, 0.2
"""Of the time: for the first clips at most, and for fresh ones."""
LOOK_EVERY = 10
"""Steps after which a crew agrees on whether it films: one that waits for the others gains nothing."""
SAVE_S = 60.0


@dataclass(frozen=True)
class Noised:
    """What the network sees of a batch, what it must say, and how much each latent counts."""

    clips: Clips
    target: Tensor
    weight: Tensor


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the demo's transformer.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=7.5)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--pool", type=int, default=12_000, help="clips kept on the device")
    parser.add_argument("--film", type=int, default=FILMED_AT_ONCE, help="clips filmed at once")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="go on from the weights in the output folder")
    parser.add_argument("--span", type=float, nargs=2, default=(0.0, 1.0), help="part of the learning rate's course")
    wish = parser.parse_args()
    with plain_forms():  # the fused ones have no gradients
        device = pick_device(wish.device)
        crew = Crew.join(device)
        train(wish, device, Log(wish.out / "log.jsonl", "dit", crew))
        crew.leave()


def train(wish: argparse.Namespace, device: torch.device, log: Log) -> None:
    """Until the time is up."""
    crew = log.crew
    pace = Pace(wish.minutes, wish.steps, tuple(wish.span), crew, device)
    log.write(step=0, crew=crew.size)
    generator = torch.Generator(device).manual_seed(crew.seed(wish.seed + 1000 * wish.resume))  # not the clips before
    pool = Pool.build(wish.data, wish.out, generator, wish.film, wish.pool, limit_s=FILL_SHARE * 60 * wish.minutes)
    log.write(step=0, seconds=pace.elapsed_s, pool=len(pool))
    dit = new_dit(wish.seed).to(device)
    if wish.resume:
        load_weights(dit, wish.out / DIT_FILE)
    optimizer, average = optimizer_for(dit, device, PEAK), Averaged(dit, 0.9995)
    run = torch.compile(run_block, dynamic=True) if device.type == "cuda" and crew.size == 1 else run_block
    fresh_s, began, saved = 0.0, time.monotonic(), time.monotonic()
    means: dict[str, float] = {}
    for step in pace:
        start = time.monotonic()
        if step % LOOK_EVERY == 0 and crew.average(FRESH_SHARE * (start - began) - fresh_s, device) > 0:
            pool.refresh()
            fresh_s += time.monotonic() - start
        loss, figures = loss_of(dit, run, pool, pool.draw(wish.batch))
        take_step(optimizer, dit, loss, pace.learning_rate(PEAK), crew=crew)
        average.update(step)
        if step % 50 == 0 or step < 3:  # reading a figure waits for the device
            for name, value in figures.items():
                means[name] = value.item() if name not in means else 0.8 * means[name] + 0.2 * value.item()
        if step % 250 == 0 or step < 3:
            log.write(step=step, seconds=pace.elapsed_s, fresh_s=fresh_s, filmed=pool.num_filmed, **means)
        if crew.leads and time.monotonic() - saved > SAVE_S:
            save_half(average.state(), wish.out / DIT_FILE)
            saved = time.monotonic()
    if crew.leads:
        save_half(average.state(), wish.out / DIT_FILE)
    log.write(step=pace.step, seconds=pace.elapsed_s, filmed=pool.num_filmed, **means)


def loss_of(dit: DiT, run: BlockPass, pool: Pool, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of one batch, and its parts, still on the device."""
    hears = bool(torch.rand((), generator=pool.chances) >= NO_SPEECH_SHARE)
    reads = bool(torch.rand((), generator=pool.chances) >= NO_TEXT_SHARE)
    noised = noise_batch(batch, pool.generator, pool.prompt(reads), hears)
    device = noised.target.device
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        velocity, maps = predict(dit, noised.clips, run)
    error = (velocity - noised.target).square()
    loss = (error * noised.weight).sum() / (noised.weight.sum() * error.shape[1])
    figures = {f"loss_{batch.num_people}": loss.detach()}
    if noised.clips.members is not None:
        routing = routing_loss(maps, noised.clips.members, noised.clips.latents.shape[2])
        figures["routing"] = routing.detach()
        loss = loss + ROUTING_WEIGHT * routing
    return loss, figures


def noise_batch(batch: Batch, generator: torch.Generator, text: Tensor, hears: bool) -> Noised:
    """Latents on their way from clean to noise. Args: hears: else silence of one speaker, as in guidance."""
    clean = batch.latents
    size, _, frames = clean.shape[:3]
    t = shifted(torch.rand(size, generator=generator, device=clean.device))
    noise = torch.randn(clean.shape, generator=generator, device=clean.device)
    place = torch.arange(frames, device=clean.device)[None]
    num_known = torch.where(batch.is_first, 1, batch.known.shape[2])[:, None]
    is_known = (place < num_known)[:, None, :, None, None]
    level = KNOWN_NOISE * torch.rand(size, 1, 1, 1, 1, generator=generator, device=clean.device)
    spoilt = batch.known + level * torch.randn(batch.known.shape, generator=generator, device=clean.device)
    given = torch.where(batch.is_first[:, None, None, None, None], clean[:, :, : spoilt.shape[2]], spoilt)
    given = F.pad(given, (0, 0, 0, 0, 0, frames - given.shape[2]))
    part = t[:, None, None, None, None]
    seen = torch.where(is_known, given, (1 - part) * clean + part * noise)
    weight = (1 + MOUTH_WEIGHT * batch.near_mouth)[:, None, None] * (~is_known)
    windows = batch.windows if hears else torch.zeros_like(batch.windows[:, :1])
    members = batch.members if hears else None
    clips = Clips(seen, batch.condition, 1000 * t, text, batch.image, windows, members)
    return Noised(clips, noise - clean, weight)


def shifted(uniform: Tensor) -> Tensor:
    """Times as the schedule spaces them."""
    return SHIFT * uniform / (1 + (SHIFT - 1) * uniform)


if __name__ == "__main__":
    main()
