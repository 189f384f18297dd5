"""On which rung runs went well on this machine, where the arithmetic had hoped for more: one JSON file per kind of GPU.

A rung is kept under what it depends on: picture, length of a chunk, form of the weights, LoRAs beside them and the
VAE's numbers. It counts for runs that find no more free memory than the one that had to step down; with more, the
arithmetic has its say again. A file that can't be read or is of another shape counts as none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, cast

from infinitalk_cli.footprint import JobShape, Rung
from infinitalk_cli.profile_table import Profile

SAME_FREE = 1.02
"""So much more free memory is still taken for the same."""


def rung_folder() -> Path:
    """Where rungs are kept, there or not."""
    import platformdirs

    return Path(platformdirs.user_data_dir("infinitalk-cli", appauthor=False)) / "rungs"


def store_rung(
    gpu: str, shape: JobShape, profile: Profile, rung: Rung, free_bytes: int, folder: Path | None = None
) -> None:
    """Keep the rung that works with `free_bytes`. Where the folder can't be written to nothing is kept."""
    path = _path(gpu, folder)
    entries = {**_read(path), _key(shape, profile): {"free_bytes": free_bytes, "rung": asdict(rung)}}
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(entries, indent=1), encoding="utf-8")
        part.replace(path)


def stored_rung(
    gpu: str, shape: JobShape, profile: Profile, free_bytes: int, folder: Path | None = None
) -> Rung | None:
    """The rung that worked for such a run with as much free memory; None if none is known."""
    try:
        entry = _read(_path(gpu, folder))[_key(shape, profile)]
        stored = cast("Mapping[str, Any]", entry["rung"])
        if free_bytes > SAME_FREE * float(entry["free_bytes"]):
            return None
        numbers = [stored[name] for name in ("num_resident", "vae_tile", "attention_tokens", "ffn_tokens")]
        if set(stored) != {field.name for field in fields(Rung)}:
            return None
        if any(type(number) is not int or number < 0 for number in numbers if number is not None):
            return None
        return Rung(**stored) if stored["num_resident"] is not None and stored["ffn_tokens"] else None
    except (KeyError, TypeError, ValueError):
        return None


def _key(shape: JobShape, profile: Profile) -> str:
    weights = profile.quant if profile.quant != "none" else profile.dtype
    beside = f", LoRAs of {profile.lora_parameters} beside" if profile.lora_parameters else ""
    vae = "" if profile.vae_dtype == "auto" else f", VAE in {profile.vae_dtype}"
    size = f"{shape.width}x{shape.height}, {profile.chunk_frames} frames, {shape.num_speakers} speaking"
    return f"{size}, {weights}{beside}{vae}"


def _path(gpu: str, folder: Path | None) -> Path:
    return (folder or rung_folder()) / f"{re.sub(r'[^A-Za-z0-9]+', '-', gpu).strip('-')}.json"


def _read(path: Path) -> dict[str, Any]:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return cast("dict[str, Any]", stored) if isinstance(stored, dict) else {}
