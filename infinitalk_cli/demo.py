"""Weights made on the spot: trees in the published layout whose numbers come from a seeded rule.

A manifest names every file of a tree and every tensor in it with its shape, dtype, scale and offset; the numbers are
drawn from a generator seeded with the tensor's name and the file's seed. So a few kilobytes describe a whole weights
folder, two machines write the same numbers, and the loaders see exactly the names and forms of the published files.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Collection, Generator, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

Manifest = Mapping[str, Any]
"""`files`: name -> format ("safetensors" or "pth"), seed, tensors (name -> shape, dtype, scale, offset);
`derived_files`: quantised forms of them; `json_files`: name -> content; `copied_dirs`: folder -> source folder."""

QUANTISED_MAX = {"qfloat8_e4m3fn": 448.0, "qint8": 127.0}
"""The largest number of each 8-bit form; a row's scale is its largest magnitude over this."""


def tree_names(manifest: Manifest) -> list[str]:
    """Every file and copied folder of a tree, relative to its root."""
    sections = ("files", "derived_files", "json_files", "copied_dirs")
    return [name for section in sections for name in manifest.get(section, {})]


def write_tree(
    manifest: Manifest, target: Path, *, source: Path | None = None, only: Collection[str] | None = None
) -> None:
    """Write the tree that `manifest` describes into `target`; each file appears whole or not at all.

    Args: source: where `copied_dirs` are copied from. only: write these names (see `tree_names`), all when None.
    Raises: ValueError: for a name in `only` that the manifest lacks, or copied folders without `source`.
    """
    wanted = set(tree_names(manifest)) if only is None else set(only)
    if unknown := wanted - set(tree_names(manifest)):
        raise ValueError(f"not in the manifest: {', '.join(sorted(unknown))}")
    for name in wanted & set(manifest.get("files", {})):
        entry = manifest["files"][name]
        _write_tensors(target / name, entry["format"], dict(_rule_tensors(entry)))
    for name in wanted & set(manifest.get("derived_files", {})):
        entry = manifest["derived_files"][name]
        if entry["format"] == "json":
            _write_json(target / name, entry["content"])
        else:
            _write_tensors(target / name, entry["format"], dict(_derived_tensors(manifest, entry)))
    for name in wanted & set(manifest.get("json_files", {})):
        _write_json(target / name, manifest["json_files"][name])
    for name in wanted & set(manifest.get("copied_dirs", {})):
        if source is None:
            raise ValueError(f"{name} is copied from a folder, and no source folder is given")
        shutil.copytree(source / manifest["copied_dirs"][name], target / name, dirs_exist_ok=True)


def rule_tensor(name: str, seed: int, form: Mapping[str, Any]) -> torch.Tensor:
    """The numbers of one tensor: standard normal draws seeded by its name and its file, times scale plus offset."""
    import numpy as np
    import torch

    generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode("utf-8")) + seed))
    drawn = generator.standard_normal(form["shape"], dtype=np.float32)
    values = np.asarray(drawn * np.float32(form["scale"]) + np.float32(form["offset"]))
    dtypes = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    return torch.from_numpy(values).to(dtypes[form["dtype"]])


def _rule_tensors(entry: Mapping[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    for name, form in entry["tensors"].items():
        yield name, rule_tensor(name, entry["seed"], form)


def _derived_tensors(manifest: Manifest, entry: Mapping[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """The quantised form of the files that `derived_from` names; a later file's tensors win over an earlier one's."""
    import torch

    plain: dict[str, torch.Tensor] = {}
    for pattern in entry["derived_from"]:
        for name in sorted(name for name in manifest["files"] if fnmatch(name, pattern)):
            plain.update(_rule_tensors(manifest["files"][name]))
    for name in entry["tensors"]:
        layer, _, part = name.rpartition(".")
        if part == "_data":
            data, scale = _quantise_rows(plain[layer], entry["qtype"])
            yield name, data
            yield f"{layer}._scale", scale
        elif part in ("input_scale", "output_scale"):
            yield name, torch.ones(())
        elif part != "_scale":
            yield name, plain[name]


def _quantise_rows(weight: torch.Tensor, qtype: str) -> tuple[torch.Tensor, torch.Tensor]:
    """`weight` (out, in) as 8-bit data and a float32 scale (out, 1) with `weight = scale * data`."""
    import torch

    largest = QUANTISED_MAX[qtype]
    scale = weight.abs().amax(dim=1, keepdim=True) / largest
    data = (weight / scale).clamp(-largest, largest)
    if qtype == "qint8":
        return data.round().to(torch.int8), scale
    return data.to(torch.float8_e4m3fn), scale


def _write_tensors(path: Path, file_format: str, tensors: Mapping[str, torch.Tensor]) -> None:
    import safetensors.torch
    import torch

    with _replacing(path) as part:
        if file_format == "pth":
            with part.open("wb") as stream:  # a stream: from a path torch would store the name of the part file
                torch.save(dict(tensors), stream)
        else:
            safetensors.torch.save_file(dict(tensors), part, metadata={"format": "pt"})


def _write_json(path: Path, content: object) -> None:
    with _replacing(path) as part:
        part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@contextmanager
def _replacing(path: Path) -> Generator[Path, None, None]:
    """A path beside `path` to write to; it takes the place of `path` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
