"""The GPUs as NVML tells them, and which of them CUDA may use.

NVML (`pynvml`, the library under `nvidia-smi`) answers in milliseconds, without torch and without opening a CUDA
context that would itself take 300-500 MB of the memory to be measured. Any single question may go unanswered: laptops
have no PCIe counters, containers hide processes, drivers lack newer functions, a card falls off the bus. So each
question stands alone and an answer that is missing is None; only "is there a driver at all" decides the whole.

MIG splits a data-centre card into instances, each with memory and a UUID of its own. They are listed under their card;
the card itself is then not a CUDA device.

Order. NVML and `nvidia-smi` number the cards by PCI bus, and so does this program everywhere (`--gpu`, reports). CUDA
numbers them by PCI bus only with CUDA_DEVICE_ORDER=PCI_BUS_ID; its own default puts the card it deems the fastest
first. Here the numbers in CUDA_VISIBLE_DEVICES are read as PCI order unless CUDA_DEVICE_ORDER=FASTEST_FIRST is set in
so many words: they are what `nvidia-smi` shows, cards are mostly of one kind, and the run that follows is tied to the
chosen card by its UUID (`hardware.cuda_environment`), so that the card measured is the card used either way.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

DriverProblem = Literal[
    "",
    "no_package",  # nvidia-ml-py is not installed
    "no_library",  # no NVIDIA driver, or a container without its libraries
    "not_loaded",  # the kernel module is not loaded
    "version_mismatch",  # the driver was updated and the machine not restarted
    "no_permission",
    "gpu_lost",
    "failed",
]

PROBLEM_OF_CODE: dict[int, DriverProblem] = {
    4: "no_permission",
    9: "not_loaded",
    12: "no_library",
    13: "version_mismatch",
    15: "gpu_lost",
    16: "gpu_lost",
    18: "version_mismatch",
}
"""NVML's error codes (nvml.h) that mean one definite thing to the user."""

SM_CLOCK = 1  # NVML_CLOCK_SM

LEADING_NUMBER = r"\s*[+-]?\d+"
"""What C's strtoul takes from a text: "1x" is 1."""


PROBLEM_WORDS: dict[DriverProblem, str] = {
    "": "",
    "no_package": "the package nvidia-ml-py is missing, so GPUs can't be seen",
    "no_library": "no NVIDIA driver is installed",
    "not_loaded": "the NVIDIA driver is installed but not loaded",
    "version_mismatch": "the NVIDIA driver was updated, and the machine not restarted since",
    "no_permission": "this user may not use the NVIDIA driver",
    "gpu_lost": "a GPU has fallen off the bus",
    "failed": "the NVIDIA driver does not answer",
}


@dataclass(frozen=True)
class Driver:
    """The NVIDIA driver. `cuda_version` is the newest CUDA it runs, e.g. (12, 8); `detail` is NVML's own word."""

    version: str | None = None
    cuda_version: tuple[int, int] | None = None
    problem: DriverProblem = ""
    detail: str = ""

    @property
    def told(self) -> str:
        """The problem in a user's words, with the driver's own where they say more; "" without one."""
        words = PROBLEM_WORDS[self.problem]
        return f"{words} ({self.detail})" if self.problem == "failed" and self.detail else words


@dataclass(frozen=True)
class PcieLink:
    """PCIe generation and lanes. An idle card lowers the current ones to save power; `max_*` is what the slot gives."""

    generation: int | None = None
    width: int | None = None
    max_generation: int | None = None
    max_width: int | None = None


@dataclass(frozen=True)
class GpuProcess:
    """Another process on a GPU. `used_bytes` is None where the driver does not tell (Windows, containers)."""

    pid: int
    name: str | None
    used_bytes: int | None


@dataclass(frozen=True)
class Gpu:
    """One card, or one MIG instance of a card; None: the driver does not tell.

    `index` is the card's number in NVML and `nvidia-smi`. `processes` are the others on it, largest first. `mig_index`
    is set on an instance, `instances` on a card in MIG mode. `fault` says why a card does not answer.
    """

    index: int
    name: str = "NVIDIA GPU"
    uuid: str | None = None
    capability: tuple[int, int] | None = None
    total_bytes: int | None = None
    free_bytes: int | None = None
    pci_bus_id: str | None = None
    pcie: PcieLink = PcieLink()
    cuda_cores: int | None = None
    max_clock_mhz: int | None = None
    processes: tuple[GpuProcess, ...] | None = None
    mig_enabled: bool = False
    mig_index: int | None = None
    instances: tuple[Gpu, ...] = ()
    fault: str = ""

    @property
    def label(self) -> str:
        """What `--gpu` takes: "0", or "0:1" for the second MIG instance of card 0."""
        return str(self.index) if self.mig_index is None else f"{self.index}:{self.mig_index}"


