"""What `talk bench` measured on this machine, kept for the estimates of later runs: one JSON file per kind of GPU.

Rates are taken from it: useful arithmetic per second in a pass, by the form of the weights; bytes per second of reading
weights, from the file cache; seconds per pixel of the VAE. They hold for other sizes as far as rates can. A file
that can't be read or is of another shape counts as none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infinitalk_cli.profile_table import Quant

FORM_OF_QUANT: dict[Quant, str] = {"none": "bf16", "fp8": "fp8", "int8": "int8"}
"""How the bench names the forms of the weights."""

PUBLISHED_TFLOP = 100.0
"""A pass of the published size has more work than this, one of the small networks far less."""


def bench_folder() -> Path:
    """Where results are kept, there or not."""
    import platformdirs

    return Path(platformdirs.user_data_dir("infinitalk-cli", appauthor=False)) / "bench"


def store_bench(document: Mapping[str, Any], folder: Path | None = None) -> Path | None:
    """Keep a bench's document if it says something about a run: a GPU, and figures of it.

    Figures measured before and not again stay. Returns: the file, None if nothing was kept.
    """
    figures = {found["name"]: {"size": document.get("size"), **found} for found in _figures(document)}
    gpu = document.get("gpu")
    if not figures or not isinstance(gpu, str):
        return None
    path = _path(gpu, folder)
    known = {found["name"]: found for found in _figures(_read(path))}
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**document, "results": list({**known, **figures}.values())}, indent=1)
    part = path.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
    return path


def measured_flops_per_s(gpu_name: str, quant: Quant, folder: Path | None = None) -> float | None:
    """The rate of a pass on this kind of GPU with weights of this form, None if it was not measured."""
    form = FORM_OF_QUANT[quant]
    names = (form, f"{form}-streamed")
    rates = [
        float(found["tflop"]) * 1e12 / float(found["median_s"])
        for found in _passes(_read(_path(gpu_name, folder)))
        if found["name"] in names
    ]
    return min(rates, default=None)


@dataclass(frozen=True)
class MeasuredStages:
    """Rates of stages other than the passes, None where not measured. `exact`: the VAE in float32, `fast`: its best."""

    read_bytes_per_s: float | None = None
    vae_s_per_pixel_exact: float | None = None
    vae_s_per_pixel_fast: float | None = None


def measured_stages(gpu_name: str, folder: Path | None = None) -> MeasuredStages:
    """What was measured of reading and of the VAE on this kind of GPU."""
    reads: list[float] = []
    vae: dict[str, list[float]] = {"VAE encode": [], "VAE decode": []}
    for found in _figures(_read(_path(gpu_name, folder))):
        try:
            if found["name"] == "load":
                reads.append(float(found["tflop"]) * 1e12 / float(found["median_s"]))
            elif found["name"][:10] in vae:
                height, width = found["size"]
                vae[found["name"][:10]].append(float(found["median_s"]) / (height * width))
        except (KeyError, TypeError, ValueError, ZeroDivisionError):
            continue
    read = min(reads, default=None)
    if not all(vae.values()):
        return MeasuredStages(read)
    return MeasuredStages(read, sum(max(each) for each in vae.values()), sum(min(each) for each in vae.values()))


def _path(gpu: str, folder: Path | None) -> Path:
    return (folder or bench_folder()) / f"{re.sub(r'[^A-Za-z0-9]+', '-', gpu).strip('-')}.json"


def _read(path: Path) -> Mapping[str, Any]:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stored if isinstance(stored, dict) else {}


def _passes(document: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The figures that are passes of the published size."""
    return (found for found in _figures(document) if float(found["tflop"]) > PUBLISHED_TFLOP)


def _figures(document: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """What was measured, as far as it has the right form."""
    results = document.get("results")
    for found in results if isinstance(results, list) else ():
        try:
            if float(found["tflop"]) >= 0 and float(found["median_s"]) > 0 and found["name"]:
                yield found
        except (KeyError, TypeError, ValueError):
            continue
