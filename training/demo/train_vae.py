"""Trains the video VAE on clips of the moving people.

`python -m training.demo.train_vae --data DIR --out DIR --minutes 7.5` writes `vae.safetensors`. The loss is the
absolute difference of pixels, of their gradients and of their change from frame to frame, mouths counting more, and a
light pull of the latents to unit normal. Without the change counting by itself, what stands still flickers, most of all
where one latent follows another. The decoder sees the latents with noise, as the transformer makes none exactly.

Two steps of three see close-ups of faces, small and large, where the detail is. At the end the latents' mean and spread
are measured and folded into the two 1x1x1 convolutions around them, so that the normalised latents of our people have
mean 0 and deviation 1, as the transformer likes them.

Several GPUs train one VAE together, one process each (`pace.Crew`).
"""

from __future__ import annotations

import argparse
import copy
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor
from torch.nn import functional

from infinitalk_cli.models.fused import plain_forms
from infinitalk_cli.models.vae import VideoVAE, latent_statistics
from infinitalk_cli.models.vae_layers import HISTORY, CausalConv3d, TemporalCache
from training.demo.clips import ClipMaker, Shot
from training.demo.networks import VAE_FILE, load_weights, new_vae, save_half
from training.demo.pace import Averaged, Crew, Log, Pace, optimizer_for, pick_device, take_step

PEAK = 1.2e-3
MOUTH_WEIGHT = 8.0
GRADIENT_WEIGHT = 0.5
CHANGE_WEIGHT = 2.0
PULL = 5e-4
MOST_NOISE = 0.12
"""Largest deviation of the noise on latents beyond the posterior's own; each clip has its own."""
FIRST_WEIGHT = 8.0
"""Of the first frame, which has a latent for itself and no past."""
SHAPES = ((128, 128, 1), (96, 160, 2), (144, 112, 1))
CLOSE_UP = (64, 64, 1)
SAVE_S = 150.0


@dataclass(frozen=True)
class Kind:
    """What a step sees. share: of the batch, so that all steps take about the same time. sides: see `Shot`.

    The decoder looks back over 70 frames: trained on short clips alone it falls apart behind them.
    """

    shape: tuple[int, int, int]
    num_frames: int = 33
    share: float = 1.0
    sides: tuple[float, float] | None = None


WHOLE, PAIR, UPRIGHT = (Kind(shape) for shape in SHAPES)
LONG = Kind(SHAPES[0], num_frames=81, share=0.4)
SMALL, LARGE = Kind(CLOSE_UP, share=4.0, sides=(58, 112)), Kind(CLOSE_UP, share=4.0, sides=(105, 175))
BRIEF = Kind(CLOSE_UP, num_frames=9, share=14.0, sides=(58, 112))
"""As many frames as a chunk hands on."""
ROUND = (LONG, SMALL, LARGE, PAIR, SMALL, BRIEF, WHOLE, SMALL, LARGE, UPRIGHT, SMALL, BRIEF, PAIR, SMALL, LARGE)
"""The kinds of so many steps in a row."""


@dataclass(frozen=True)
class Coded:
    """A clip through the VAE: frames `(B, 3, T, H, W)`, normalised latents, their log-variance."""

    frames: Tensor
    latents: Tensor
    log_variance: Tensor


def through(vae: VideoVAE, frames: Tensor, generator: torch.Generator | None) -> Coded:
    """Encode and decode with gradients; with a generator, noise is added to the latents: the posterior's, and more.

    All frames but the first, and all latents but the first, go as one group: the same sums in far fewer steps.
    """
    center, spread = latent_statistics(frames.device)
    means: list[Tensor] = []
    log_variances: list[Tensor] = []
    cache = TemporalCache()
    for group in frames.split([1, frames.shape[2] - 1], dim=2):
        mean, log_variance = vae.conv1(vae.encoder(group, cache)).float().chunk(2, dim=1)
        means.append((mean - center) / spread)
        log_variances.append(log_variance.clamp(-12, 4))
        cache.is_first = False
    latents, log_variance = torch.cat(means, dim=2), torch.cat(log_variances, dim=2)
    noisy = latents
    if generator is not None:
        noise = torch.randn(latents.shape, generator=generator, device=latents.device)
        more = MOST_NOISE * torch.rand((len(latents), 1, 1, 1, 1), generator=generator, device=latents.device)
        noisy = latents + (log_variance.exp() + more.square()).sqrt() * noise
    cache = TemporalCache()
    pieces: list[Tensor] = []
    for group in (noisy * spread + center).split([1, noisy.shape[2] - 1], dim=2):
        pieces.append(vae.decoder(vae.conv2(group), cache).float())
        cache.is_first = False
    return Coded(torch.cat(pieces, dim=2), latents, log_variance)


