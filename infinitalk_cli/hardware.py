"""What this machine has: GPUs, memory and its limits, cores, disks, operating system, as frozen dataclasses.

Everything that chooses or explains (profiles, estimates, the doctor) reads one `Hardware` and asks the machine nothing
itself, so that any machine can be had in a test. `detect_hardware` takes tens of milliseconds and loads no torch:
`pynvml` and `psutil` are imported inside functions. What cannot be found out is None or empty, never an error; a
machine without a driver, without a GPU or inside a container is a description like any other.

Which GPU: `choose_gpu` decides, `cuda_environment` gives the variables that tie a process to that choice. They must be
in place before torch is imported, and then torch's device 0 is the chosen card. Numbers given to `--gpu` are those of
`nvidia-smi`, also where CUDA_VISIBLE_DEVICES hides some cards; a hidden card is refused, for who hid it (a batch
system, say) had a reason. See `hardware_gpu` for orders, MIG and NVML, `hardware_memory` for limits.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infinitalk_cli.errors import EnvironmentUnfitError, InputError
from infinitalk_cli.hardware_gpu import Driver, DriverProblem, Gpu, GpuProcess, PcieLink, read_gpus, visible_gpus
from infinitalk_cli.hardware_memory import CgroupLimit, Ram, Wsl, cgroup_cpu_limit, read_ram, read_text, read_wsl

__all__ = [
    "CgroupLimit",
    "Cpu",
    "DiskSpace",
    "Driver",
    "DriverProblem",
    "Gpu",
    "GpuProcess",
    "Hardware",
    "OperatingSystem",
    "PcieLink",
    "Ram",
    "Sources",
    "Wsl",
    "choose_gpu",
    "choose_gpus",
    "cuda_environment",
    "detect_hardware",
    "usable_ram_bytes",
    "visible_gpus",
]

GIB = 1 << 30

BF16_CAPABILITY = (8, 0)
"""Ampere: the first compute capability with bfloat16 arithmetic."""

CONTAINER_MARKS = {".dockerenv": "docker", "run/.containerenv": "podman"}
"""Files that container engines put at the top of the file system."""


@dataclass(frozen=True)
class OperatingSystem:
    """`system`: "Linux", "Windows" or "Darwin"; `name` as its vendor writes it; `container`: its engine's name."""

    system: str
    name: str
    release: str
    architecture: str
    container: str = ""
    wsl: Wsl | None = None


@dataclass(frozen=True)
class Cpu:
    """`usable_cores` heeds the process's affinity and the control group's CPU quota, the other counts do not."""

    name: str
    logical_cores: int
    physical_cores: int | None
    usable_cores: int


@dataclass(frozen=True)
class DiskSpace:
    """Room for files in `folder`, which need not exist yet. Equal `filesystem`s share their room."""

    folder: Path
    free_bytes: int | None
    total_bytes: int | None
    filesystem: int | None


@dataclass(frozen=True)
class Hardware:
    """A machine at one moment.

    `gpus`: every card, in the order of `nvidia-smi`. `visible_gpus`: what CUDA may use, in its order, with MIG
    instances in place of their cards. `cuda_visible_devices`: the setting that restricts it, None where there is none.
    """

    system: OperatingSystem
    cpu: Cpu
    ram: Ram
    driver: Driver = field(default_factory=Driver)
    gpus: tuple[Gpu, ...] = ()
    visible_gpus: tuple[Gpu, ...] = ()
    cuda_visible_devices: str | None = None
    disks: tuple[DiskSpace, ...] = ()


@dataclass(frozen=True)
class Sources:
    """Where the facts come from. The defaults are this machine; tests put stand-ins and a folder in their place."""

    nvml: Any = None  # None: the module pynvml
    psutil: Any = None  # None: the module psutil
    root: Path = Path("/")
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)
    system: str = field(default_factory=platform.system)
    release: str = field(default_factory=platform.release)
    architecture: str = field(default_factory=platform.machine)
    disk_usage: Callable[[Path], tuple[int, int, int]] = shutil.disk_usage  # (total, used, free)
    pid: int = field(default_factory=os.getpid)


