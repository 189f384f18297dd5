"""Machines as data: recordings that answer in place of NVML, psutil and the files of the kernel.

Each `tests/data/hardware/NAME.json` is one machine. `hardware("rtx4090-desktop")` looks at it through the very code
that looks at a real one; the keywords change what matters to a choice of profile. `python -m tests.hardware_fixtures`
prints the recording of the machine it runs on, with invented UUIDs and without the names of processes. "about" says
whether a machine was recorded or composed from published sizes; the limits of control groups are added by hand.

An NVML answer is kept under the name of its function; `{"error": 3}` is NVML's error code, and a function that is not
named answers 3, "not supported".
"""

from __future__ import annotations

import importlib
import json
import platform
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from infinitalk_cli.hardware import Hardware, Sources, detect_hardware

FOLDER = Path(__file__).parent / "data" / "hardware"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))

NOT_SUPPORTED = 3
DEVICE_QUESTIONS = (
    "nvmlDeviceGetName",
    "nvmlDeviceGetUUID",
    "nvmlDeviceGetCudaComputeCapability",
    "nvmlDeviceGetMemoryInfo",
    "nvmlDeviceGetPciInfo",
    "nvmlDeviceGetCurrPcieLinkGeneration",
    "nvmlDeviceGetCurrPcieLinkWidth",
    "nvmlDeviceGetMaxPcieLinkGeneration",
    "nvmlDeviceGetMaxPcieLinkWidth",
    "nvmlDeviceGetNumGpuCores",
    "nvmlDeviceGetMaxClockInfo",
    "nvmlDeviceGetComputeRunningProcesses",
    "nvmlDeviceGetGraphicsRunningProcesses",
    "nvmlDeviceGetMPSComputeRunningProcesses",
    "nvmlDeviceGetMigMode",
    "nvmlDeviceGetMaxMigDeviceCount",
)
FILES = ("etc/os-release", "proc/sys/kernel/osrelease", "proc/self/cgroup", "proc/self/mountinfo", "proc/cpuinfo")


class RecordedNvmlError(Exception):
    """Like pynvml.NVMLError: the code is its `value`."""

    def __init__(self, value: int) -> None:
        super().__init__(f"NVML error {value}")
        self.value = value


@dataclass
class RecordedNvml:
    """Stands in for the module `pynvml`. `initialised` counts nvmlInit against nvmlShutdown."""

    recording: Mapping[str, Any]
    initialised: int = 0

    def nvmlInit(self) -> None:
        self._given(self.recording.get("nvmlInit"))
        self.initialised += 1

    def nvmlShutdown(self) -> None:
        self.initialised -= 1

    def nvmlDeviceGetCount(self) -> int:
        return len(self.recording["devices"])

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Mapping[str, Any]:
        return self._given(self.recording["devices"][index])

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: Mapping[str, Any], index: int) -> Mapping[str, Any]:
        instances = handle.get("instances", [])
        return self._given(instances[index] if index < len(instances) else {"error": 6})

    def nvmlSystemGetProcessName(self, pid: int) -> str:
        return self._given(self.recording.get("process_names", {}).get(str(pid), {"error": 6}))

    def __getattr__(self, question: str) -> Callable[..., Any]:
        """Every other question: about the system without arguments, about a device with its handle first."""
        if not question.startswith("nvml"):
            raise AttributeError(question)

        def answer(handle: Mapping[str, Any] | None = None, *_: object) -> Any:
            about = self.recording if handle is None else handle
            return self._given(about.get(question, {"error": NOT_SUPPORTED}))

        return answer

    @staticmethod
    def _given(answer: Any) -> Any:
        """An answer in the form pynvml gives it: objects with fields where the recording has fields."""
        if isinstance(answer, dict) and "error" in answer:
            raise RecordedNvmlError(answer["error"])
        if isinstance(answer, dict) and not any(key.startswith("nvml") for key in answer):
            return SimpleNamespace(**answer)
        if isinstance(answer, list):
            return [SimpleNamespace(**entry) if isinstance(entry, dict) else entry for entry in answer]
        return answer


class RecordedPsutil:
    """Stands in for the module `psutil`, as far as it is asked."""

    Error = OSError

    def __init__(self, recording: Mapping[str, Any]) -> None:
        self.recording = recording

    def virtual_memory(self) -> SimpleNamespace:
        return SimpleNamespace(**self.recording["virtual_memory"])

    def swap_memory(self) -> SimpleNamespace:
        if self.recording.get("swap_memory") is None:
            raise RuntimeError("no swap counters")
        return SimpleNamespace(**self.recording["swap_memory"])

    def cpu_count(self, logical: bool = True) -> int | None:
        return self.recording["cpu_count"]["logical" if logical else "physical"]

    def Process(self) -> SimpleNamespace:
        affinity = self.recording.get("cpu_affinity")
        return SimpleNamespace() if affinity is None else SimpleNamespace(cpu_affinity=lambda: affinity)


