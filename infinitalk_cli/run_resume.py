"""Going on with a run that ended early: is it the same job, and where does it go on.

A video is the same bit for bit if everything that decides it is: settings, seed, the inputs' content, the weights, and
the device. `job_identity` writes that down in words, so that a refusal can name the difference. Where memory lies and
what is streamed decides nothing and is left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from datetime import datetime
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from infinitalk_cli.errors import InputError
from infinitalk_cli.job_record import content_digest
from infinitalk_cli.media import drift as drift_form
from infinitalk_cli.media.drift import Drift
from infinitalk_cli.media.part_folder import PartFolder
from infinitalk_cli.media.reference import VIDEO_FPS
from infinitalk_cli.request import GenerateRequest
from infinitalk_cli.run_differences import Side, differences
from infinitalk_cli.sampling.stream import Carried
from infinitalk_cli.weights import WeightFiles

DECIDES_NOTHING = frozenset(
    {
        *("output", "overwrite", "resume", "device", "num_gpus", "weights_dir"),
        *("resident_parameters", "convert", "told", "turns_file", "notes", "line", "sound_said"),
        *("name", "description", "num_persistent_param_in_dit", "vae_tiling", "text_encoder", "demo_weights"),
        *("lora_parameters", "blocks_from_disk"),
    }
)
"""Fields of the request and its profile without a say in the frames. The device counts as what it turns out to be."""

MARK_BYTES = 2**20

FILE = "file "
"""Begins the names under which a folder keeps what its job's files are called, for messages."""

LAST_SAMPLES = "last_samples"
"""Of the last frame, beside the fields of `Carried`."""


@dataclass(frozen=True)
class Resumed:
    """Where a run begins: from nothing, or behind the chunks of an earlier one.

    `num_frames`: finished before; `drift`: what was measured of them. `note`: where it begins, for the user.
    """

    carried: Carried | None = None
    num_frames: int = 0
    drift: Drift = field(default_factory=Drift)
    note: str = field(default="", compare=False)


def job_identity(
    request: GenerateRequest, files: WeightFiles, device: torch.device, cuts: tuple[int, ...] = ()
) -> dict[str, str]:
    """All that decides the frames, by name: settings in words, inputs by their digest, weights by size and marks.

    Args: cuts: first frames of the scenes that were found in the source.
    """
    said = dict(described(request, ""))
    weights = {f"weights.{name}": mark for name, mark in described(files, "", digest=quick_mark) if mark != "None"}
    scenes = {"scenes from frames": ", ".join(map(str, cuts))} if cuts else {}
    return {**said, **weights, **scenes, "device": device.type, "torch": torch.__version__}


def begin_or_resume(
    folder: PartFolder,
    identity: Mapping[str, str],
    files: Mapping[str, str] | None = None,
    *,
    resume: bool,
    overwrite: bool,
) -> Resumed:
    """Prepare the folder: go on with what is there, if that is wished and of this job, else start anew.

    Args: files: as `told_files`. Raises: InputError: if finished pieces of an earlier run would be lost, or are of
    another job.
    """
    files, count = files or {}, len(folder.segments())
    if not count or (overwrite and not resume):
        folder.begin({**identity, **{f"{FILE}{name}": told for name, told in files.items()}})
        return Resumed(note="--resume: nothing of an earlier run is there, so the video begins anew" if resume else "")
    pieces = f"{count} finished pieces of an earlier run" if count > 1 else "a finished piece of an earlier run"
    if not resume:
        raise InputError(
            f"{folder.path} holds {pieces}",
            hint="--resume goes on from there, --overwrite drops what is there and starts anew",
        )
    if (begun := _side(folder)) is None:
        raise InputError(
            f"{folder.path} holds {pieces}, but not of which job: its job.json is damaged or gone",
            hint="the pieces can be played; --overwrite without --resume drops them and starts anew",
        )
    if found := list(differences(begun, Side(identity, files))):
        raise InputError(
            "\n  ".join([f"{folder.path} holds {pieces}, but of another job:", *found]),
            hint="to go on: the settings and files of then; to start anew: another file with -o, or --overwrite "
            "without --resume, which drops what is there",
        )
    return _load(folder)


