"""Weights made on the spot: trees in the published layout whose numbers come from a seeded rule.

A manifest names every file of a tree and every tensor in it with its shape, dtype, scale and offset; the numbers are
drawn from a generator seeded with the tensor's name and the file's seed. So a few kilobytes describe a whole weights
folder, two machines write the same numbers, and the loaders see exactly the names and forms of the published files.

`ensure_random_weights` writes the small tree of `random_layout`. Its networks are untrained: a run on them goes through
every stage and shows moving noise. The tests run on it, since it is smaller than the demo's trained weights, and the
demo's text encoder comes from it.

The tree is written into a folder beside its final place and renamed. So a folder with the final name is always whole, a
killed build leaves at most an unfinished folder that a later build removes, and of two builds at once one wins. The
folder's name carries a digest of the rule: other sizes or scales get another folder, never a mixture.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Collection, Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infinitalk_cli.errors import EnvironmentUnfitError
from training.random_layout import TOKENIZER, Manifest, random_manifest, vocabulary

if TYPE_CHECKING:
    import torch

RULE_VERSION = 1
"""To be raised when the files change in a way that the manifest does not show."""

STALE_BUILD_S = 3600.0
"""An unfinished folder older than this was left by a killed build; a build takes seconds."""


def ensure_random_weights(cache_dir: Path | None = None) -> Path:
    """The folder of random weights in the published layout, written on the first call (seconds, about 120 MB).

    Files that something else removed from the cache are written again.
    Args: cache_dir: where the folder is kept; the user's cache folder when None.
    Raises: EnvironmentUnfitError: when the folder cannot be written.
    """
    if cache_dir is None:
        import platformdirs

        cache_dir = platformdirs.user_cache_path("infinitalk-cli", appauthor=False)
    tree = cache_dir / f"random-weights-{rule_digest()}"
    try:
        if not tree.is_dir():
            _build(tree)
        _write_missing(tree)
    except OSError as error:
        raise EnvironmentUnfitError(
            f"cannot write the random weights to {tree}: {error.strerror or error}",
            hint="make that folder writable and free 250 MB there",
        ) from error
    return tree


def rule_digest() -> str:
    """Twelve hexadecimal digits that change with every size, scale, seed and name of the random weights."""
    rule = json.dumps([RULE_VERSION, random_manifest(), vocabulary()], sort_keys=True)
    return hashlib.sha256(rule.encode("utf-8")).hexdigest()[:12]


def _build(tree: Path) -> None:
    """Write the tree into a folder beside `tree` and rename it; yield to another process that was faster."""
    tree.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale_builds(tree.parent)
    unfinished = Path(tempfile.mkdtemp(prefix=f"{tree.name}.unfinished-", dir=tree.parent))
    try:
        _write_missing(unfinished)
        unfinished.rename(tree)
    except OSError:
        if not tree.is_dir():
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _remove_stale_builds(cache_dir: Path) -> None:
    for left in cache_dir.glob("random-weights-*.unfinished-*"):
        with suppress(FileNotFoundError):  # its own process has just renamed it
            if time.time() - left.stat().st_mtime > STALE_BUILD_S:
                shutil.rmtree(left, ignore_errors=True)


def _write_missing(tree: Path) -> None:
    """Write those files of the random weights that `tree` lacks."""
    missing = [name for name in tree_names(random_manifest()) if not (tree / name).is_file()]
    write_tree(random_manifest(), tree, only=missing)
    tokenizer = tree / TOKENIZER / "tokenizer.json"
    if not tokenizer.is_file():
        _write_tokenizer(tokenizer)


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

    from infinitalk_cli.memory.quant import quantize_rows

    dtype = {"qfloat8_e4m3fn": torch.float8_e4m3fn, "qint8": torch.int8}[entry["qtype"]]
    plain: dict[str, torch.Tensor] = {}
    for pattern in entry["derived_from"]:
        for name in sorted(name for name in manifest["files"] if fnmatch(name, pattern)):
            plain.update(_rule_tensors(manifest["files"][name]))
    for name in entry["tensors"]:
        layer, _, part = name.rpartition(".")
        if part == "_data":
            data, scale = quantize_rows(plain[layer], dtype)
            yield name, data
            yield f"{layer}._scale", scale
        elif part in ("input_scale", "output_scale"):
            yield name, torch.ones(())
        elif part != "_scale":
            yield name, plain[name]


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


def _write_tokenizer(path: Path) -> None:
    """A tokenizer that spells: one token for a character, `</s>` at the end, ids as in UMT5 (0 pads, 1 ends)."""
    from tokenizers import Tokenizer
    from tokenizers.decoders import Metaspace as Words
    from tokenizers.models import Unigram
    from tokenizers.normalizers import NFKC
    from tokenizers.pre_tokenizers import Metaspace
    from tokenizers.processors import TemplateProcessing

    tokens = vocabulary()
    tokenizer = Tokenizer(Unigram([(token, -1.0) for token in tokens], unk_id=3, byte_fallback=True))
    tokenizer.add_special_tokens(tokens[:4])
    tokenizer.normalizer = NFKC()
    tokenizer.pre_tokenizer = Metaspace()
    tokenizer.decoder = Words()
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    with _replacing(path) as part:
        tokenizer.save(str(part))
