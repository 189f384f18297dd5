"""What `talk doctor` and `talk env` print, and how they come to it. Imported when one of them runs: help needs none."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from infinitalk_cli import __version__
from infinitalk_cli.doctor import Check, Examination, examine, is_fit, read_packages
from infinitalk_cli.doctor_cuda import check_cuda
from infinitalk_cli.errors import TalkError
from infinitalk_cli.hardware import Hardware, detect_hardware
from infinitalk_cli.profiles import find_profile
from infinitalk_cli.run_choice import RunChoice, Said, choose_run, with_weights_there
from infinitalk_cli.run_reports import choice_line
from infinitalk_cli.settings_files import KEYS, VARIABLE_PREFIX, Setting, read_settings
from infinitalk_cli.weights import find_weights_dir

COMMANDS = ("talk", "python", "uv", "pip", "sudo", "wsl", "export", "unset")
"""A fix that begins with one of these is a command, any other is advice."""


OF_THE_GPU = ("driver", "gpu", "torch build")
"""Checks that the demo can do without."""

SETTINGS = "settings"
"""The check of files and variables; while it fails no run starts, not even the demo."""


@dataclass(frozen=True)
class Wish:
    """What to judge; None leaves the choice to the machine."""

    profile: str | None = None
    gpu: str | None = None
    weights_dir: Path | None = None
    num_speakers: int = 1

    @property
    def is_demo(self) -> bool:
        """Whether the demo's own small weights are judged, not the published ones."""
        return self.profile is not None and find_profile(self.profile).demo_weights


def without_gpu(check: Check) -> Check:
    """The check as the demo sees it, which computes without a GPU where there is none that works."""
    if check.ok or check.name not in OF_THE_GPU:
        return check
    return replace(check, required=False, detail=f"{check.detail}; the demo runs without", fix="")


def judge(wish: Wish) -> tuple[Hardware, RunChoice, list[Check]]:
    """Look at the machine and check what a run needs."""
    folder = find_weights_dir(wish.weights_dir)
    hardware = detect_hardware([folder, Path()])
    run, wrong_settings = choose_by_settings(wish, hardware)
    run = with_weights_there(run, folder, num_speakers=wish.num_speakers)
    found = Examination(hardware, read_packages(), run.choice, folder, num_speakers=wish.num_speakers)
    checks = [*wrong_settings, *examine(found)]
    if wish.is_demo:
        checks = [without_gpu(check) for check in checks]
    if run.gpu is not None:
        checks.insert(
            next(i for i, check in enumerate(checks, 1) if check.name == "gpu"), check_cuda(hardware, run.gpu)
        )
    return hardware, run, checks


def choose_by_settings(wish: Wish, hardware: Hardware) -> tuple[RunChoice, list[Check]]:
    """The profile to judge; settings of files and variables that are wrong make a failed check and count for nothing.

    Raises: InputError, EnvironmentUnfitError: for the wish itself.
    """
    wished = {"profile": wish.profile, "gpu": wish.gpu}
    options = {key: Setting(value, f"--{key}") for key, value in wished.items() if value is not None}
    try:
        return choose_run(_said({**read_settings(os.environ, Path.cwd()), **options}), hardware), []
    except TalkError as error:
        run = choose_run(_said(options), hardware)
        return run, [Check(SETTINGS, False, True, error.message, error.hint or "correct it there, or take it out")]


def env_block_here() -> str:
    """`env_block` of this machine."""
    return env_block(detect_hardware())


def report(run: RunChoice, checks: Sequence[Check]) -> str:
    """The checks line by line, then what runs."""
    lines = [check_line(check) for check in checks]
    failed = [check for check in checks if check.required and not check.ok]
    if not failed:
        lines += ["", choice_line(run), "next: " + _next_command(run, checks)]
    else:
        names = [check.name for check in failed]
        demo = "what runs here: talk demo"
        if SETTINGS in names:
            demo = "nothing runs here until the settings are right"
        what = "the published weights"
        if run.base.demo_weights and run.said.value("profile"):
            what, demo = "the demo", "talk doctor --profile demo --fix prints what mends it"
        lines += ["", f"not fit for {what}: {', '.join(names)}", demo]
    return "\n".join(lines)


def check_line(check: Check) -> str:
    """Mark, name and detail, and below it the fix."""
    mark = "ok  " if check.ok else "FAIL" if check.required else "note"
    line = f"{mark} {check.name}: {check.detail}"
    return f"{line}\n     fix: {check.fix}" if check.fix and not check.ok else line


def doctor_record(run: RunChoice, checks: Sequence[Check]) -> dict[str, object]:
    """The outcome as `--json` prints it. `profile`: what does run, so the demo if the rest does not."""
    fit = is_fit(list(checks))
    return {"ok": fit, "profile": run.base.name if fit else "demo", "checks": [asdict(check) for check in checks]}


def fix_script(checks: Sequence[Check]) -> str:
    """A shell script of the fixes; what is no command stands as a comment."""
    lines = ["#!/bin/sh", "set -e"]
    for check in checks:
        if check.ok or not check.fix:
            continue
        lines.append(f"# {check.name}: {check.detail}")
        lines.append(check.fix if check.fix.split(" ")[0] in COMMANDS else f"# {check.fix}")
    return "\n".join(lines)


def env_block(hardware: Hardware) -> str:
    """Versions and hardware in a form to paste."""
    packages = read_packages()
    cuda = packages.torch_cuda
    system = hardware.system
    lines = [
        f"talk {__version__}",
        f"python {platform.python_version()}, {system.name}, {system.architecture}, {hardware.cpu.name}",
        f"ram {hardware.ram.limit_bytes / 1e9:.1f} GB, {hardware.ram.usable_bytes / 1e9:.1f} GB free",
        f"driver {hardware.driver.version or hardware.driver.problem}",
        *(
            f"gpu {gpu.label} {gpu.name}, {(gpu.total_bytes or 0) / 1e9:.1f} GB, "
            f"{(gpu.free_bytes or 0) / 1e9:.1f} GB free"
            for gpu in hardware.gpus
        ),
        f"torch built for {'CUDA ' + '.'.join(map(str, cuda)) if cuda else 'the CPU'}",
        *(f"{name} {version}" for name, version in packages.versions.items() if version),
        *(f"{name}={os.environ[name]}" for name in _telling_variables()),
    ]
    return "\n".join(lines)


def _said(settings: Mapping[str, Setting]) -> Said:
    """What was said, without a file's or variable's wish for the demo: the doctor judges the published weights."""

    def is_kept(key: str, said: Setting) -> bool:
        return (key, said.value) != ("profile", "demo") or said.origin.startswith("--")

    return Said({key: said for key, said in settings.items() if is_kept(key, said)})


def _next_command(run: RunChoice, checks: Sequence[Check]) -> str:
    if run.base.demo_weights:
        return "talk demo"
    weights = next((check for check in checks if check.name == "weights"), None)
    if weights is not None and not weights.ok:
        return weights.fix
    return "talk generate --image face.png --audio speech.wav"


def _telling_variables() -> list[str]:
    """Variables that change what runs and hold neither a secret nor a folder."""
    settings = {VARIABLE_PREFIX + key.upper() for key in KEYS}
    wanted = settings | {"CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"}
    return sorted(wanted & set(os.environ))
