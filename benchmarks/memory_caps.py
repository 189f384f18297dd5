"""Run one chunk under caps on the GPU's memory: what was predicted, what it took, and whether it is the same video.

    python benchmarks/real_size_tree.py /tmp/tree
    python benchmarks/memory_caps.py /tmp/tree                      # caps of 24, 16, 12, 10 and 8 GB
    python benchmarks/memory_caps.py /tmp/tree --caps 8 --size 704x1280
    python benchmarks/memory_caps.py --demo                         # the small weights, on a CPU too: no figures

Each cap stands for a card of that memory. torch may reserve what is left of it beside the CUDA context, which is
measured first; the run is laid out by `first_rung` for the cap, as on such a card, and has the ladder below it. The
transformer is loaded once, for the largest cap; for each further one more of it leaves the GPU. To be run on a GPU that
nobody else uses: what is in use is asked of the driver, every 10 ms, and all of it counts.

A line of JSON per cap. `used_gb` (by the driver) compares with `estimate_gb`: both have the CUDA context in them.
`reserved_gb` and `allocated_gb` are those of torch's allocator, without. `estimate_over_used` is to be from 1.0 to 1.1.
`latents_off` is the distance to the latents of the first cap, relative to their norm: 0 where the kernels are the same.
The largest term of the estimate for the rung's stages is in `terms_gb`, to see which constant of `footprint.py` is off.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from infinitalk_cli.demo_package import locate_demo
from infinitalk_cli.errors import OutOfGpuMemoryError
from infinitalk_cli.footprint import (
    JobShape,
    Rung,
    block_bytes,
    decoding_bytes,
    outside_bytes,
    vram_bytes,
    working_bytes,
)
from infinitalk_cli.gpu_room import GpuRoom
from infinitalk_cli.job import Job, Speaker
from infinitalk_cli.memory.allocator import use_growing_segments
from infinitalk_cli.memory.ladder import release_gpu_memory
from infinitalk_cli.networks import read_dit_sizes
from infinitalk_cli.profiles import Profile, find_profile
from infinitalk_cli.request import GenerateRequest
from infinitalk_cli.run_networks import PlacedNetworks, build_networks, with_ladder
from infinitalk_cli.run_transformer import NetworkSources
from infinitalk_cli.rungs import first_rung
from infinitalk_cli.sampling.conditioning import Conditioning, TensorEmbeds
from infinitalk_cli.sampling.settings import SamplingSettings
from infinitalk_cli.sampling.stream import generate_chunks
from infinitalk_cli.weights import WeightFiles, locate

GB = 1e9
POLL_S = 0.01


@dataclass(frozen=True)
class CappedRoom(GpuRoom):
    """A room that is not remembered: no run of the user's is to start on a rung found here."""

    def remember(self, rung: Rung) -> None:
        """Nothing is kept."""


@dataclass(frozen=True)
class StillPicture:
    """A reference picture that stays the same."""

    picture: Tensor

    def frame(self, chunk_start: int) -> Tensor:
        """`(1, 3, 1, H, W)`."""
        return self.picture


