"""`talk doctor` and `talk env`: the checks as a list, as JSON, as a script of fixes; and a block for bug reports."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from infinitalk_cli import __version__
from infinitalk_cli.console import Console, errors_as_exit_codes
from infinitalk_cli.doctor import Check, Examination, examine, is_fit, read_packages
from infinitalk_cli.errors import EnvironmentUnfitError
from infinitalk_cli.hardware import Hardware, detect_hardware
from infinitalk_cli.options import with_weights_there
from infinitalk_cli.run_choice import RunChoice, Said, choose_run
from infinitalk_cli.run_reports import choice_line
from infinitalk_cli.settings_files import KEYS, VARIABLE_PREFIX, Setting, read_settings
from infinitalk_cli.weights import find_weights_dir

COMMANDS = ("talk", "python", "uv", "pip", "sudo", "wsl", "export", "unset")
"""A fix that begins with one of these is a command, any other is advice."""


def doctor(
    profile: Annotated[
        str | None, typer.Option(metavar="NAME", help="Judge this profile.", show_default="what suits the machine")
    ] = None,
    gpu: Annotated[str | None, typer.Option(metavar="N", help="Judge this GPU.", show_default="the fittest")] = None,
    weights_dir: Annotated[
        Path | None, typer.Option(help="Folder of the weights.", show_default="as for talk generate")
    ] = None,
    deep: Annotated[bool, typer.Option("--deep", help="Also try kernels and make a demo video: a minute.")] = False,
    online: Annotated[bool, typer.Option("--online", help="Also ask whether the hub of the weights answers.")] = False,
    fix: Annotated[bool, typer.Option("--fix", help="Print a script of the fixes; nothing is run.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say whether the published weights run on this machine, with which profile, and what mends what is wrong.

    Exits 0 if they can run, 3 if a required check fails.

    \b
    Examples:
    talk doctor
    talk doctor --deep --json
    talk doctor --fix > fix.sh
    """
    console = Console(as_json=as_json)
    with errors_as_exit_codes(console):
        folder = find_weights_dir(weights_dir)
        hardware = detect_hardware([folder, Path()])
        run = with_weights_there(choose_run(_said(profile, gpu), hardware), folder, num_speakers=1)
        checks = examine(Examination(hardware, read_packages(), run.choice, folder))
        if online:
            from infinitalk_cli.doctor_online import check_hub

            checks.append(check_hub())
        if deep:
            from infinitalk_cli.doctor_deep import deep_checks

            for check in deep_checks(hardware, run.gpu):
                console.note(check_line(check))
                checks.append(check)
        text = fix_script(checks) if fix else report(run, checks)
        console.result(text, doctor_record(run, checks))
        if not is_fit(checks):
            raise typer.Exit(EnvironmentUnfitError.exit_code)


def env() -> None:
    """Print what a bug report needs: versions and hardware, no names, no paths, no secrets.

    \b
    Example:
    talk env
    """
    console = Console()
    with errors_as_exit_codes(console):
        console.result(env_block(detect_hardware()), {})


def report(run: RunChoice, checks: Sequence[Check]) -> str:
    """The checks line by line, then what runs."""
    lines = [check_line(check) for check in checks]
    failed = [check for check in checks if check.required and not check.ok]
    if not failed:
        lines += ["", choice_line(run), "next: " + _next_command(run, checks)]
    else:
        names = ", ".join(check.name for check in failed)
        lines += ["", f"not fit for the published weights: {names}", "what runs here: talk generate --profile demo"]
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


def _said(profile: str | None, gpu: str | None) -> Said:
    settings = read_settings(os.environ, Path.cwd())
    for key, value in (("profile", profile), ("gpu", gpu)):
        if value is not None:
            settings[key] = Setting(value, f"--{key}")
    if settings.get("profile") and settings["profile"].value == "demo":
        settings.pop("profile")  # the doctor judges the published weights
    return Said(settings)


def _next_command(run: RunChoice, checks: Sequence[Check]) -> str:
    weights = next((check for check in checks if check.name == "weights"), None)
    if weights is not None and not weights.ok:
        return weights.fix
    return "talk generate --image face.png --audio speech.wav"


def _telling_variables() -> list[str]:
    """Variables that change what runs and hold neither a secret nor a folder."""
    settings = {VARIABLE_PREFIX + key.upper() for key in KEYS}
    wanted = settings | {"CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"}
    return sorted(wanted & set(os.environ))
