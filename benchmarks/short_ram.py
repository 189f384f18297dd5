"""Run one chunk with RAM for only some of the streamed blocks: seconds a pass, RAM, and whether it is the same video.

    python benchmarks/real_size_tree.py /tmp/tree
    python benchmarks/short_ram.py /tmp/tree                        # RAM for 40, 21, 8 and none of 40 blocks
    python benchmarks/short_ram.py /tmp/tree --cold                 # the files are kept out of the system's file cache
    python benchmarks/short_ram.py /tmp/tree --lora-rank 64         # with a LoRA, merged anew in every pass
    python benchmarks/short_ram.py --demo --in-ram 2 1 0            # the small weights, on a CPU too: no figures

21 blocks in 8 bits are 9.8 GB. All blocks are streamed, none stays on the GPU; those that find no room in RAM are read
from their file in every pass. A machine with much RAM keeps that file in its cache, one with little can't: `--cold` has
the cache forget it several times a second. To be run on a GPU that nobody else uses.

A line of JSON for each. `pass_s`: from the start of a pass to that of the next, for each but the last. `read_gb_per_s`:
what a pass reads against the shortest of them, so the speed of reading only where that takes longer than computing.
`ram_gb`: the most that the process held of its own, the file cache not counted. `latents_off`: distance to the latents
of the first line, relative to their norm.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch
from memory_caps import (
    CappedRoom,
    ChunkRun,
    Usage,
    common_options,
    inputs,
    measured_context_bytes,
    parsed,
    run_of,
    seen_latents,
)
from safetensors.torch import save_file
from torch import Tensor, nn

from infinitalk_cli.footprint import Rung
from infinitalk_cli.memory import stored
from infinitalk_cli.memory.allocator import use_growing_segments
from infinitalk_cli.memory.ladder import release_gpu_memory
from infinitalk_cli.memory.lora import Lora, read_lora
from infinitalk_cli.models.dit import DiT
from infinitalk_cli.networks import read_dit_sizes
from infinitalk_cli.run_networks import PlacedNetworks, build_networks, with_ladder
from infinitalk_cli.sampling.stream import generate_chunks
from infinitalk_cli.weights import WeightFiles

GB = 1e9
POLL_S = 0.02
FORGET_S = 0.2
RUNG = Rung(0, vae_tile=40)


def main() -> None:
    """Print a line for each number of blocks in RAM."""
    options = read_options()
    use_growing_segments()
    run = run_of(options, streams_all=True)
    files = run.files
    room = CappedRoom(run.device, run.profile, run.shape, read_dit_sizes(files), 2**40)
    measured_context_bytes(Usage(run.device))  # which is there before the first look at RAM
    if options.demo:
        stored.LEAST_PART_BYTES, stored.LEAST_SHARE = 0, 0.0  # the rules of large blocks
    with ExitStack() as at_end:
        loras = random_lora(files, options.lora_rank, at_end) if options.lora_rank else ()
        if options.cold:
            os.sync()  # what is not on the disk yet can't be forgotten
            at_end.enter_context(again_and_again(lambda: forget(files), FORGET_S))
        expected: Tensor | None = None
        for in_ram in options.in_ram:
            row, latents = run_with(run, loras, room, in_ram, options.steps)
            expected = latents if expected is None else expected
            row["latents_off"] = ((latents - expected).norm() / expected.norm()).item()
            print(json.dumps(row), flush=True)


def read_options() -> Any:
    """From the command line."""
    parser = common_options((__doc__ or "").splitlines()[0])
    parser.set_defaults(steps=4)
    parser.add_argument("--in-ram", type=int, nargs="+", default=[40, 21, 8, 0], metavar="BLOCKS")
    parser.add_argument("--cold", action="store_true", help="keep the weights out of the system's file cache")
    parser.add_argument("--lora-rank", type=int, default=0, help="add a random LoRA of this rank to every block")
    return parsed(parser)


def run_with(
    run: ChunkRun, loras: tuple[Lora, ...], room: CappedRoom, in_ram: int, num_steps: int
) -> tuple[dict[str, Any], Tensor]:
    """One chunk with so many blocks in RAM; the row to print, and the latents."""
    notes, latents, peak = list[str](), list[Tensor](), [0]
    before = own_bytes()
    begun_s = time.perf_counter()

    def look() -> None:
        peak[0] = max(peak[0], own_bytes())

    with again_and_again(look, POLL_S):
        placed = build_networks(
            replace(run.sources, loras=loras),
            notes.append,
            vae_dtype=torch.float16,
            num_resident=0,
            most_in_ram=in_ram,
        )
        networks = with_ladder(placed, room, RUNG, notes.append)
        loaded_s = time.perf_counter() - begun_s
        starts = pass_starts(placed.transformer.dit)
        with seen_latents(placed, latents):
            for _ in generate_chunks(networks, *inputs(placed, room, num_steps)):
                pass
    row = described(placed, [after - start for start, after in pairwise(starts)])
    row |= {"load_s": round(loaded_s, 2), "ram_gb": round(peak[0] / GB, 2), "ram_before_gb": round(before / GB, 2)}
    row["notes"] = notes
    del placed, networks
    release_gpu_memory()
    return row, latents[-1]


def described(placed: PlacedNetworks, passes_s: list[float]) -> dict[str, Any]:
    """What was read, and how long passes took."""
    offloader = placed.transformer.offloader
    assert offloader is not None
    read, shortest_s = offloader.stored_bytes / GB, min(passes_s)
    return {
        "blocks_read": offloader.num_stored,
        "read_gb_a_pass": round(read, 2),
        "pass_s": [round(seconds, 3) for seconds in passes_s],
        "median_pass_s": round(median(passes_s), 3),
        "read_gb_per_s": round(read / shortest_s, 2),
    }


def pass_starts(dit: DiT) -> list[float]:
    """Filled with the time at which each pass begins, all before it being computed."""
    starts: list[float] = []

    def note(*_: object) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        starts.append(time.perf_counter())

    dit.register_forward_pre_hook(note)
    return starts


def own_bytes() -> int:
    """RAM of this process, without pages of files."""
    found = psutil.Process().memory_info()
    return int(found.rss - getattr(found, "shared", 0))


@contextmanager
def again_and_again(act: Callable[[], None], every_s: float) -> Generator[None]:
    """Have it done by a thread inside the `with`."""
    stop = threading.Event()

    def repeat() -> None:
        while not stop.wait(every_s):
            act()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def forget(files: WeightFiles) -> None:
    """Have the system's file cache drop the transformer's files."""
    for path in files.dit_shards:
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def random_lora(files: WeightFiles, rank: int, at_end: ExitStack) -> tuple[Lora, ...]:
    """A LoRA for every linear layer of the blocks, in a folder that goes at the end."""
    with torch.device("meta"):
        dit = DiT(read_dit_sizes(files))
    draw, tensors = torch.Generator().manual_seed(0), dict[str, Tensor]()
    for name, layer in dit.blocks.named_modules(prefix="diffusion_model.blocks"):
        if isinstance(layer, nn.Linear):
            tensors[f"{name}.lora_down.weight"] = torch.randn(rank, layer.in_features, generator=draw).bfloat16()
            up = torch.randn(layer.out_features, rank, generator=draw) * 0.1 / layer.in_features / rank**0.5
            tensors[f"{name}.lora_up.weight"] = up.bfloat16()
    path = Path(at_end.enter_context(tempfile.TemporaryDirectory())) / "lora.safetensors"
    save_file(tensors, path)
    return (read_lora(path),)


if __name__ == "__main__":
    main()