def convolve_as_pictures() -> None:
    """From now on causal convolutions run as 2-D ones, channels fastest in memory, on every device.

    Each frame's channels hold those of its neighbours in time. With few channels GPUs too are faster so.
    """

    def forward(self: CausalConv3d, input: Tensor, cache: TemporalCache | None = None) -> Tensor:
        if input.is_cuda and torch.is_autocast_enabled("cuda"):
            input = input.to(torch.get_autocast_dtype("cuda"))  # before it is remembered and copied
        taps, rows, columns = self.kernel_size
        frames = rearrange(input, "b c t h w -> b t h w c")
        if taps > 1:
            frames = with_past(self, frames, cache or TemporalCache())
        seen = torch.cat([frames[:, k : k + input.shape[2]] for k in range(taps)], dim=-1)
        weight = rearrange(self.weight, "o c t h w -> o (t c) h w").contiguous(memory_format=torch.channels_last)
        flat = rearrange(seen, "b t h w c -> (b t) c h w")
        made = functional.conv2d(flat, weight, self.bias, padding=(rows // 2, columns // 2))
        return rearrange(made, "(b t) c h w -> b c t h w", b=input.shape[0])

    CausalConv3d.forward = forward


def with_past(layer: CausalConv3d, frames: Tensor, cache: TemporalCache) -> Tensor:
    """Put the two frames before `(B, T, H, W, C)`, zeros where the clip starts, and remember its last two."""
    past = cache.frames.get(layer)
    if past is None:
        past = frames.new_zeros(frames.shape[0], HISTORY, *frames.shape[2:])
    whole = torch.cat([past, frames], dim=1)
    cache.frames[layer] = whole[:, -HISTORY:]
    return whole


def loss_of(coded: Coded, frames: Tensor, near_mouth: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss and its parts, still on the device. near_mouth: `(B, H, W)`."""
    weight = (1 + MOUTH_WEIGHT * near_mouth)[:, None, None]
    weight = weight / weight.mean()
    difference = coded.frames - frames
    away = (difference.abs() * weight).mean(dim=(0, 1, 3, 4))
    pixels = away.mean() + FIRST_WEIGHT * away[0] / len(away)
    rows, columns = difference.diff(dim=3).abs() * weight[..., 1:, :], difference.diff(dim=4).abs() * weight[..., 1:]
    edges = (rows.mean() + columns.mean()) / 2
    change = (difference.diff(dim=2).abs() * weight).mean()
    spread = coded.log_variance.exp()
    pull = 0.5 * (coded.latents.square() + spread - 1 - coded.log_variance).mean()
    loss = pixels + GRADIENT_WEIGHT * edges + CHANGE_WEIGHT * change + PULL * pull
    parts = {"pixels": pixels, "first": away[0], "edges": edges, "change": change, "pull": pull}
    return loss, {name: part.detach() for name, part in parts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the demo's video VAE.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=7.5)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="go on from the weights in the output folder")
    parser.add_argument("--span", type=float, nargs=2, default=(0.0, 1.0), help="part of the learning rate's course")
    wish = parser.parse_args()
    wish.out.mkdir(parents=True, exist_ok=True)
    with plain_forms():
        device = pick_device(wish.device, tries_kernels=True)
        crew = Crew.join(device)
        train(wish, device, Log(wish.out / "log.jsonl", "vae", crew))


def train(wish: argparse.Namespace, device: torch.device, log: Log) -> None:
    """Until the time is up; then the latents are measured and the VAE is stored."""
    convolve_as_pictures()
    crew = log.crew
    generator = torch.Generator(device).manual_seed(crew.seed(wish.seed + 1000 * wish.resume))  # not the clips before
    makers = {kind: clips_of(wish, generator, kind) for kind in ROUND}
    vae = new_vae(wish.seed).to(device)
    if wish.resume:
        load_weights(vae, wish.out / VAE_FILE)
    optimizer, average = optimizer_for(vae, device, PEAK), Averaged(vae, 0.998)
    pace = Pace(wish.minutes, wish.steps, tuple(wish.span), crew, device)
    saved = time.monotonic()
    for step in pace:
        kind = ROUND[step % len(ROUND)]
        with torch.no_grad():
            frames, near_mouth = makers[kind].pictures(max(1, round(kind.share * wish.batch)))
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            coded = through(vae, frames, generator)
        loss, parts = loss_of(coded, frames, near_mouth)
        take_step(optimizer, vae, loss, pace.learning_rate(PEAK), crew=crew)
        average.update(step)
        if step % 101 == 0 or step < 3:
            log.write(step=step, seconds=pace.elapsed_s, **{name: part.item() for name, part in parts.items()})
        if crew.leads and time.monotonic() - saved > SAVE_S:
            store(vae, average, wish)
            saved = time.monotonic()
    if crew.leads:
        log.write(step=pace.step, seconds=pace.elapsed_s, **held_out(store(vae, average, wish), wish))


def store(vae: VideoVAE, average: Averaged, wish: argparse.Namespace) -> VideoVAE:
    """Write the averaged weights, their latents normalised, to the output folder."""
    stored = copy.deepcopy(vae)
    stored.load_state_dict({**vae.state_dict(), **average.state()})
    generator = torch.Generator(vae.conv1.weight.device).manual_seed(wish.seed)
    makers = [clips_of(wish, generator, kind) for kind in (WHOLE, PAIR, UPRIGHT)]
    fold_statistics(stored, [maker.pictures(4)[0] for maker in makers for _ in range(6)])
    save_half(stored.state_dict(), wish.out / VAE_FILE)
    return stored


def clips_of(wish: argparse.Namespace, generator: torch.Generator, kind: Kind) -> ClipMaker:
    """Clips of the training people."""
    return ClipMaker.load(wish.data, generator, Shot(*kind.shape, kind.num_frames, kind.sides))


@torch.no_grad()
def fold_statistics(vae: VideoVAE, clips: list[Tensor]) -> None:
    """Give the normalised latents mean 0 and deviation 1 per channel, and undo that before the decoder."""
    latents = torch.cat([vae.encode(frames).transpose(0, 1).flatten(1) for frames in clips], dim=1)
    shift, scale = latents.mean(dim=1), latents.std(dim=1).clamp_min(1e-3)
    center, spread = (part.flatten() for part in latent_statistics(latents.device))
    size = len(center)
    moved = center + shift * spread  # the mean of what the first convolution gave
    vae.conv1.weight[:size] /= scale.view(-1, 1, 1, 1, 1)
    assert vae.conv1.bias is not None
    assert vae.conv2.bias is not None
    vae.conv1.bias[:size] = (vae.conv1.bias[:size] - moved) / scale + center
    undone = moved - scale * center
    vae.conv2.bias += vae.conv2.weight.flatten(1) @ undone
    vae.conv2.weight *= scale.view(1, -1, 1, 1, 1)


@torch.no_grad()
def held_out(vae: VideoVAE, wish: argparse.Namespace) -> dict[str, float]:
    """How well clips of people never seen come back, in dB, everywhere and about the mouth; all float32."""
    device = vae.conv1.weight.device
    generator = torch.Generator(device).manual_seed(wish.seed + 1)
    figures: dict[str, float] = {}
    pictures: list[Tensor] = []
    for shape, length in [*((shape, 33) for shape in SHAPES), (SHAPES[0], 121)]:
        maker = ClipMaker.load(wish.data, generator, Shot(*shape, length), held_out=True)
        frames, near_mouth = maker.pictures(min(8, 2 * wish.batch))
        latents = vae.encode(frames)
        decoded = vae.decode(latents)
        error = (decoded - frames).square() / 4
        weight = near_mouth[:, None, None].expand_as(error)
        name = f"{shape[0]}x{shape[1]}x{length}"
        figures[f"psnr_{name}"] = float(-10 * error.mean().log10())
        figures[f"mouth_psnr_{name}"] = float(-10 * ((error * weight).sum() / weight.sum()).log10())
        figures[f"latent_std_{name}"] = float(latents.std())
        pictures += [frames[0, :, :: length // 8], decoded[0, :, :: length // 8]]
    save_rows(pictures, wish.out / "vae_sheet.png")
    return figures


def save_rows(clips: list[Tensor], path: Path) -> None:
    """A picture with a row for each clip `(3, T, H, W)` in [-1, 1]."""
    rows = [rearrange((clip + 1) * 127.5, "c t h w -> h (t w) c").clamp(0, 255).byte().cpu() for clip in clips]
    width = max(row.shape[1] for row in rows)
    padded = [torch.nn.functional.pad(row, (0, 0, 0, width - row.shape[1])) for row in rows]
    Image.fromarray(torch.cat(padded).numpy()).save(path)


if __name__ == "__main__":
    main()