def recording(name: str) -> dict[str, Any]:
    """The data of one machine, free to be changed."""
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def sources(machine: Mapping[str, Any], root: Path, environment: Mapping[str, str] | None = None) -> Sources:
    """Stand-ins that answer as `machine`, its files written below `root`. `environment` adds to the recorded one."""
    for name, text in machine["files"].items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    total, free = machine["disk"]["total"], machine["disk"]["free"]
    return Sources(
        nvml=RecordedNvml(machine["nvml"]),
        psutil=RecordedPsutil(machine["psutil"]),
        root=root,
        environment={**machine.get("environment", {}), **(environment or {})},
        system=machine["system"],
        release=machine.get("release", ""),
        architecture=machine["architecture"],
        disk_usage=lambda _: (total, total - free, free),
        pid=machine.get("pid", 1),
    )


def look(machine: Mapping[str, Any], root: Path) -> Hardware:
    """`machine` as `detect_hardware` finds it, its files below `root`."""
    return detect_hardware(sources=sources(machine, root))


def hardware(
    name: str,
    *,
    free_vram_bytes: int | None = None,
    available_ram_bytes: int | None = None,
    free_disk_bytes: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> Hardware:
    """The machine of that name; `free_vram_bytes` holds for each card, disk space is that of the working folder."""
    machine = recording(name)
    for device in machine["nvml"].get("devices", []):
        if free_vram_bytes is not None:
            device["nvmlDeviceGetMemoryInfo"]["free"] = free_vram_bytes
    if available_ram_bytes is not None:
        memory = machine["psutil"]["virtual_memory"]
        memory.update(available=available_ram_bytes, total=max(memory["total"], available_ram_bytes))
    if free_disk_bytes is not None:
        machine["disk"].update(free=free_disk_bytes, total=max(machine["disk"]["total"], free_disk_bytes))
    with tempfile.TemporaryDirectory() as root:
        return detect_hardware([Path()], sources=sources(machine, Path(root), environment))


def record() -> dict[str, Any]:
    """This machine in the form of the data files."""
    import psutil

    disk = shutil.disk_usage(".")
    memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    files = {name: _file(Path("/") / name) for name in FILES if (Path("/") / name).exists()}
    return {
        "about": "recorded",
        "system": platform.system(),
        "release": platform.release(),
        "architecture": platform.machine(),
        "files": files,
        "psutil": {
            "virtual_memory": {"total": memory.total, "available": memory.available},
            "swap_memory": {"total": swap.total, "free": swap.free},
            "cpu_count": {"logical": psutil.cpu_count(), "physical": psutil.cpu_count(logical=False)},
            "cpu_affinity": psutil.Process().cpu_affinity(),
        },
        "disk": {"total": disk.total, "free": disk.free},
        "nvml": _record_nvml(),
    }


def _file(path: Path) -> str:
    """What is read of a file: of long ones the lines that matter."""
    wanted = {"cpuinfo": "model name", "mountinfo": " - cgroup"}.get(path.name, "")
    lines = [line for line in path.read_text().splitlines(keepends=True) if wanted in line]
    return "".join(lines[:1] if path.name == "cpuinfo" else lines)


def _record_nvml() -> dict[str, Any]:
    pynvml: Any = importlib.import_module("pynvml")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return {"nvmlInit": {"error": error.value}}
    handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    return {
        "nvmlSystemGetDriverVersion": pynvml.nvmlSystemGetDriverVersion(),
        "nvmlSystemGetCudaDriverVersion_v2": pynvml.nvmlSystemGetCudaDriverVersion_v2(),
        "devices": [_record_device(pynvml, handle, index) for index, handle in enumerate(handles)],
    }


def _record_device(pynvml: Any, handle: Any, index: int) -> dict[str, Any]:
    answers = {question: _record_answer(pynvml, question, handle) for question in DEVICE_QUESTIONS}
    answers["nvmlDeviceGetUUID"] = f"GPU-{index:08x}-0000-4000-8000-000000000000"
    return answers


def _record_answer(pynvml: Any, question: str, handle: Any) -> Any:
    try:
        answer = getattr(pynvml, question)(handle, *([1] if question == "nvmlDeviceGetMaxClockInfo" else []))
    except pynvml.NVMLError as error:
        return {"error": error.value}
    if question == "nvmlDeviceGetMemoryInfo":
        return {"total": answer.total, "free": answer.free, "used": answer.used}
    if question == "nvmlDeviceGetPciInfo":
        bus = answer.busId
        return {"busId": bus.decode() if isinstance(bus, bytes) else bus}
    if question.endswith("RunningProcesses"):
        return [{"pid": entry.pid, "usedGpuMemory": entry.usedGpuMemory} for entry in answer]
    return answer


if __name__ == "__main__":
    print(json.dumps(record(), indent=1))
