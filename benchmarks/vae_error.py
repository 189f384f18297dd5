"""The video VAE at its real size: how far fewer bits and tiles are off from the whole in float32, and what they save.

    python benchmarks/vae_error.py                          # 448 x 896, 81 frames
    python benchmarks/vae_error.py --size 704x1280 --frames 33
    python benchmarks/vae_error.py --weights Wan2.1_VAE.pth --image portrait.jpg
    python benchmarks/vae_error.py --tiny --device cpu      # a small network, to see that it runs

A line of JSON per form, the exact one first: seconds (median of `--repeats`) and the peak of torch's allocator for both
directions; the latents' error (norm of the difference over norm); the frames' error, and of the frames as they are
written, in 8 bits: PSNR, the largest difference in levels, the share of values that are more than one level off.
All forms decode the latents that the exact one encoded. `--weights` names a VAE's file and `--image` a picture that the
frames show; without them the weights are random and the frames smooth noise, and the errors those of a network that
was not trained to make pictures.
"""

from __future__ import annotations

import argparse
import gc
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from infinitalk_cli.measure import Stopwatch, Workload
from infinitalk_cli.measure_vae import REAL_VAE, TINY_VAE, VaeSetting, drain, smooth_frames
from infinitalk_cli.media.image import plan_crop, read_image, to_frames
from infinitalk_cli.memory.allocator import use_growing_segments
from infinitalk_cli.memory.tensor_files import open_tensors
from infinitalk_cli.models.vae import VideoVAE
from infinitalk_cli.models.vae_tiling import Tiling
from infinitalk_cli.networks import make_vae
from infinitalk_cli.rungs import SMALL_TILE, TILE

IN_LAYOUT = {
    name: VaeSetting(dtype, channels_last=True)
    for name, dtype in {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}.items()
}


@dataclass(frozen=True)
class Form:
    """One way to run the VAE. `tile`: latents on a side of its tiles, None for the whole picture. `tf32`: convolutions
    may round float32 to 10 bits of mantissa, as torch lets them if nobody says otherwise."""

    setting: VaeSetting
    tile: int | None = None
    tf32: bool = True

    @property
    def name(self) -> str:
        """Such as "bfloat16 channels-last, tiles of 320"."""
        strict = "" if self.tf32 else " without TF32"
        return self.setting.name + strict + (f", tiles of {8 * self.tile}" if self.tile else "")

    def take(self, vae: VideoVAE, state: dict[str, Tensor]) -> None:
        """Have the VAE run so."""
        torch.backends.cudnn.allow_tf32 = self.tf32
        vae.to(self.setting.dtype)
        vae.load_state_dict(state)
        for parameter in vae.parameters():
            parameter.data = parameter.data.contiguous()
        if self.setting.channels_last:
            vae.use_channels_last()
        vae.tiling = None if self.tile is None else Tiling.of(self.tile)


def forms(tiles: Sequence[int]) -> Iterator[Form]:
    """All that are compared, the exact one first."""
    plain = VaeSetting(torch.float32, channels_last=False)
    yield Form(plain, tf32=False)
    yield Form(IN_LAYOUT["float32"], tf32=False)
    yield Form(plain)
    yield from (Form(setting) for setting in IN_LAYOUT.values())
    for tile in tiles:
        yield Form(IN_LAYOUT["float32"], tile, tf32=False)
        yield Form(IN_LAYOUT["bfloat16"], tile)


def levels(frames: Tensor) -> Tensor:
    """Frames in [-1, 1] as they are written to a file: 0 to 255."""
    return frames.add(1).mul_(127.5).round_().clamp_(0, 255)


def compared(made: Tensor, exact: Tensor) -> dict[str, float]:
    """How far frames are off."""
    difference = levels(made).sub_(levels(exact)).abs_()
    root = difference.square().mean().sqrt().item()
    return {
        "frames_off": ((made - exact).norm() / exact.norm()).item(),
        "frames_max": (made - exact).abs().amax().item(),
        "psnr_db": 20 * torch.log10(torch.tensor(255 / max(root, 1e-9))).item(),
        "levels_max": difference.amax().item(),
        "more_than_a_level": (difference > 1).float().mean().item(),
    }


def decode(vae: VideoVAE, latents: Tensor) -> None:
    """Decode, as a run does, and let go of the frames."""
    drain(vae.decode_stream(latents))


def made_frames(work: Workload, image: Path | None, device: torch.device) -> Tensor:
    """Frames to encode, `(1, 3, T, H, W)`: of an image that stands still, or smooth noise."""
    torch.manual_seed(0)
    if image is None:
        with device:
            return smooth_frames(work)
    picture = read_image(image)
    plan = plan_crop(picture.height, picture.width, work.height, work.width)
    return to_frames(picture, plan).to(device).expand(-1, -1, work.num_frames, -1, -1)


@torch.no_grad()
def measure(vae: VideoVAE, frames: Tensor, watch: Stopwatch, tiles: Sequence[int]) -> Iterator[dict[str, Any]]:
    """A row for each form."""
    state = {name: tensor.cpu().clone() for name, tensor in vae.state_dict().items()}
    latents: Tensor | None = None
    exact: Tensor | None = None
    for form in forms(tiles):
        form.take(vae, state)
        encoded = vae.encode(frames)
        latents = encoded if latents is None else latents
        decoded = torch.cat([piece.cpu() for piece in vae.decode_stream(latents)], dim=2)
        exact = decoded if exact is None else exact
        row = {"form": form.name, "latents_off": ((encoded - latents).norm() / latents.norm()).item()}
        row |= compared(decoded, exact)
        del encoded, decoded
        gc.collect()
        for kind, call in (("encode", partial(vae.encode, frames)), ("decode", partial(decode, vae, latents))):
            found = watch.measure(kind, call)
            row |= {f"{kind}_s": found.median_s, f"{kind}_gb": found.allocated_bytes / 1e9}
        yield {name: value if isinstance(value, str) else float(f"{value:.4g}") for name, value in row.items()}


def main() -> None:
    """Print a line for each form."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", default="448x896", help="height x width")
    parser.add_argument("--frames", type=int, default=81)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--weights", type=Path, default=None, help="a VAE's file, in place of random weights")
    parser.add_argument("--image", type=Path, default=None, help="what the frames show, in place of smooth noise")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--device", default="cuda:0")
    options = parser.parse_args()
    use_growing_segments()
    device = torch.device(options.device)
    height, width = map(int, options.size.split("x"))
    work = Workload(128, 192, 9, is_tiny=True) if options.tiny else Workload(height, width, options.frames)
    torch.manual_seed(0)
    if options.weights is not None:
        vae = make_vae(open_tensors(options.weights), dtype=torch.float32, device=device)
    else:
        with device:
            vae = VideoVAE(TINY_VAE if options.tiny else REAL_VAE).eval()
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    print(json.dumps({"gpu": gpu, "torch": torch.__version__, "height": work.height, "width": work.width}))
    tiles = (10,) if options.tiny else (TILE, SMALL_TILE)
    frames = made_frames(work, options.image, device)
    for row in measure(vae, frames, Stopwatch(device, options.repeats, warm_up=1), tiles):
        print(json.dumps({"frames": work.num_frames, **row}), flush=True)


if __name__ == "__main__":
    main()
