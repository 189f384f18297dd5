"""Checks of the machine: system, GPU, driver, memory, disk. Pure functions of what `detect_hardware` saw."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from infinitalk_cli.footprint import PUBLISHED, num_read, ram_bytes, vram_bytes
from infinitalk_cli.hardware import Driver, Gpu, Hardware, usable_ram_bytes
from infinitalk_cli.profile_choice import Choice, shape_of, why_no_gpu
from infinitalk_cli.rungs import first_rung

LEAST_OUTPUT_BYTES = 1_000_000_000
"""Below this a long video and its unfinished copy might not fit."""

NUM_NAMED = 3
"""So many programs on a GPU are named."""

DRIVER_FIXES = {
    "no_package": "python -m pip install nvidia-ml-py",
    "no_library": "install the NVIDIA driver; in a container, start it with --gpus all",
    "not_loaded": "sudo modprobe nvidia",
    "version_mismatch": "sudo reboot",
    "no_permission": "add your user to the group that owns /dev/nvidia0, or start the container with --gpus all",
    "gpu_lost": "sudo reboot",
    "failed": "run nvidia-smi; it should name the cause",
}
"""What mends each `DriverProblem`."""


@dataclass(frozen=True)
class Check:
    """How one thing was found. `required`: no run without it. `fix`: a command or an advice, "" for nothing to do."""

    name: str
    ok: bool
    required: bool
    detail: str
    fix: str = ""


def machine_checks(hardware: Hardware, choice: Choice) -> Iterator[Check]:
    """Every check of the machine for the chosen profile."""
    yield _check_system(hardware)
    yield _check_driver(hardware.driver)
    yield _check_gpu(hardware, choice)
    if choice.gpu is not None and not choice.profile.demo_weights:  # which fit everywhere
        yield _check_vram(choice, choice.gpu)
        yield _check_pcie(choice.gpu)
    yield _check_ram(hardware, choice)
    yield _check_swap(hardware)
    yield from _check_output_disk(hardware)


def _check_system(hardware: Hardware) -> Check:
    system = hardware.system
    parts = [system.name, system.architecture, f"{hardware.cpu.usable_cores} cores"]
    if system.container:
        parts.append(f"inside {system.container}")
    if system.wsl is not None:
        parts.append(f"WSL {system.wsl.version}")
    if system.wsl is not None and system.wsl.version == 1:
        return Check("system", False, True, ", ".join(parts), "wsl --set-version DISTRIBUTION 2")
    return Check("system", True, True, ", ".join(parts))


def _check_driver(driver: Driver) -> Check:
    if driver.problem:
        return Check("driver", False, True, driver.told, DRIVER_FIXES[driver.problem])
    cuda = "" if driver.cuda_version is None else f", runs CUDA up to {_dotted(driver.cuda_version)}"
    return Check("driver", True, True, f"NVIDIA {driver.version or 'of unknown version'}{cuda}")


def _check_gpu(hardware: Hardware, choice: Choice) -> Check:
    """The GPU of the run; others are counted."""
    gpu = choice.gpu
    if gpu is None:
        hidden = hardware.cuda_visible_devices is not None and bool(hardware.gpus)
        fix = "unset CUDA_VISIBLE_DEVICES" if hidden else "the demo runs without: talk demo"
        reason = choice.reasons[0] if hardware.visible_gpus and choice.reasons else why_no_gpu(hardware)
        return Check("gpu", False, True, reason, fix)
    size = f", {gpu.total_bytes / 1e9:.0f} GB" if gpu.total_bytes else ""
    capability = f", compute capability {_dotted(gpu.capability)}" if gpu.capability else ""
    others = len(hardware.visible_gpus) - 1
    more = f"; {others} more: --gpu names another, --gpus shares the work" if others > 0 else ""
    return Check("gpu", True, True, f"{gpu.label}: {gpu.name}{size}{capability}{more}")


def _check_vram(choice: Choice, gpu: Gpu) -> Check:
    if gpu.free_bytes is None:
        return Check("gpu memory", True, False, "the driver does not tell how much is free")
    profile, shape = choice.profile, shape_of(choice.profile)
    need = vram_bytes(shape, profile, first_rung(profile, shape, gpu.free_bytes))
    detail = f"{_gb(gpu.free_bytes)} free, {profile.name} is estimated to take {_gb(need)}{_holders(gpu)}"
    fits = need <= gpu.free_bytes
    return Check("gpu memory", fits, True, detail, "" if fits else choice.remedy or "close other programs on the GPU")


def _holders(gpu: Gpu) -> str:
    """Who holds memory on the card, the largest first."""
    named = [
        f"{process.name or 'a program'} (pid {process.pid}"
        + (f", {_gb(process.used_bytes)})" if process.used_bytes else ")")
        for process in gpu.processes or ()
    ]
    more = f" and {len(named) - NUM_NAMED} more" if len(named) > NUM_NAMED else ""
    return f"; on it: {', '.join(named[:NUM_NAMED])}{more}" if named else ""


def _check_pcie(gpu: Gpu) -> Check:
    generation, width = gpu.pcie.max_generation, gpu.pcie.max_width
    if generation is None or width is None:
        return Check("pcie", True, False, "the driver does not tell")
    narrow = width < 8 or generation < 3
    fix = "streaming weights will be slow: a slot with 8 lanes or more" if narrow else ""
    return Check("pcie", not narrow, False, f"generation {generation}, {width} lanes", fix)


def _check_ram(hardware: Hardware, choice: Choice) -> Check:
    usable, ram = usable_ram_bytes(hardware), hardware.ram
    limit = f" (limit {_gb(ram.cgroup.limit_bytes)} by {ram.cgroup.folder})" if ram.cgroup else ""
    detail = f"{_gb(usable)} free of {_gb(ram.limit_bytes)}{limit}"
    if choice.gpu is None or choice.profile.demo_weights:
        return Check("ram", True, True, detail)
    profile, shape = choice.profile, shape_of(choice.profile)
    resident = first_rung(profile, shape, choice.gpu.free_bytes or 0).num_resident
    read = num_read(profile, resident, usable)
    need = ram_bytes(profile, resident, num_read=read)
    detail = f"{detail}, {profile.name} is estimated to take {_gb(need)}"
    if read:
        detail += f"; {read} of {PUBLISHED.num_layers} blocks are read from the disk in every pass"
    return Check("ram", need <= usable, True, detail, "" if need <= usable else _ram_fix(hardware, need))


def _ram_fix(hardware: Hardware, need: int) -> str:
    gib = -(-need // (1 << 30)) + 2
    if hardware.system.wsl is not None:
        where = hardware.system.wsl.config or "%UserProfile%\\.wslconfig"
        return f"write memory={gib}GB under [wsl2] in {where}, then: wsl --shutdown"
    if hardware.ram.cgroup is not None and hardware.ram.cgroup.limit_bytes < hardware.ram.total_bytes:
        return f"raise the memory limit of the container or job to {gib} GiB"
    return "close other programs"


def _check_output_disk(hardware: Hardware) -> Iterator[Check]:
    """Room for the videos in the working folder, the last of the disks that were looked at."""
    disk = hardware.disks[-1] if hardware.disks else None
    if disk is None or disk.free_bytes is None:
        return
    roomy = disk.free_bytes >= LEAST_OUTPUT_BYTES
    detail = f"{_gb(disk.free_bytes)} free for videos in this folder"
    yield Check("output disk", roomy, False, detail, "" if roomy else "free some room, or name another folder with -o")


def _check_swap(hardware: Hardware) -> Check:
    total = hardware.ram.swap_total_bytes
    if total is None:
        return Check("swap", True, False, "the system does not tell")
    return Check("swap", True, False, f"{_gb(total)}; estimates do not count on it")


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB"
