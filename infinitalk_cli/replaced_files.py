"""Which published files a run no longer reads: compact files, or another program's, have taken their place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from infinitalk_cli.compact import IMAGE_ENCODER, is_current, text_encoder_place, transformer_place
from infinitalk_cli.file_headers import header_problem
from infinitalk_cli.manifest import HubFile, Need, Purpose
from infinitalk_cli.repackaged import Kind, find_repackaged
from infinitalk_cli.weights import COMPACT_FORMS, Quant, repackaged_transformer


def without_replaced(files: Sequence[HubFile], need: Need, weights_dir: Path) -> tuple[HubFile, ...]:
    """The files that a run still reads where compact files or another program's have taken the place of others.

    Raises: WeightsError: if a compact file is damaged.
    """
    replaced = {
        purpose for purpose, place in replacing_places(need).items() if is_current(weights_dir / place, weights_dir)
    }
    replaced |= repackaged_parts(need, weights_dir).keys()
    return tuple(file for file in files if file.purpose not in replaced or file.path.endswith(".json"))


def repackaged_parts(need: Need, weights_dir: Path) -> dict[Purpose, Path]:
    """What another program's files in the tree serve for, in the form that this need asks for; no damaged ones."""
    found: dict[Purpose, Path | None] = {
        purpose: find_repackaged(weights_dir, *kinds) for purpose, kinds in _repackaged_kinds(need).items()
    }
    if need.quant != "none" and not need.merged_lora:
        apart = repackaged_transformer(weights_dir, need.engine, need.num_speakers, need.quant)
        found["transformer"] = apart[0][0] if apart else None
    return {purpose: path for purpose, path in found.items() if path is not None and header_problem(path) is None}


def _repackaged_kinds(need: Need) -> dict[Purpose, tuple[Kind, ...]]:
    texts: dict[Quant, tuple[Kind, ...]] = {
        "none": ("text_none",),
        "fp8": ("text_fp8",),
        "int8": ("text_int8", "text_fp8"),
    }
    kinds: dict[Purpose, tuple[Kind, ...]] = {"text": texts[need.quant], "image": ("image",), "vae": ("vae",)}
    if need.quant == "none":
        kinds["transformer"] = ("base_none",)
        if need.engine == "infinitetalk":
            kinds["adapter"] = ("adapter_single" if need.num_speakers == 1 else "adapter_multi",)
    return {**kinds, "audio": ("audio",)}


def replacing_places(need: Need) -> dict[Purpose, str]:
    """Where the compact files of this need would be, by what they replace. A published merged LoRA has no such file."""
    form = COMPACT_FORMS[need.quant]
    encoders: dict[Purpose, str] = {"text": text_encoder_place(form), "image": IMAGE_ENCODER}
    if need.merged_lora:
        return encoders
    transformer = transformer_place(need.engine, need.num_speakers, form)
    return {"transformer": transformer, "adapter": transformer, **encoders}
