"""What made a video, written down: as JSON beside it, and in a short form in the mp4's own comment.

The short form holds only what is the same for every run of the same job, so that a run that was resumed, or repeated,
gives the same bytes. It names files without their folders: videos are passed on, and where somebody keeps their files
is nobody's business.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from infinitalk_cli import __version__
from infinitalk_cli.hardware import detect_hardware
from infinitalk_cli.job_record import RECORD_KEY, VERSION, content_digest, job_fields, record_path
from infinitalk_cli.media.drift import Drift
from infinitalk_cli.media.segments import sync_to_disk
from infinitalk_cli.request import GenerateRequest, GenerateResult, run_files
from infinitalk_cli.run_batch import job_mark
from infinitalk_cli.run_differences import Side, differences
from infinitalk_cli.run_progress import RunProgress
from infinitalk_cli.run_resume import described
from infinitalk_cli.weights import WeightFiles

PACKAGES = ("torch", "transformers", "safetensors", "av", "numpy", "pillow")
"""Those whose version may show in the frames."""

NAMED_OPTIONS = ("weights_dir", "lora", "drive_audio", "output_audio", "voice")
"""Options that hold paths."""


@dataclass(frozen=True)
class Making:
    """What is known of a run before its first frame. `identity`: what decides the frames."""

    request: GenerateRequest
    files: WeightFiles
    device: torch.device
    identity: Mapping[str, str]

    def comment(self) -> str:
        """The short form: one line of JSON."""
        request = self.request
        told: dict[str, Any] = {
            "made_by": f"talk {__version__}",
            "mark": job_mark(request),
            **chosen(request),
            "job": job_fields_without_folders(request),
            "inputs": {path.name: content_digest(path) for path in run_files(request)},
            "options": {name: without_folders(name, value) for name, value in request.told.options.items()},
            "weights": dict(weights_of(self.identity)),
            "versions": versions(),
        }
        return json.dumps(told, ensure_ascii=False)

    def record(self, drift: Drift, progress: RunProgress, result: GenerateResult, vae_dtype: str) -> dict[str, Any]:
        """The long form. `vae_dtype`: what the video VAE computed with at the end."""
        request = self.request
        paths = dict(described(self.files, "", digest=Path.absolute))
        return {
            RECORD_KEY: VERSION,
            "video": request.output.name,
            "made_by": f"talk {__version__}",
            "made_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            **chosen(request),
            "job": job_fields(request.job),
            "inputs": {str(path.absolute()): content_digest(path) for path in run_files(request)},
            "options": dict(request.told.options),
            "origins": dict(request.told.origins),
            "weights": {name: {"path": paths[name], "mark": mark} for name, mark in weights_of(self.identity)},
            "versions": versions(),
            "hardware": hardware(self.device),
            "made": {
                "width": result.width,
                "height": result.height,
                "num_frames": result.num_frames,
                "fps": result.fps,
                "num_chunks": result.num_chunks,
                "vae_dtype": vae_dtype,
            },
            "seconds": progress.stages_s,
            "peak_bytes": {"ram": progress.ram_peak_bytes, "gpu": progress.vram_peak_bytes},
            "drift": drift.summary(),
            "chunks": [asdict(chunk) for chunk in drift.chunks],
            "decides": dict(self.identity),
        }


def keep_record(output: Path, record: Mapping[str, Any]) -> Path:
    """Write a record beside its video; where. Raises: OSError: if it can't be."""
    path = record_path(output)
    if path is None:
        raise FileExistsError(0, f"{output.with_suffix('.json').name} and {output.name}.json are other files")
    draft = path.with_name(f"{path.name}.draft")
    try:
        draft.write_text(one_line_per_field(record), encoding="utf-8")
        sync_to_disk(draft)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return path


def one_line_per_field(record: Mapping[str, Any]) -> str:
    """JSON to be read by people: indented, but what lies three deep in one line, of which there may be thousands."""
    fields = list[str]()
    for name, value in record.items():
        parts: list[str]
        if isinstance(value, dict):
            parts = [f"{json.dumps(key)}: {_json(part)}" for key, part in value.items()]  # pyright: ignore[reportUnknownVariableType]
        elif isinstance(value, list):
            parts = [_json(part) for part in value]  # pyright: ignore[reportUnknownVariableType]
        else:
            fields.append(f" {json.dumps(name)}: {_json(value)}")
            continue
        ends = "{}" if isinstance(value, dict) else "[]"
        inner = ",\n  ".join(parts)
        fields.append(
            f" {json.dumps(name)}: {ends[0]}\n  {inner}\n {ends[1]}" if parts else f" {json.dumps(name)}: {ends}"
        )
    return "{\n" + ",\n".join(fields) + "\n}\n"


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def repetition_differences(request: GenerateRequest, identity: Mapping[str, str]) -> str:
    """What makes a repetition another video, in words; "" if nothing. Inputs are told elsewhere, by their name."""
    if not request.told.repeats:
        return ""
    inputs = ("job.reference", "job.speakers")
    sides = [
        Side({name: value for name, value in decides.items() if not name.startswith(inputs)})
        for decides in (request.told.repeats, identity)
    ]
    return "; ".join(differences(*sides))


def chosen(request: GenerateRequest) -> dict[str, Any]:
    """The main choices, which are asked for most."""
    profile = request.profile
    return {"engine": request.engine, "profile": profile.name, "seed": request.seed, "num_steps": profile.num_steps}


def job_fields_without_folders(request: GenerateRequest) -> dict[str, Any]:
    """The job with names instead of paths."""
    named = job_fields(request.job)
    named["reference"] = Path(named["reference"]).name
    named["turns_file"] = request.job.turns_file and request.job.turns_file.name
    for speaker in named["speakers"]:
        for field in ("audio", "mask"):
            speaker[field] = Path(speaker[field]).name if speaker[field] else None
    return named


def without_folders(name: str, value: Any) -> Any:
    """An option's value, of paths the names alone."""
    if name not in NAMED_OPTIONS or value is None:
        return value
    return Path(value).name if isinstance(value, str) else [Path(part).name for part in value]


def weights_of(identity: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """The marks of the weights by their name."""
    for name, mark in identity.items():
        own = name.removeprefix("weights.")
        if own != name and own not in ("quant", "engine", "text_encoder_quant"):
            yield own, mark


def versions() -> dict[str, str]:
    """Of what computes."""
    found = {"talk": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def hardware(device: torch.device) -> dict[str, Any]:
    """The machine of the run."""
    found = detect_hardware()
    cuda = device.type == "cuda"
    return {
        "system": f"{found.system.name} {found.system.release}, {found.system.architecture}",
        "cpu": found.cpu.name,
        "cores": found.cpu.usable_cores,
        "ram_bytes": found.ram.total_bytes,
        "device": torch.cuda.get_device_name(device) if cuda else "cpu",
        "cuda": torch.version.cuda if cuda else None,
    }
