"""`talk doctor`: will the published weights run on this machine, with which profile, and what mends what is wrong.

A check looks at facts that were gathered before (`Examination`) and says how it found them; none prints, installs or
imports torch. Versions are read from the packages' metadata and torch's CUDA from the text of its version file, so the
whole takes a fraction of a second and a broken torch can't break it. What only a run can tell - kernels, a crash of the
driver - `doctor_deep` finds out in child processes.

A check that fails is an obstacle only if it is required. Missing weights are none: the machine is fit, and the fix is
one command.
"""

from __future__ import annotations

import importlib.util
import platform
import re
import socket
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from infinitalk_cli.doctor_machine import Check, machine_checks
from infinitalk_cli.doctor_packages import TRITON, package_checks
from infinitalk_cli.errors import TalkError, WeightsError
from infinitalk_cli.hardware import Hardware
from infinitalk_cli.profile_choice import Choice, eight_bits
from infinitalk_cli.profile_table import Quant
from infinitalk_cli.weights import SPEECH, all_paths, download_command, locate

__all__ = ["Check", "Examination", "Packages", "examine", "is_fit", "read_packages"]

OLDEST_PYTHON, NEWEST_TESTED_PYTHON = (3, 10), (3, 13)
PAGE_PORT = 8418
"""Where the local page listens."""

PACKAGES = (
    "av",
    "einops",
    "ftfy",
    "huggingface_hub",
    "librosa",
    "numpy",
    "nvidia-ml-py",
    "pillow",
    "platformdirs",
    "psutil",
    "pydantic",
    "pyloudnorm",
    "rich",
    "safetensors",
    "soxr",
    "tokenizers",
    "torch",
    "transformers",
    "typer",
    "nvidia-cudnn-frontend",
    "flash-attn",
    "kokoro",
    "scenedetect",
    "sageattention",
    TRITON,
)
"""Every package that a run may use, by the name of its distribution."""


@dataclass(frozen=True)
class Packages:
    """What is installed: version by distribution, None for absent. `torch_cuda`: that torch was built for, if any."""

    versions: Mapping[str, str | None]
    torch_cuda: tuple[int, int] | None = None
    encoders: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Examination:
    """Everything the checks look at."""

    hardware: Hardware
    packages: Packages
    choice: Choice
    weights_dir: Path
    python: tuple[int, int] = (sys.version_info[0], sys.version_info[1])
    num_speakers: int = 1


def examine(found: Examination) -> list[Check]:
    """Every check that costs next to nothing, in the order in which one mends things."""
    return [
        _check_python(found.python),
        *machine_checks(found.hardware, found.choice),
        *package_checks(
            found.packages.versions,
            found.packages.torch_cuda,
            found.packages.encoders,
            found.hardware,
            found.choice.gpu,
            found.choice.profile.attention,
        ),
        *_check_weights(found),
        *_check_speech_encoder(found.weights_dir),
        _check_port(),
    ]


def is_fit(checks: list[Check]) -> bool:
    """Whether a run with the published weights can succeed here."""
    return all(check.ok for check in checks if check.required)