def detect_hardware(folders: Iterable[Path] = (), *, sources: Sources | None = None) -> Hardware:
    """Look at this machine now. `folders`: where free disk is wanted, in this order.

    Raises: EnvironmentUnfitError: if psutil, a required package, cannot be imported.
    """
    sources = sources or Sources()
    psutil = sources.psutil or _import_psutil()
    driver, gpus = read_gpus(sources.nvml, own_pid=sources.pid)
    return Hardware(
        system=_read_system(sources),
        cpu=_read_cpu(psutil, sources.root),
        ram=read_ram(psutil, sources.root),
        driver=driver,
        gpus=gpus,
        visible_gpus=visible_gpus(gpus, sources.environment),
        cuda_visible_devices=sources.environment.get("CUDA_VISIBLE_DEVICES"),
        disks=tuple(_read_disk(folder, sources.disk_usage) for folder in folders),
    )


def usable_ram_bytes(hardware: Hardware) -> int:
    """RAM that this process can take without swapping and without being killed by a control group's limit."""
    return hardware.ram.usable_bytes


def choose_gpu(hardware: Hardware, wish: str | None = None) -> Gpu | None:
    """The device to run on, None where CUDA has none.

    Without a wish it is the first of CUDA_VISIBLE_DEVICES, for the user put it there. Without that setting a device
    that computes in bfloat16 comes before one that does not, an idle one before one whose memory is mostly taken, then
    the one with the most memory, then the newest.

    Args: wish: the value of `--gpu`: a card's number, "card:instance", or the beginning of a UUID (with or without its
        "GPU-" or "MIG-", in any case).
    Raises: InputError: if the wish names no device, several, or a hidden one.
        EnvironmentUnfitError: if there is no GPU to choose from, or the one named does not answer.
    """
    if wish is not None:
        return _wished_gpu(hardware, wish.strip())
    if not hardware.visible_gpus or hardware.cuda_visible_devices is not None:
        return next(iter(hardware.visible_gpus), None)
    return max(hardware.visible_gpus, key=_fitness)  # the first of equals


def choose_gpus(hardware: Hardware, first: Gpu, number: int) -> tuple[Gpu, ...]:
    """`first` and the GPUs to share its work: those most like it, the fittest before the others.

    The instances of a MIG card can't exchange data, so they don't count.
    Raises: EnvironmentUnfitError: if there are fewer.
    """
    whole = [gpu for gpu in hardware.visible_gpus if gpu.mig_index is None]
    others = [gpu for gpu in whole if gpu is not first]
    others.sort(key=lambda gpu: (gpu.name == first.name, *_fitness(gpu)), reverse=True)
    found = (first, *others)[:number]
    if number > 1 and (len(found) < number or first.mig_index is not None):
        raise too_few_gpus(number, len(whole))
    return found


def too_few_gpus(number: int, there: int) -> EnvironmentUnfitError:
    """What to say when `number` of GPUs are asked for and so many are there."""
    count = {0: "no GPU", 1: "1 GPU"}.get(there, f"{there} GPUs")
    return EnvironmentUnfitError(
        f"--gpus {number}: this machine has {count} that could share the work",
        hint="leave --gpus out; cards that CUDA_VISIBLE_DEVICES hides and MIG instances don't count, "
        "`talk doctor` shows all",
    )


def cuda_environment(hardware: Hardware, *gpus: Gpu) -> dict[str, str]:
    """The variables to set before torch is imported, so that its devices are `gpus`; none on a machine with one GPU."""
    if len(hardware.gpus) == 1 and all(gpu.mig_index is None for gpu in gpus):
        return {}
    by_uuid = all(gpu.uuid for gpu in gpus)  # a list is of one kind
    names = [str(gpu.uuid if by_uuid else gpu.index) for gpu in gpus]
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(names)}


def _import_psutil() -> Any:
    try:
        import psutil
    except ImportError as error:
        raise EnvironmentUnfitError(
            f"the package psutil cannot be imported: {error}", hint="reinstall it: pip install --force-reinstall psutil"
        ) from error
    return psutil


def _fitness(gpu: Gpu) -> tuple[bool, bool, int, tuple[int, int], int]:
    """Sizes are rounded to GiB, so that two cards of one class differ by their generation, not by a few MB."""
    total, free, capability = gpu.total_bytes or 0, gpu.free_bytes or 0, gpu.capability or (0, 0)
    return capability >= BF16_CAPABILITY, 2 * free >= total, round(total / GIB), capability, free


