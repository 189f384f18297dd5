"""A pass of the transformer at real size on one GPU and on several of the same host, with random weights.

    python benchmarks/two_gpus.py                                  # fp8 and bf16, 448 x 896, two GPUs
    python benchmarks/two_gpus.py fp8 fp8-two-speakers --gpus 2 --size 704x1280 --limit 240

Needs no files. One line per setting on stderr as it is done, at the end one JSON line on stdout: medians of both,
speed-up, and how far the results are apart. Ends after `--limit` seconds, with what there is by then.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import threading
from dataclasses import asdict

import torch

from infinitalk_cli.bench import TINY, parse_setting
from infinitalk_cli.measure import Stopwatch, Workload
from infinitalk_cli.measure_team import Comparison, compare_gpus


def record(name: str, found: Comparison) -> dict[str, object]:
    """One setting for the JSON line."""
    return {
        "name": name,
        "one_gpu_s": round(found.one.median_s, 4),
        f"{found.num_gpus}_gpus_s": round(found.many.median_s, 4),
        "speed_up": round(found.speed_up, 3),
        "relative_difference": found.relative_difference,
        "max_difference": found.max_difference,
        "max_value": found.max_value,
        "one_gpu_times_s": found.one.times_s,
        f"{found.num_gpus}_gpus_times_s": found.many.times_s,
        "one_gpu_peak_bytes": found.one.allocated_bytes,
        f"{found.num_gpus}_gpus_peak_bytes": found.many.allocated_bytes,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["fp8", "bf16"], help="as in `talk bench`")
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--size", default="448x896", help="height x width")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--limit", type=float, default=240.0, help="seconds after which to end")
    parser.add_argument("--device", default="cuda:0", help="cpu tries the script with a tiny network")
    options = parser.parse_args()
    device = torch.device(options.device)
    height, width = map(int, options.size.split("x"))
    work = TINY if device.type == "cpu" else Workload(height, width)
    results: list[dict[str, object]] = []

    def report() -> None:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        about = {"gpu": name, "torch": torch.__version__, "gpus": options.gpus, **asdict(work)}
        print(json.dumps({**about, "num_tokens": work.num_tokens, "results": results}), flush=True)

    def give_up() -> None:
        print(f"not done after {options.limit:.0f} s", file=sys.stderr)
        report()
        os._exit(1)  # the other processes see that this one is gone

    clock = threading.Timer(options.limit, give_up)
    clock.daemon = True
    clock.start()
    for name in options.names:
        found = compare_gpus(options.gpus, parse_setting(name), work, Stopwatch(device, options.repeats))
        results.append(record(name, found))
        print(json.dumps(results[-1]), file=sys.stderr, flush=True)
        gc.collect()
        torch.cuda.empty_cache()
    clock.cancel()
    report()


if __name__ == "__main__":
    main()