def read_packages() -> Packages:
    """The installed versions, without importing what is heavy."""
    versions = {name: _version(name) for name in PACKAGES}
    return Packages(versions, _torch_cuda(), _encoders())


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _torch_cuda() -> tuple[int, int] | None:
    """The CUDA of the torch build, by its version file; None for a build without."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"^cuda\b.*=\s*'(\d+)\.(\d+)'", text, re.MULTILINE)
    return (int(found[1]), int(found[2])) if found else None


def _encoders() -> frozenset[str]:
    """The encoders of PyAV that a run needs, as far as they are there."""
    try:
        from av.codec.codec import codecs_available
    except Exception:  # a damaged FFmpeg fails in many ways
        return frozenset()
    return frozenset(codecs_available) & {"libx264", "h264", "aac"}


def _check_python(python: tuple[int, int]) -> Check:
    version = f"{python[0]}.{python[1]}"
    if python < OLDEST_PYTHON:
        return Check("python", False, True, f"{version} is too old", "install Python 3.10 to 3.13")
    tested = python <= NEWEST_TESTED_PYTHON
    return Check(
        "python",
        tested,
        False,
        version if tested else f"{version} is newer than what was tested",
        "" if tested else "use Python 3.13 if packages fail to install",
    )


def _check_weights(found: Examination) -> Iterator[Check]:
    """Whether the files of the run are there, and room for them if not."""
    profile = found.choice.profile
    if profile.demo_weights:
        return
    command = download_command(found.num_speakers, _form_with_room(found))
    try:
        files = locate(found.weights_dir, num_speakers=found.num_speakers, quant=profile.quant)
    except WeightsError as error:
        yield Check("weights", False, False, error.message.splitlines()[0].rstrip(":"), command)
        yield from _check_room(found)
        return
    except TalkError as error:
        yield Check("weights", False, False, error.message, command)
        return
    from infinitalk_cli.weights_record import Record
    from infinitalk_cli.weights_tree import check_tree, list_tree

    record, wanted = Record(found.weights_dir), {path.absolute() for path in all_paths(files)}
    tree = list_tree(found.weights_dir, record)
    needed = [file for file in tree if (found.weights_dir / file.place).absolute() in wanted]
    damaged = [finding for finding in check_tree(needed, record, full=False) if finding.problem]
    if damaged:
        detail = "; ".join(f"{finding.place}: {finding.problem}" for finding in damaged)
        yield Check("weights", False, False, detail, command)
        return
    yield Check("weights", True, False, f"{len(needed)} files are there, their lengths and headers are right")


def _check_speech_encoder(weights_dir: Path) -> Iterator[Check]:
    """The published wav2vec2 is a pickle, which can run code as it is read (CVE-2025-32434): none is ever opened."""
    folder = weights_dir / SPEECH
    if (folder / "model.safetensors").is_file():
        yield Check("speech encoder", True, False, "safetensors, so reading it runs no code (CVE-2025-32434)")
    elif any(folder.glob("*.bin")):
        detail = f"{folder} holds a pickle alone, which is never opened (CVE-2025-32434)"
        yield Check("speech encoder", False, False, detail, "talk download --only audio")
    else:
        yield Check("speech encoder", True, False, "safetensors alone are read, never a pickle (CVE-2025-32434)")


def _check_room(found: Examination) -> Iterator[Check]:
    """Room for the weights that are still to come."""
    disk, quant = next(iter(found.hardware.disks), None), found.choice.profile.quant
    if disk is None or disk.free_bytes is None:
        return
    needed, other = download_bytes(quant), _form_with_room(found)
    detail = f"{disk.free_bytes / 1e9:.0f} GB free at {disk.folder}; the weights take {needed / 1e9:.0f} GB"
    if disk.free_bytes >= needed:
        yield Check("disk", True, True, detail)
    elif other != quant:
        detail = f"{detail} in bfloat16, {download_bytes(other) / 1e9:.0f} GB in {other}"
        yield Check("disk", False, False, detail, "for bfloat16 set TALK_WEIGHTS_DIR to a roomier folder")
    else:
        yield Check("disk", False, True, detail, "set TALK_WEIGHTS_DIR to a roomier folder")


def _form_with_room(found: Examination) -> Quant:
    """The form of the weights to fetch: the profile's, or an 8-bit one if the disk holds only that."""
    quant, disk = found.choice.profile.quant, next(iter(found.hardware.disks), None)
    gpu = found.choice.gpu
    if quant != "none" or gpu is None or disk is None or disk.free_bytes is None:
        return quant
    smaller = eight_bits(gpu)
    return smaller if download_bytes(smaller) <= disk.free_bytes < download_bytes(quant) else quant


def download_bytes(quant: Quant) -> int:
    """Published size of the files of a run with one speaker."""
    common, text = 4_770_000_000 + 508_000_000 + 380_000_000 + 21_000_000, {"none": 11_362_000_000}
    transformer = {"none": 65_580_000_000 + 9_949_000_000}
    return common + text.get(quant, 6_730_000_000) + transformer.get(quant, 19_500_000_000)


def _check_port() -> Check:
    """Whether a local web page could listen, which there is none of yet: nothing is to be done where it could not."""
    purpose = "no part of talk uses it yet (a local web page is to)"
    with socket.socket() as probe:
        if platform.system() != "Windows":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", PAGE_PORT))
        except OSError:
            return Check("port", False, False, f"{PAGE_PORT} is taken; {purpose}")
    return Check("port", True, False, f"{PAGE_PORT} is free; {purpose}")