def read_gpus(nvml: Any = None, *, own_pid: int) -> tuple[Driver, tuple[Gpu, ...]]:
    """The driver and every card in NVML's order. `nvml`: a stand-in for the module `pynvml`. Never raises."""
    if nvml is None:
        try:
            import pynvml as nvml
        except ImportError as error:
            return Driver(problem="no_package", detail=str(error)), ()
    try:
        nvml.nvmlInit()
    except Exception as error:  # NVML's own errors, and those of a damaged library
        return Driver(problem=_problem(error), detail=str(error)), ()
    try:
        count = _ask(nvml, "nvmlDeviceGetCount") or 0
        cards = [_read_card(nvml, index, own_pid) for index in range(count)]
        return _read_driver(nvml), tuple(cards)
    finally:
        _ask(nvml, "nvmlShutdown")


def visible_gpus(gpus: tuple[Gpu, ...], environment: Mapping[str, str]) -> tuple[Gpu, ...]:
    """The devices CUDA may use, in the order it would number them; MIG instances stand for their card.

    CUDA_VISIBLE_DEVICES is read as CUDA 13 was seen to read it: numbers, or UUIDs and unique beginnings of UUIDs, in a
    list of one kind; the list ends at the first entry that names nothing or is of another kind, and a list that names
    a device twice gives none at all.
    """
    ordered = _cuda_order(gpus, environment.get("CUDA_DEVICE_ORDER", ""))
    setting = environment.get("CUDA_VISIBLE_DEVICES")
    if setting is None:
        return tuple(device for gpu in ordered for device in _devices(gpu))
    chosen: list[Gpu] = []
    entries = setting.split(",")
    for entry in entries:
        device = _named_by(entry, ordered)
        if device is None or _kind(entry) != _kind(entries[0]):
            break
        if device in chosen:
            return ()
        chosen.append(device)
    return tuple(chosen)


def _cuda_order(gpus: tuple[Gpu, ...], order: str) -> list[Gpu]:
    """The cards by PCI bus; under FASTEST_FIRST the one with the most cores times clock before the others."""
    known = all(gpu.pci_bus_id for gpu in gpus)
    ordered = sorted(gpus, key=lambda gpu: (gpu.pci_bus_id or "").lower()) if known else list(gpus)
    if order != "FASTEST_FIRST" or not ordered:
        return ordered
    fastest = max(ordered, key=lambda gpu: (gpu.cuda_cores or 0) * (gpu.max_clock_mhz or 0))
    return [fastest, *(gpu for gpu in ordered if gpu is not fastest)]


def _devices(gpu: Gpu) -> tuple[Gpu, ...]:
    """What CUDA sees of a card: itself, its instances in MIG mode, nothing of a card that does not answer."""
    if gpu.fault:
        return ()
    return gpu.instances if gpu.mig_enabled else (gpu,)


def _kind(entry: str) -> str:
    """Of an entry of CUDA_VISIBLE_DEVICES: "GPU-" or "MIG-" for a UUID, "number", or "" for neither."""
    if entry[:4] in ("GPU-", "MIG-") and len(entry) > 4:
        return entry[:4]
    return "number" if re.match(LEADING_NUMBER, entry) else ""


def _named_by(entry: str, ordered: list[Gpu]) -> Gpu | None:
    """The device that one entry of CUDA_VISIBLE_DEVICES names; of a card in MIG mode CUDA takes the first instance."""
    kind, number = _kind(entry), re.match(LEADING_NUMBER, entry)
    if kind == "number" and number:
        named = ordered[int(number[0]) :][:1] if int(number[0]) >= 0 else []
    else:
        candidates = [device for gpu in ordered for device in gpu.instances] if kind == "MIG-" else ordered
        named = [gpu for gpu in candidates if kind and (gpu.uuid or "").lower().startswith(entry.lower())]
    return next(iter(_devices(named[0])), None) if len(named) == 1 else None


def _ask(nvml: Any, question: str, *arguments: object) -> Any:
    """NVML's answer, or None. Not only NVMLError: an old pynvml lacks names, and it fails to decode some texts."""
    try:
        return getattr(nvml, question)(*arguments)
    except Exception:
        return None


def _problem(error: Exception) -> DriverProblem:
    return PROBLEM_OF_CODE.get(getattr(error, "value", -1), "failed")


