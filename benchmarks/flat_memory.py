"""Does memory grow from chunk to chunk? A run of 20 chunks, with RAM and GPU memory told after each.

    python benchmarks/real_size_tree.py /tmp/w
    python -m benchmarks.flat_memory /tmp/w                 # every block streamed
    python -m benchmarks.flat_memory /tmp/w --resident      # the transformer stays on the GPU
    python -m benchmarks.flat_memory --demo --chunks 6      # the small weights, on a CPU too

One step of one pass a chunk, 17 frames of which 5 are carried. A line per chunk: the RAM that the system counts as the
process's, mapped files and locked memory included; what tensors hold of the GPU and the most they held since the line
before; the same for what torch holds of it. A line is told when a chunk's step is done, so it counts the decoding of
the chunk before; the last one, when the video is done and the networks are gone. From the `--settled` chunk on nothing
may grow by more than 100 MB of RAM or 1 % of the GPU's peaks, else the exit code is 1. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil
import torch

from benchmarks.long_video import PORTRAIT, write_speech
from infinitalk_cli import runner
from infinitalk_cli.options import GenerateOptions
from infinitalk_cli.options_values import Quant
from infinitalk_cli.prepare import prepare_run
from infinitalk_cli.progress import Progress

FRAMES, MOTION_FRAMES, FPS = 17, 5, 25
ALLOWED_RAM_BYTES = 100_000_000
ALLOWED_GPU_SHARE = 0.01


@dataclass(frozen=True)
class Held:
    """Memory after a chunk, in bytes. The peaks are those since the chunk before; 0 without a GPU."""

    chunk: int
    seconds: float
    ram_bytes: int
    allocated_bytes: int = 0
    allocated_peak_bytes: int = 0
    reserved_bytes: int = 0
    reserved_peak_bytes: int = 0


@dataclass
class Watch:
    """Listens to a run and looks at memory after each chunk."""

    begun_s: float = field(default_factory=time.monotonic)
    seen: list[Held] = field(default_factory=list[Held])

    def __call__(self, news: Progress) -> None:
        """Told of every step."""
        if news.stage == "video" and news.step == news.num_steps:
            self.look(news.chunk)

    def look(self, chunk: int) -> None:
        """Note what is held now, and print it."""
        ram_bytes = psutil.Process().memory_info().rss
        held = Held(chunk, round(time.monotonic() - self.begun_s, 2), ram_bytes, *gpu_bytes())
        self.seen.append(held)
        gigabytes = [value / 1e9 for name, value in asdict(held).items() if name.endswith("bytes")]
        print(f"{chunk:5} {held.seconds:8.1f} s" + "".join(f"{value:12.3f}" for value in gigabytes), flush=True)

    def growth(self, settled: int) -> dict[str, float]:
        """From the `settled` chunk on: bytes of RAM, and shares of the GPU's peaks."""
        first, *rest = [held for held in self.seen if held.chunk >= settled]
        return {
            "ram_bytes": max(held.ram_bytes for held in rest) - first.ram_bytes,
            **{
                name: max(getattr(held, name) for held in rest) / max(1, getattr(first, name)) - 1
                for name in ("allocated_peak_bytes", "reserved_peak_bytes")
                if first.reserved_peak_bytes
            },
        }


def is_flat(growth: Mapping[str, float]) -> bool:
    """Whether nothing grew by more than it may."""
    gpu_shares = [share for name, share in growth.items() if name != "ram_bytes"]
    return growth["ram_bytes"] <= ALLOWED_RAM_BYTES and all(share <= ALLOWED_GPU_SHARE for share in gpu_shares)


def gpu_bytes() -> tuple[int, ...]:
    """Allocated and its peak, reserved and its peak; the peaks begin anew."""
    if not torch.cuda.is_available():
        return ()
    cuda = torch.cuda
    found = (cuda.memory_allocated(), cuda.max_memory_allocated(), cuda.memory_reserved(), cuda.max_memory_reserved())
    cuda.reset_peak_memory_stats()
    return found


def options_of(tree: Path | None, folder: Path, num_chunks: int, *, resident: bool) -> GenerateOptions:
    """What the run is told."""
    speech = folder / "speech.wav"
    num_frames = FRAMES + (num_chunks - 1) * (FRAMES - MOTION_FRAMES)
    write_speech(speech, num_frames / FPS / 60)
    return GenerateOptions(
        image=PORTRAIT,
        audio=[str(speech)],
        output=folder / "talk.mp4",
        profile="demo" if tree is None else "default",
        weights_dir=tree,
        quant=None if tree is None else Quant.fp8,
        resolution="64x64" if tree is None else "896x448",
        num_persistent_param_in_dit=None if tree is None or resident else 0,
        no_convert=True,
        num_steps=1,
        frames=FRAMES,
        motion_frames=MOTION_FRAMES,
        text_guidance=1.0,
        audio_guidance=1.0,
    )


def watched(tree: Path | None, num_chunks: int, *, resident: bool = False) -> Watch:
    """What is held after each chunk of a run. `tree`: of real size, None for the small weights."""
    print("chunk       time         RAM   allocated   (at most)    reserved   (at most)   GB")
    with tempfile.TemporaryDirectory() as folder:
        wishes = options_of(tree, Path(folder), num_chunks, resident=resident)
        watch = Watch()
        result = runner.generate(prepare_run(wishes).request, watch, print)
    watch.look(result.num_chunks + 1)
    return watch


def main() -> None:
    """Run, print, and judge."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tree", type=Path, nargs="?", help="weights of real size, of real_size_tree.py")
    parser.add_argument("--demo", action="store_true", help="take the small demo weights")
    parser.add_argument("--chunks", type=int, default=20)
    parser.add_argument("--settled", type=int, default=3, help="the chunk from which on nothing may grow")
    parser.add_argument("--resident", action="store_true", help="let the transformer stay on the GPU")
    options = parser.parse_args()
    if (options.tree is None) != options.demo:
        parser.error("name a weights folder, or --demo")
    watch = watched(options.tree, options.chunks, resident=options.resident)
    growth = watch.growth(options.settled)
    print(", ".join(f"{name} grew by {value:.3g}" for name, value in growth.items()))
    about = {"gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None, "torch": torch.__version__}
    print(json.dumps({**about, "growth": growth, "chunks": [asdict(held) for held in watch.seen]}))
    if len(watch.seen) != options.chunks + 1 or not is_flat(growth):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