@dataclass
class Usage:
    """What is in use on a GPU by the driver's word, and the most that was seen. On a CPU all is 0."""

    device: torch.device
    peak_bytes: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    def now(self) -> int:
        """Bytes, of all programs."""
        if self.device.type != "cuda":
            return 0
        free_bytes, total_bytes = torch.cuda.mem_get_info(self.device)
        return total_bytes - free_bytes

    @contextmanager
    def watched(self) -> Generator[None]:
        """Look again and again inside the `with`."""
        self.peak_bytes = 0
        self._stop.clear()
        thread = threading.Thread(target=self._watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def _watch(self) -> None:
        while not self._stop.is_set():
            self.peak_bytes = max(self.peak_bytes, self.now())
            time.sleep(POLL_S)


def main() -> None:
    """Print a line for each cap, the largest first."""
    options = read_options()
    use_growing_segments()
    run = run_of(options, streams_all=options.stream_all)
    device, profile, shape, files = run.device, run.profile, run.shape, run.files
    usage = Usage(device)
    context_bytes = measured_context_bytes(usage)
    sizes, caps = read_dit_sizes(files), sorted((round(cap * GB) for cap in options.caps), reverse=True)
    rooms = [CappedRoom(device, profile, shape, sizes, cap) for cap in caps]
    rungs = [first_rung(profile, shape, cap, sizes) for cap in caps]
    placed = build_networks(run.sources, print, vae_dtype=torch.float16, num_resident=rungs[0].num_resident)
    expected: Tensor | None = None
    for room, rung in zip(rooms, rungs, strict=True):
        row, latents = run_capped(placed, room, rung, usage, context_bytes, options.steps)
        expected = latents if expected is None else expected
        if latents is not None and expected is not None:
            row["latents_off"] = ((latents - expected).norm() / expected.norm()).item()
        print(json.dumps(row), flush=True)


@dataclass(frozen=True)
class ChunkRun:
    """A run of one chunk of one speaker, by the options of the command line; nothing of its request's media is read."""

    device: torch.device
    profile: Profile
    shape: JobShape
    files: WeightFiles

    @property
    def sources(self) -> NetworkSources:
        """The run as the networks are built for it."""
        job = Job(Path("none.png"), "", (Speaker(Path("none.wav")),), is_video=False)
        return NetworkSources(GenerateRequest(job, Path("none.mp4"), self.profile), self.files, (), self.device)


def run_of(options: Any, *, streams_all: bool) -> ChunkRun:
    """The run that `common_options` describe."""
    height, width = map(int, options.size.split("x"))
    profile = replace(
        find_profile("demo" if options.demo else "default"),
        quant="none" if options.demo else options.quant,
        chunk_frames=options.frames,
        num_persistent_param_in_dit=0 if streams_all else None,
    )
    files = (
        locate_demo(num_speakers=1)
        if options.demo
        else locate(options.tree, num_speakers=1, quant=profile.quant, engine="infinitetalk")
    )
    return ChunkRun(
        torch.device("cuda:0" if torch.cuda.is_available() else "cpu"),
        profile,
        JobShape(width, height, options.frames),
        files,
    )


def common_options(description: str) -> argparse.ArgumentParser:
    """The options that decide which weights compute what; to be read by `parsed`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("tree", type=Path, nargs="?", help="weights of real size, of real_size_tree.py")
    parser.add_argument("--demo", action="store_true", help="take the small demo weights, to see that it runs")
    parser.add_argument("--size", default="448x896", metavar="HxW")
    parser.add_argument("--frames", type=int, default=81)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--quant", choices=("fp8", "none"), default="fp8")
    return parser


def parsed(parser: argparse.ArgumentParser) -> Any:
    """The options from the command line."""
    options = parser.parse_args()
    if options.tree is None and not options.demo:
        parser.error("name a weights folder, or --demo")
    return options


def read_options() -> Any:
    """From the command line."""
    parser = common_options((__doc__ or "").splitlines()[0])
    parser.add_argument("--caps", type=float, nargs="+", default=[24, 16, 12, 10, 8], metavar="GB")
    parser.add_argument("--stream-all", action="store_true", help="let no block stay, as num_persistent_param_in_dit 0")
    return parsed(parser)


def measured_context_bytes(usage: Usage) -> int:
    """What is in use before anything of ours is there: the CUDA context, and whoever else has something on the GPU."""
    if usage.device.type == "cuda":
        torch.zeros(1, device=usage.device)
        release_gpu_memory()
    return usage.now()


def run_capped(
    placed: PlacedNetworks, room: CappedRoom, rung: Rung, usage: Usage, context_bytes: int, num_steps: int
) -> tuple[dict[str, Any], Tensor | None]:
    """One chunk in a room; the row to print, and the latents, None if the last rung failed."""
    on_gpu, notes, latents = room.device.type == "cuda", list[str](), list[Tensor]()
    networks = with_ladder(placed, room, rung, notes.append)
    release_gpu_memory()
    if on_gpu:
        allowed = (room.free_bytes - context_bytes) / torch.cuda.get_device_properties(room.device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, allowed), room.device)
        torch.cuda.reset_peak_memory_stats(room.device)
    begun_s, failed = time.perf_counter(), ""
    with usage.watched(), seen_latents(placed, latents):
        try:
            conditioning, settings = inputs(placed, room, num_steps)
            for _ in generate_chunks(networks, conditioning, settings):
                pass
        except OutOfGpuMemoryError as error:
            failed = error.message
    estimate = vram_bytes(room.shape, room.profile, rung, room.sizes, with_text=False)
    used = usage.peak_bytes
    row: dict[str, Any] = {
        "cap_gb": room.free_bytes / GB,
        "rung": asdict(rung),
        "estimate_gb": round(estimate / GB, 3),
        "used_gb": round(used / GB, 3),
        "estimate_over_used": round(estimate / used, 3) if used else None,
        "cap_kept": used <= room.free_bytes,
        "context_gb": round(context_bytes / GB, 3),
        "allocated_gb": round(torch.cuda.max_memory_allocated(room.device) / GB, 3) if on_gpu else None,
        "reserved_gb": round(torch.cuda.max_memory_reserved(room.device) / GB, 3) if on_gpu else None,
        "terms_gb": {name: round(term / GB, 3) for name, term in terms(room, rung).items()},
        "seconds": round(time.perf_counter() - begun_s, 2),
        "stepped_down": [note for note in notes if "ran out" in note],
        "failed": failed,
        "latents_sha256": hashlib.sha256(latents[-1].numpy().tobytes()).hexdigest()[:16] if latents else None,
    }
    return row, latents[-1] if latents and not failed else None


@contextmanager
def seen_latents(placed: PlacedNetworks, seen: list[Tensor]) -> Generator[None]:
    """Keep a copy of all latents that are decoded inside the `with`."""
    decode = placed.vae.decode_stream

    def watched(latents: Tensor) -> Iterator[Tensor]:
        seen.append(latents.cpu())
        return decode(latents)

    placed.vae.decode_stream = watched
    try:
        yield
    finally:
        del placed.vae.decode_stream  # the class's own method shows again


def terms(room: GpuRoom, rung: Rung) -> dict[str, int]:
    """The parts that the estimate is put together from, in bytes."""
    block = block_bytes(room.profile, room.sizes)
    return {
        "resident": rung.num_resident * block + outside_bytes(room.profile, room.sizes),
        "two_blocks": 2 * block,
        "working": working_bytes(room.shape, room.profile, rung, room.sizes),
        "decoding": decoding_bytes(room.shape, room.profile, rung),
    }


def inputs(placed: PlacedNetworks, room: GpuRoom, num_steps: int) -> tuple[Conditioning, SamplingSettings]:
    """Random speech, text and picture, always the same, for one chunk of one pass a step."""
    shape, profile, config = room.shape, room.profile, placed.transformer.dit.config
    draw = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, 3, 1, shape.height // 32, shape.width // 32, generator=draw)
    picture = torch.nn.functional.interpolate(coarse, size=(1, shape.height, shape.width), mode="trilinear")
    conditioning = Conditioning(
        text=torch.randn(64, config.text_dim, generator=draw),
        null_text=None,
        audio=(TensorEmbeds(torch.randn(profile.chunk_frames, config.audio_layers, config.audio_dim, generator=draw)),),
        reference=StillPicture(picture.clamp(-1, 1)),
        speaker_masks=None,
        height=shape.height,
        width=shape.width,
    )
    settings = SamplingSettings(
        bucket_set=profile.size,
        chunk_frames=profile.chunk_frames,
        num_steps=num_steps,
        text_guidance_scale=1.0,
        audio_guidance_scale=1.0,
    )
    return conditioning, settings


if __name__ == "__main__":
    main()
