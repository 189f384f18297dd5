"""`talk bench`: seconds and memory of each stage on this machine, as a table and one JSON document.

What is measured lives in `measure.py`; this page chooses it, collects the numbers and lays them out. The document holds
all single times, the versions and the GPU, so that a figure can be checked and compared later.
"""

from __future__ import annotations

import gc
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import cast, get_args

import torch
from rich.box import SIMPLE
from rich.console import Console as Terminal
from rich.table import Table

from infinitalk_cli import __version__
from infinitalk_cli.errors import EnvironmentUnfitError, InputError, OutOfGpuMemoryError
from infinitalk_cli.measure import (
    ATTENTIONS,
    Measured,
    PassSetting,
    Stopwatch,
    Weights,
    Workload,
    measure_pass,
)
from infinitalk_cli.measure_attention import measure_attention
from infinitalk_cli.measure_ceilings import Ceilings
from infinitalk_cli.measure_encoders import (
    measure_audio,
    measure_first_pass,
    measure_image,
    measure_load,
    measure_text,
)
from infinitalk_cli.measure_vae import VaeSetting, measure_color, measure_vae
from infinitalk_cli.memory.allocator import use_growing_segments
from infinitalk_cli.models.attention import chosen_kernels
from infinitalk_cli.progress import OnProgress, Progress, ignore_progress

SINGLE: dict[str, Callable[[Workload, Stopwatch], Measured]] = {
    "first-pass": measure_first_pass,
    "load": measure_load,
    "text": measure_text,
    "image": measure_image,
    "audio": measure_audio,
    "color": measure_color,
}
"""Stages that give one figure each."""
STAGES = (*SINGLE, "vae", "attention", "ceilings")
"""What can be asked for beside settings of the transformer."""
TINY = Workload(height=32, width=48, num_frames=9, is_tiny=True)


@dataclass(frozen=True)
class BenchWishes:
    """What to measure: stages and settings of the transformer by name, at a size in pixels."""

    names: tuple[str, ...]
    height: int = 448
    width: int = 896
    repeats: int = 5
    device: str = "cuda"
    is_tiny: bool = False


def run_bench(
    wishes: BenchWishes, on_result: Callable[[Measured], None], on_progress: OnProgress = ignore_progress
) -> dict[str, object]:
    """Measure everything asked for; `on_result` hears of each figure as it comes.

    Raises: InputError: for a name that means nothing. EnvironmentUnfitError: without the device.
    """
    settings = {name: None if name in STAGES else parse_setting(name) for name in wishes.names}
    use_growing_segments()
    if wishes.device.startswith("cuda") and not torch.cuda.is_available():
        raise EnvironmentUnfitError(
            "this computer has no GPU that torch can use", hint="--tiny --device cpu tries it out"
        )
    work = TINY if wishes.is_tiny else Workload(wishes.height, wishes.width)
    watch = Stopwatch(torch.device(wishes.device), repeats=wishes.repeats)
    results: list[Measured] = []
    begun_s = time.monotonic()
    ordered = sorted(settings.items(), key=lambda item: item[0] != "first-pass")
    for number, (name, setting) in enumerate(ordered):
        elapsed_s = time.monotonic() - begun_s
        on_progress(Progress("bench", fraction=number / len(settings), elapsed_s=elapsed_s, message=name))
        try:
            for found in _measure(name, setting, work, watch):
                on_result(found)
                results.append(found)
        except torch.OutOfMemoryError as error:
            raise OutOfGpuMemoryError(f"{name} does not fit on this GPU", hint="try fp8-streamed") from error
        gc.collect()
        if watch.device.type == "cuda":
            torch.cuda.empty_cache()
    return document(work, watch, results)


def parse_setting(name: str) -> PassSetting:
    """`fp8-streamed` and the like. Raises: InputError: with what there is."""
    weights, *more = name.replace("two-speakers", "two").split("-")
    attentions = [part for part in more if part in ATTENTIONS]
    known = {"streamed", "plain", "two", *ATTENTIONS}
    if weights not in get_args(Weights) or not set(more) <= known or len(attentions) > 1:
        raise InputError(
            f"nothing to measure is called {name!r}",
            hint=f"{', '.join(STAGES)}, or bf16, fp8, int8 with any of -streamed, -plain, -two-speakers, and one of "
            + ", ".join(f"-{attention}" for attention in ATTENTIONS),
        )
    return PassSetting(
        weights=cast("Weights", weights),
        streamed="streamed" in more,
        plain="plain" in more,
        attention="".join(attentions),
        num_speakers=2 if "two" in more else 1,
    )


def _measure(name: str, setting: PassSetting | None, work: Workload, watch: Stopwatch) -> Iterator[Measured]:
    if setting is not None:
        yield measure_pass(setting, work, watch)
    elif name == "ceilings":
        yield from Ceilings(work, watch).measure()
    elif name == "attention":
        yield from measure_attention(work, watch)
    elif name in SINGLE:
        yield SINGLE[name](work, watch)
    else:
        forms = ((torch.float32, False), (torch.float32, True), (torch.bfloat16, True), (torch.float16, True))
        yield from measure_vae([VaeSetting(*form) for form in forms], work, watch)


def document(work: Workload, watch: Stopwatch, results: Sequence[Measured]) -> dict[str, object]:
    """Everything there is to know about the figures."""
    on_gpu = watch.device.type == "cuda"
    return {
        "gpu": torch.cuda.get_device_name(watch.device) if on_gpu else None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if on_gpu else None,
        "package": __version__,
        "platform": platform.platform(),
        "attention": chosen_kernels(),
        "size": [work.height, work.width],
        "frames": work.num_frames,
        "tokens": work.num_tokens,
        "ram_peak_bytes": ram_peak_bytes(),
        "results": [
            {
                "name": found.name,
                "median_s": round(found.median_s, 6),
                "times_s": [round(seconds, 6) for seconds in found.times_s],
                "allocated_bytes": found.allocated_bytes,
                "reserved_bytes": found.reserved_bytes,
                "tflop": round(found.tflop, 3),
                "tflop_per_s": round(found.tflop_per_s, 1),
                "checksum": found.checksum,
                "note": found.note,
            }
            for found in results
        ],
    }


def result_line(found: Measured) -> str:
    """One figure, as it comes."""
    return f"{found.name}: {found.median_s:.4g} s"


def result_table(results: Sequence[Measured]) -> str:
    """All figures, as a terminal shows them."""
    table = Table("what", box=SIMPLE, pad_edge=False)
    for heading in ("seconds", "lowest - highest", "10^12/s", "VRAM GB"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("")
    for found in results:
        rate = f"{found.tflop_per_s:.4g}" if found.tflop else ""
        memory = f"{found.allocated_bytes / 1e9:.2f}" if found.allocated_bytes else ""
        span = f"{min(found.times_s):.3g} - {max(found.times_s):.3g}"
        table.add_row(found.name, f"{found.median_s:.4g}", span, rate, memory, found.note)
    terminal = Terminal(file=StringIO(), width=shutil.get_terminal_size().columns)
    with terminal.capture() as drawn:
        terminal.print(table)
    return "\n".join(line.rstrip() for line in drawn.get().rstrip().splitlines())


def ram_peak_bytes() -> int | None:
    """The most RAM that this process has had; None where the system does not say."""
    if platform.system() == "Windows":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024  # macOS counts bytes, Linux KiB
