"""When `talk download` and a first run make compact files without being asked, and how they do.

Only what costs no quality is done so: CLIP's vision tower in fp16 and the others in bf16 hold the very values that a
GPU run computes with. Deciding reads names and lengths alone, so that a command with nothing to do loads no torch.
Nothing here may stop what it is done for: a folder that can't be written to or a full disk leaves the published files
in use, and any other failure is a note.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from infinitalk_cli.errors import DoesNotFitError, InputError, TalkError
from infinitalk_cli.progress import OnNote, OnProgress
from infinitalk_cli.weights import BASE, WeightFiles
from infinitalk_cli.weights_record import Record, locked

if TYPE_CHECKING:
    from infinitalk_cli.convert import Conversion

Part = Literal["image", "transformer", "text"]

MARGIN_BYTES = 10 * 10**9
"""Left free by the large files, which save loading time but no room until their sources go."""


def pays(files: WeightFiles, free_bytes: int) -> tuple[Part, ...]:
    """What of a run's files is worth converting, with so much room on their disk.

    Files that are compact, in 8 bits or repackaged by others stay as they are, whatever the room.
    """
    found: list[Part] = []
    if files.image_encoder.suffix == ".pth":
        found.append("image")
    if files.adapter is not None and files.dit_shards[0].parent.name == BASE:
        sources = sum(path.stat().st_size for path in (*files.dit_shards, files.adapter))
        needed = sources // 2  # published in float32
        if free_bytes >= needed + MARGIN_BYTES:
            found.append("transformer")
            free_bytes -= needed
    if files.text_encoder.suffix == ".pth" and free_bytes >= files.text_encoder.stat().st_size + MARGIN_BYTES:
        found.append("text")
    return tuple(found)


def convert_what_pays(
    weights_dir: Path, files: WeightFiles, *, num_speakers: int, on_note: OnNote, on_progress: OnProgress
) -> bool:
    """Make the compact files that pay, if the folder lets us; whether there are new ones.

    Args: files: as `locate` finds them now. on_note: told before anything is made, and of failures.
    """
    parts = pays(files, shutil.disk_usage(weights_dir).free)
    if not parts or not os.access(weights_dir, os.W_OK):
        return False
    try:
        with locked(weights_dir, on_note):
            return _convert(weights_dir, files, num_speakers, parts, on_note, on_progress)
    except (InputError, DoesNotFitError):  # a folder for reading alone, or no room
        return False
    except TalkError as error:
        on_note(f"note: the weights are not converted: {error.message}")
        return False


def make_files(conversions: Sequence[Conversion], weights_dir: Path, record: Record, on_progress: OnProgress) -> None:
    """Make files one after the other and record their digests, so that `verify --full` knows them.

    Raises: WeightsError, DoesNotFitError: as `Conversion.run`.
    """
    from infinitalk_cli.download import Meter

    meter = Meter(sum(conversion.num_bytes for conversion in conversions), stage="convert")
    for conversion in conversions:
        sha256 = conversion.run(meter.telling(on_progress, conversion.path.name))
        record.add(conversion.path.relative_to(weights_dir).as_posix(), sha256, verified=False)


def known_digest(weights_dir: Path, record: Record) -> Callable[[Path], str]:
    """The digest that was recorded of a file which has not changed since, else nothing."""

    def sha256_of(path: Path) -> str:
        entry = record.known(path.relative_to(weights_dir).as_posix()) if path.is_relative_to(weights_dir) else None
        return entry.sha256 if entry else ""

    return sha256_of


def _convert(
    weights_dir: Path,
    files: WeightFiles,
    num_speakers: int,
    parts: Sequence[Part],
    on_note: OnNote,
    on_progress: OnProgress,
) -> bool:
    """Plan and make; the folder is locked."""
    from infinitalk_cli.convert import is_done, refuse_full_disk

    record = Record(weights_dir)
    planned = list(_plans(weights_dir, files, num_speakers, parts, record))
    to_make = [conversion for conversion in planned if not is_done(conversion, weights_dir)]
    refuse_full_disk(to_make)
    if to_make:
        names = ", ".join(conversion.path.name for conversion in to_make)
        num_bytes = sum(conversion.num_bytes for conversion in to_make)
        on_note(f"converting the weights once: {names}, {num_bytes / 1e9:.1f} GB; --no-convert skips it")
        make_files(to_make, weights_dir, record, on_progress)
    return bool(planned)


def _plans(
    weights_dir: Path, files: WeightFiles, num_speakers: int, parts: Sequence[Part], record: Record
) -> Iterator[Conversion]:
    """The conversions of these parts, but for a transformer that would grow, as one with 8-bit layers does."""
    from infinitalk_cli.convert import Recipe, plan_image_encoder, plan_text_encoder, plan_transformer

    recipe, sha256_of = Recipe(weights_dir, "bf16", num_speakers, files.engine), known_digest(weights_dir, record)
    for part in parts:
        if part == "image":
            planned = plan_image_encoder(recipe, sha256_of)
        elif part == "text":
            planned = plan_text_encoder(recipe, sha256_of)
        else:
            planned = plan_transformer(recipe, sha256_of)
            if planned is not None and planned.num_bytes > sum(source.size for source in planned.sources):
                planned = None
        if planned is not None:
            yield planned