def _wished_gpu(hardware: Hardware, wish: str) -> Gpu:
    if not hardware.gpus:
        reason = hardware.driver.told or "the driver shows none"
        hint = "`talk doctor` names the cause and the remedy"
        raise EnvironmentUnfitError(f"--gpu {wish}: this machine has no usable NVIDIA GPU ({reason})", hint=hint)
    named = _named_devices(hardware.gpus, wish)
    if len(named) != 1:
        fits = f"fits {len(named)} GPUs: {', '.join(str(gpu.uuid) for gpu in named)}" if named else "fits no GPU here"
        raise InputError(f"--gpu {wish} {fits}", hint=_choices(hardware))
    return _usable_device(hardware, named[0])


def _usable_device(hardware: Hardware, gpu: Gpu) -> Gpu:
    """`gpu` itself, or the first visible instance of a card in MIG mode."""
    if gpu.fault:
        hint = "restart the machine; if it comes back, the card, its power or its slot is at fault"
        raise EnvironmentUnfitError(f"GPU {gpu.label} ({gpu.name}) does not answer: {gpu.fault}", hint=hint)
    visible = [device for device in (gpu, *gpu.instances) if device in hardware.visible_gpus]
    if not visible:
        setting = hardware.cuda_visible_devices
        reason = "has no MIG instance" if setting is None else f"is hidden by CUDA_VISIBLE_DEVICES={setting!r}"
        raise InputError(f"--gpu: GPU {gpu.label} ({gpu.name}) {reason}", hint=_choices(hardware))
    return visible[0]


def _choices(hardware: Hardware) -> str:
    usable = "; ".join(f"{gpu.label} ({gpu.name})" for gpu in hardware.visible_gpus)
    return f"choose one of: {usable}" if usable else "`talk doctor` says what CUDA can use"


def _named_devices(cards: tuple[Gpu, ...], wish: str) -> list[Gpu]:
    """By number first; a UUID may begin with digits too."""
    known = [device for card in cards for device in (card, *card.instances)]
    by_label = [gpu for gpu in known if gpu.label == wish]
    beginnings = (wish.lower(), f"gpu-{wish.lower()}", f"mig-{wish.lower()}")
    return by_label or [gpu for gpu in known if wish and (gpu.uuid or "").lower().startswith(beginnings)]


def _read_system(sources: Sources) -> OperatingSystem:
    """Names from files on Linux (a container has the image's), from the standard library elsewhere."""
    if sources.system != "Linux":
        name = f"macOS {platform.mac_ver()[0]}" if sources.system == "Darwin" else f"{sources.system} {sources.release}"
        return OperatingSystem(sources.system, name.strip(), sources.release, sources.architecture)
    pretty = re.search(r'^PRETTY_NAME="?([^"\n]*)', read_text(sources.root / "etc/os-release"), re.MULTILINE)
    release = read_text(sources.root / "proc/sys/kernel/osrelease").strip()
    return OperatingSystem(
        system="Linux",
        name=pretty[1] if pretty else "Linux",
        release=release,
        architecture=sources.architecture,
        container=_container(sources),
        wsl=read_wsl(sources.root),
    )


def _container(sources: Sources) -> str:
    """The container engine by the marks it leaves; "" on the bare machine."""
    if "KUBERNETES_SERVICE_HOST" in sources.environment:
        return "kubernetes"
    marks = (engine for mark, engine in CONTAINER_MARKS.items() if (sources.root / mark).exists())
    return next(marks, sources.environment.get("container", ""))


def _read_cpu(psutil: Any, root: Path) -> Cpu:
    """The name from /proc/cpuinfo where there is one: platform.processor() is empty on most Linux systems."""
    model = re.search(r"^model name\s*:\s*(.+)$", read_text(root / "proc/cpuinfo"), re.MULTILINE)
    logical = psutil.cpu_count() or 1
    try:
        usable = len(psutil.Process().cpu_affinity())
    except (AttributeError, OSError, psutil.Error):  # macOS has no affinity
        usable = logical
    quota = cgroup_cpu_limit(root)
    if quota is not None:
        usable = max(1, min(usable, int(quota + 0.5)))
    return Cpu(model[1] if model else platform.processor(), logical, psutil.cpu_count(logical=False), usable)


def _read_disk(folder: Path, disk_usage: Callable[[Path], tuple[int, int, int]]) -> DiskSpace:
    """Of a folder that is not there yet, the nearest one above it counts."""
    existing = folder.absolute()
    try:
        while not existing.exists() and existing != existing.parent:
            existing = existing.parent
        total, _, free = disk_usage(existing)
        return DiskSpace(folder, free, total, existing.stat().st_dev)
    except OSError:
        return DiskSpace(folder, None, None, None)