def told_files(request: GenerateRequest) -> dict[str, str]:
    """The name, size and time of each file of a request, by the names of `job_identity`."""
    told = dict[str, str]()
    for name, part in parts(request, ""):
        if isinstance(part, Path):
            facts = part.stat()
            when = datetime.fromtimestamp(facts.st_mtime).astimezone()
            told[name] = f"{part.name}, {facts.st_size:,} bytes of {when:%Y-%m-%d %H:%M:%S}"
    return told


def _side(folder: PartFolder) -> Side | None:
    """What a folder says of its job; None if it does not."""
    if (kept := folder.job) is None:
        return None
    files = {name.removeprefix(FILE): told for name, told in kept.items() if name.startswith(FILE)}
    return Side({name: value for name, value in kept.items() if not name.startswith(FILE)}, files)


def save_carried(folder: PartFolder, carried: Carried, num_frames: int, drift: Drift) -> None:
    """Keep what the next chunk needs and what was measured so far, once the piece before is on the disk.

    Raises: OSError: on a full disk.
    """
    tensors = {"noise_state": carried.noise_state}
    for name in ("motion", "color_reference"):
        value: torch.Tensor | None = getattr(carried, name)
        if value is not None:
            tensors[name] = value.cpu().contiguous()
    if drift.last is not None:
        tensors[LAST_SAMPLES] = drift.last.contiguous()
    counts = {"num_done": carried.num_done, "num_segments": len(folder.segments()), "num_frames": num_frames}
    told = {name: str(count) for name, count in counts.items()} | {"drift": drift_form.to_json(drift)}
    folder.write_whole(folder.carried_path.name, save(tensors, told))


def quick_mark(path: Path) -> str:
    """A large file's size and a digest of its first and last MiB: enough to notice that it is another one."""
    size = path.stat().st_size
    with path.open("rb") as file:
        hasher = hashlib.sha256(file.read(MARK_BYTES))
        file.seek(max(0, size - MARK_BYTES))
        hasher.update(file.read(MARK_BYTES))
    return f"{size} bytes, {hasher.hexdigest()[:16]}"


def _load(folder: PartFolder) -> Resumed:
    """What the last finished chunk handed on; a piece behind it, whose state was not kept, is dropped."""
    if not folder.carried_path.exists():  # killed between the first piece and its state
        folder.keep(0)
        return Resumed(note="note: the earlier run ended before its first chunk was kept whole; that is made again")
    try:
        with safe_open(folder.carried_path, framework="pt") as file:
            told: Mapping[str, str] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
        drift = drift_form.from_json(told["drift"], tensors.pop(LAST_SAMPLES, None))
        carried = Carried(num_done=int(told["num_done"]), **tensors)
        num_segments, num_frames = int(told["num_segments"]), int(told["num_frames"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{folder.carried_path} is damaged: {error}",
            hint="its pieces can be played; --overwrite without --resume drops them and starts anew",
        ) from error
    if len(folder.segments()) < num_segments:
        raise InputError(f"{folder.path} lacks some of its {num_segments} pieces", hint="--overwrite starts anew")
    folder.keep(num_segments)
    chunks = "chunk" if carried.num_done == 1 else f"{carried.num_done} chunks"
    return Resumed(carried, num_frames, drift, f"going on behind the first {chunks}, {num_frames / VIDEO_FPS:.2f} s")


def described(value: object, name: str, *, digest: object = content_digest) -> Iterator[tuple[str, str]]:
    """The parts of a value with their names, files as their digest."""
    for inner, part in parts(value, name):
        yield inner, str(digest(part)) if isinstance(part, Path) and callable(digest) else str(part)


def parts(value: object, name: str) -> Iterator[tuple[str, object]]:
    """The values that decide the frames, of dataclasses and tuples within one another, each with its name."""
    if is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            if field.name not in DECIDES_NOTHING:
                inner = f"{name}.{field.name}" if name else field.name
                yield from parts(getattr(value, field.name), inner)
    elif isinstance(value, tuple):
        for number, part in enumerate(value, start=1):
            yield from parts(part, f"{name} {number}")
    else:
        yield name, value
