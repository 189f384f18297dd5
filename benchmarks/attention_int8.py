"""The int8 attention kernel in many shapes, beside the others: what the shapes in `attention_int8.py` were chosen by.

    python benchmarks/attention_int8.py                        # 448 x 896, 81 frames: 32,928 tokens
    python benchmarks/attention_int8.py --tokens 73920 --repeats 3

    python benchmarks/attention_int8.py --parts                # what is done before the products, for 20 heads

A line per kernel and shape as it is measured: milliseconds, TFLOP/s, errors as in `talk bench attention`.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from importlib import import_module
from itertools import product

import torch
from torch import Tensor

from infinitalk_cli.measure import Stopwatch
from infinitalk_cli.measure_attention import Heads, error_note, normal_heads
from infinitalk_cli.models.attention import Kernel, attention, use_kernel
from infinitalk_cli.models.attention_int8 import (
    HEADS_AT_ONCE,
    Shape,
    attention_int8,
    mean_and_scale,
    rounded_tokens,
    rounded_values,
    turned_mean,
)

OTHERS: tuple[Kernel, ...] = ("flash", "cudnn", "sage", "cudnn-fp8")

CUTS = ((128, 128, 8), (128, 64, 8), (64, 128, 4), (64, 64, 4), (256, 64, 16))
"""Rows, keys of a block, warps."""


def shapes(fp8: bool) -> list[Shape]:
    """What to try."""
    made: list[Shape] = []
    for apart in (True, False):
        made += [Shape(*cut, stages, apart=apart) for cut, stages in product(CUTS, (2, 3))]
        made += [Shape(128, 64, 8, stages, apart=apart, max_registers=128) for stages in (2, 3, 4)]
    made += [Shape(128, 128, 8, 4, apart=fp8), Shape(128, 128, 8, 3, shifted=True, apart=fp8)]
    return [*made, Shape(128, 64, 8, 3, shifted=True, max_registers=128)]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=32_928)
    parser.add_argument("--heads", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--parts", action="store_true")
    options = parser.parse_args()
    device = torch.device("cuda")
    watch = Stopwatch(device, repeats=options.repeats)
    given = normal_heads(options.tokens, options.heads, 128, device)
    if options.parts:
        parts(given, watch)
        return
    for kernel in OTHERS:
        with use_kernel(kernel):
            report(kernel, attention, given, watch)
    for fp8 in (True, False):
        for shape in shapes(fp8):
            call = partial(attention_int8, fp8_values=fp8, shape=shape)
            report(f"{'int8-fp8' if fp8 else 'int8'} {shape}", call, given, watch)


def parts(given: Heads, watch: Stopwatch) -> None:
    """The time of each step before the products."""
    kernels = import_module("infinitalk_cli.models.attention_int8_kernels")
    q, k, v = (x[:, :, :HEADS_AT_ONCE] for x in given)
    mean = turned_mean(k)
    steps: dict[str, Callable[[], object]] = {
        "mean of keys": lambda: turned_mean(k),
        "mean of values": lambda: v.mean(dim=1, dtype=torch.float32),
        "mean and scale of values": lambda: mean_and_scale(v, fp8=True),
        "round queries": lambda: rounded_tokens(kernels, q, None, 128),
        "round keys": lambda: rounded_tokens(kernels, k, mean, 128),
        "scale and round values to fp8": lambda: rounded_values(kernels, v, 128, fp8=True),
        "scale and round values to float16": lambda: rounded_values(kernels, v, 64, fp8=False),
    }
    for name, step in steps.items():
        print(f"{name}: {watch.measure(name, step).median_s * 1000:.3f} ms", flush=True)


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
