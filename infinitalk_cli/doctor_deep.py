"""What only a run can tell: tiny kernels on the GPU, then a whole demo video, each in a child process.

A crash, a hang or a message of a library is a result here, not the end of the doctor. The demo takes what the package
brings along, so it needs nothing from anywhere.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from infinitalk_cli.doctor_machine import Check
from infinitalk_cli.doctor_probe import REQUIRED
from infinitalk_cli.hardware import Gpu, Hardware, cuda_environment

PROBE_LIMIT_S = 120
DEMO_LIMIT_S = 600


def deep_checks(hardware: Hardware, gpu: Gpu | None) -> Iterator[Check]:
    """Try the GPU's kernels, if there is one, and make a demo video on it."""
    environment = dict(os.environ)
    if gpu is not None:
        environment.update(cuda_environment(hardware, gpu))
        yield from run_probes([sys.executable, "-m", "infinitalk_cli.doctor_probe"], environment)
    yield make_demo_video(environment, "cuda" if gpu is not None else "cpu")


def run_probes(command: Sequence[str], environment: Mapping[str, str], limit_s: float = PROBE_LIMIT_S) -> list[Check]:
    """The probes' answers; where the child died, what it died of."""
    code, output, errors = _run(command, environment, limit_s)
    checks = [_probed(json.loads(line)) for line in output.splitlines() if line.startswith("{")]
    if code != 0:
        last = f" after {checks[-1].name!r}" if checks else ""
        told = (errors.strip().splitlines() or ["no message"])[-1][:200]
        checks.append(Check("probe", False, True, f"{_death(code, limit_s)}{last}: {told}", "update the NVIDIA driver"))
    return checks


def make_demo_video(environment: Mapping[str, str], device: str) -> Check:
    """A second of the demo's video on the device, made the way of every video."""
    with tempfile.TemporaryDirectory(prefix="talk-doctor-", ignore_cleanup_errors=True) as folder:
        video = Path(folder) / "talk-demo.mp4"
        options = ["-o", str(video), "--max-seconds", "1", "--device", device]
        command = [sys.executable, "-m", "infinitalk_cli", "demo", "--quiet", *options]
        begun_s = time.monotonic()
        code, _, errors = _run(command, environment, DEMO_LIMIT_S)
        took_s = time.monotonic() - begun_s
        if code == 0 and video.is_file() and video.stat().st_size:
            return Check("demo video", True, True, f"made on the {device} in {took_s:.0f} s, loading included")
    told = (errors.strip().splitlines() or ["no message"])[0][:200]
    return Check("demo video", False, True, f"{_death(code, DEMO_LIMIT_S)}: {told}", "talk demo --debug")


def _probed(answer: Mapping[str, Any]) -> Check:
    name, ok = str(answer["name"]), bool(answer["ok"])
    required = name in REQUIRED
    fix = "" if ok else ("talk doctor --fix" if required else "")
    return Check(name, ok, required, str(answer["detail"]), fix)


def _run(command: Sequence[str], environment: Mapping[str, str], limit_s: float) -> tuple[int | None, str, str]:
    """Exit code (None: out of time), stdout and stderr of a child."""
    try:
        done = subprocess.run(
            command, env=dict(environment), capture_output=True, text=True, timeout=limit_s, check=False
        )
    except subprocess.TimeoutExpired as error:
        return None, _text(error.stdout), _text(error.stderr)
    return done.returncode, done.stdout, done.stderr


def _text(output: str | bytes | None) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""


def _death(code: int | None, limit_s: float) -> str:
    """How a child ended, in words."""
    if code is None:
        return f"no answer in {limit_s:.0f} s"
    return f"killed by signal {-code}" if code < 0 else f"failed with exit code {code}"
