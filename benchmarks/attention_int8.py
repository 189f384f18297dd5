"""The int8 attention kernel in many shapes, beside the others: what the shapes in `attention_int8.py` were chosen by.

    python benchmarks/attention_int8.py                        # 448 x 896, 81 frames: 32,928 tokens
    python benchmarks/attention_int8.py --tokens 73920 --repeats 3

A line per kernel and shape as it is measured: milliseconds, TFLOP/s, errors as in `talk bench attention`.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from itertools import product

import torch
from torch import Tensor

from infinitalk_cli.measure import Stopwatch
from infinitalk_cli.measure_attention import Heads, error_note, normal_heads
from infinitalk_cli.models.attention import Kernel, attention, use_kernel
from infinitalk_cli.models.attention_int8 import Shape, attention_int8

OTHERS: tuple[Kernel, ...] = ("flash", "cudnn", "sage", "cudnn-fp8")
CUTS = ((128, 128, 8), (128, 64, 8), (64, 128, 4), (64, 64, 4), (256, 64, 16))
"""Rows, keys of a block, warps."""


def shapes(fp8: bool) -> list[Shape]:
    """What to try."""
    made: list[Shape] = []
    for apart in (False, True):
        made += [Shape(*cut, stages, apart=apart) for cut, stages in product(CUTS, (2, 3))]
        made += [Shape(128, 64, 8, stages, apart=apart, max_registers=128) for stages in (2, 3, 4)]
    made += [Shape(128, 128, 8, 4, apart=fp8), Shape(128, 128, 8, 3, shifted=True, apart=fp8)]
    return [*made, Shape(128, 64, 8, 3, shifted=True, apart=False, max_registers=128)]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=32_928)
    parser.add_argument("--heads", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    device = torch.device("cuda")
    watch = Stopwatch(device, repeats=options.repeats)
    given = normal_heads(options.tokens, options.heads, 128, device)
    for kernel in OTHERS:
        with use_kernel(kernel):
            report(kernel, attention, given, watch)
    for fp8 in (True, False):
        for shape in shapes(fp8):
            call = partial(attention_int8, fp8_values=fp8, shape=shape)
            report(f"{'int8-fp8' if fp8 else 'int8'} {shape}", call, given, watch)


def report(name: str, call: Callable[[Tensor, Tensor, Tensor], Tensor], given: Heads, watch: Stopwatch) -> None:
    """One line."""
    length, heads, width = given[0].shape[1:]
    try:
        times_s = watch.measure(name, lambda: call(*given)).times_s
        note = error_note(call, length, width, watch.device)
    except Exception as error:
        print(f"{name}: {type(error).__name__} {(str(error).splitlines() or [''])[0]}"[:160], flush=True)
        return
    best_s, median_s = min(times_s), statistics.median(times_s)
    rate = 4 * length**2 * heads * width / median_s / 1e12
    print(f"{name}: {median_s * 1000:.2f} ms (best {best_s * 1000:.2f}), {rate:.0f} TFLOP/s, {note}", flush=True)


if __name__ == "__main__":
    with torch.no_grad():
        main()