def _read_driver(nvml: Any) -> Driver:
    """`nvmlSystemGetCudaDriverVersion` counts 12.8 as 12080."""
    cuda = _ask(nvml, "nvmlSystemGetCudaDriverVersion_v2") or _ask(nvml, "nvmlSystemGetCudaDriverVersion")
    cuda_version = (int(cuda) // 1000, int(cuda) % 1000 // 10) if cuda else None
    return Driver(_text(_ask(nvml, "nvmlSystemGetDriverVersion")), cuda_version)


def _read_card(nvml: Any, index: int, own_pid: int) -> Gpu:
    """One card by NVML's number, its MIG instances included."""
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
    except Exception as error:
        return Gpu(index, fault=str(error))
    mode = _ask(nvml, "nvmlDeviceGetMigMode", handle)
    card = _read_device(nvml, handle, Gpu(index), own_pid)
    if not mode or mode[0] != 1:
        return card
    slots = range(_ask(nvml, "nvmlDeviceGetMaxMigDeviceCount", handle) or 0)
    found = ((slot, _ask(nvml, "nvmlDeviceGetMigDeviceHandleByIndex", handle, slot)) for slot in slots)
    instances = [_read_instance(nvml, instance, card, slot, own_pid) for slot, instance in found if instance]
    return replace(card, mig_enabled=True, instances=tuple(instances))


def _read_instance(nvml: Any, handle: Any, card: Gpu, slot: int, own_pid: int) -> Gpu:
    """A MIG instance; what NVML tells of cards alone (PCIe, bus, clocks) is its card's. Cores are shared: not told."""
    unknown = replace(card, mig_index=slot, uuid=None, total_bytes=None, free_bytes=None, cuda_cores=None)
    return _read_device(nvml, handle, replace(unknown, processes=None), own_pid)


def _read_device(nvml: Any, handle: Any, known: Gpu, own_pid: int) -> Gpu:
    """`known` with every answer NVML gives about `handle` put in its place."""
    try:
        memory, fault = nvml.nvmlDeviceGetMemoryInfo(handle), ""
    except Exception as error:  # a lost card still has a handle
        memory, fault = None, str(error) if _problem(error) == "gpu_lost" else ""
    capability = _ask(nvml, "nvmlDeviceGetCudaComputeCapability", handle)
    bus = _text(getattr(_ask(nvml, "nvmlDeviceGetPciInfo", handle), "busId", None))
    answers: dict[str, Any] = {
        "name": _text(_ask(nvml, "nvmlDeviceGetName", handle)),
        "uuid": _text(_ask(nvml, "nvmlDeviceGetUUID", handle)),
        "capability": (int(capability[0]), int(capability[1])) if capability else None,
        "total_bytes": int(memory.total) if memory else None,
        "free_bytes": int(memory.free) if memory else None,
        "pci_bus_id": bus,
        "cuda_cores": _ask(nvml, "nvmlDeviceGetNumGpuCores", handle),
        "max_clock_mhz": _ask(nvml, "nvmlDeviceGetMaxClockInfo", handle, SM_CLOCK),
        "processes": _read_processes(nvml, handle, own_pid),
    }
    link = _read_pcie(nvml, handle)
    given = {key: value for key, value in answers.items() if value is not None}
    return replace(known, **given, fault=fault, pcie=known.pcie if link == PcieLink() else link)


def _read_pcie(nvml: Any, handle: Any) -> PcieLink:
    """The link of one card; virtual machines answer 0 where they mean "unknown"."""
    questions = ("CurrPcieLinkGeneration", "CurrPcieLinkWidth", "MaxPcieLinkGeneration", "MaxPcieLinkWidth")
    return PcieLink(*(_ask(nvml, f"nvmlDeviceGet{question}", handle) or None for question in questions))


def _read_processes(nvml: Any, handle: Any, own_pid: int) -> tuple[GpuProcess, ...] | None:
    """The other processes on a device, largest first; None where none of the three lists is given."""
    kinds = ("ComputeRunningProcesses", "GraphicsRunningProcesses", "MPSComputeRunningProcesses")
    lists = [_ask(nvml, f"nvmlDeviceGet{kind}", handle) for kind in kinds]
    if all(entries is None for entries in lists):
        return None
    used: dict[int, int | None] = {}
    for entry in (entry for entries in lists for entry in entries or ()):
        known = used.get(int(entry.pid))
        used[int(entry.pid)] = known if entry.usedGpuMemory is None else max(known or 0, int(entry.usedGpuMemory))
    used.pop(own_pid, None)
    by_size = sorted(used.items(), key=lambda item: (-(item[1] or 0), item[0]))
    return tuple(GpuProcess(pid, _process_name(nvml, pid), size) for pid, size in by_size)


def _process_name(nvml: Any, pid: int) -> str | None:
    """The program alone: folders and arguments may hold what its user would not show in a bug report."""
    line = _text(_ask(nvml, "nvmlSystemGetProcessName", pid))
    program = re.split(r"\s-|\0", line or "")[0]
    return re.split(r"[/\\]", program)[-1] or None


def _text(value: object) -> str | None:
    """Older releases of pynvml answer in bytes."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value) if value else None
