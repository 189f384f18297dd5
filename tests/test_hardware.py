"""The whole of a machine: recorded ones, and the one at hand."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from infinitalk_cli.errors import TalkError
from infinitalk_cli.hardware import Sources, detect_hardware, usable_ram_bytes
from tests.hardware_fixtures import NAMES, RecordedNvml, RecordedPsutil, hardware, look, recording

GIB = 1 << 30


class TestMachine:
    @pytest.mark.parametrize("name", NAMES)
    def test_every_recorded_machine_is_understood(self, name: str) -> None:
        found = hardware(name)
        assert found.ram.total_bytes >= found.ram.available_bytes >= usable_ram_bytes(found) > 0
        assert 1 <= found.cpu.usable_cores <= found.cpu.logical_cores
        assert found.disks[0].free_bytes
        for gpu in found.visible_gpus:
            assert gpu.total_bytes is not None
            assert gpu.free_bytes is not None
            assert 0 < gpu.free_bytes <= gpu.total_bytes
        assert bool(found.gpus) == (found.driver.problem == "")
        json.dumps(asdict(found), default=str)

    def test_recordings_can_be_varied(self) -> None:
        found = hardware("rtx4090-desktop", free_vram_bytes=9 * GIB, available_ram_bytes=90 * GIB, free_disk_bytes=GIB)
        assert found.gpus[0].free_bytes == 9 * GIB
        assert (usable_ram_bytes(found), found.ram.total_bytes) == (90 * GIB, 90 * GIB)
        assert found.disks[0].free_bytes == GIB

    def test_names_of_system_processor_and_container(self) -> None:
        docker, pod = hardware("a10g-docker"), hardware("l4-kubernetes")
        assert (docker.system.name, docker.system.release) == ("Ubuntu 22.04.4 LTS", "6.8.0-1021-aws")
        assert (docker.system.container, pod.system.container) == ("docker", "kubernetes")
        assert docker.cpu.name == "AMD EPYC 7R32"
        assert hardware("rtx3090-desktop").system.container == ""

    def test_affinity_limits_the_usable_cores(self, tmp_path: Path) -> None:
        machine = recording("rtx3090-desktop")
        machine["psutil"]["cpu_affinity"] = [0, 1, 2]
        assert look(machine, tmp_path).cpu.usable_cores == 3
        machine["psutil"]["cpu_affinity"] = None  # macOS has none
        assert look(machine, tmp_path).cpu.usable_cores == 20

    def test_swap_counters_that_the_kernel_hides_are_unknown(self, tmp_path: Path) -> None:
        machine = recording("rtx3090-desktop")
        machine["psutil"]["swap_memory"] = None
        found = look(machine, tmp_path)
        assert (found.ram.swap_total_bytes, found.ram.swap_free_bytes) == (None, None)

    def test_disk_space_of_a_folder_that_does_not_exist_yet(self, tmp_path: Path) -> None:
        asked: list[Path] = []

        def disk_usage(folder: Path) -> tuple[int, int, int]:
            asked.append(folder)
            return 100, 40, 60

        nvml, psutil = RecordedNvml({"nvmlInit": {"error": 12}}), RecordedPsutil(recording("no-gpu-laptop")["psutil"])
        stand_ins = Sources(nvml=nvml, psutil=psutil, root=tmp_path, environment={}, disk_usage=disk_usage)
        found = detect_hardware([tmp_path / "new" / "weights", tmp_path], sources=stand_ins)
        assert asked == [tmp_path, tmp_path]
        assert [(disk.folder, disk.free_bytes, disk.total_bytes) for disk in found.disks] == [
            (tmp_path / "new" / "weights", 60, 100),
            (tmp_path, 60, 100),
        ]
        assert found.disks[0].filesystem == found.disks[1].filesystem is not None

    def test_a_disk_that_cannot_be_asked_is_unknown(self, tmp_path: Path) -> None:
        def disk_usage(folder: Path) -> tuple[int, int, int]:
            raise PermissionError(folder)

        nvml, psutil = RecordedNvml({"nvmlInit": {"error": 12}}), RecordedPsutil(recording("no-gpu-laptop")["psutil"])
        stand_ins = Sources(nvml=nvml, psutil=psutil, root=tmp_path, environment={}, disk_usage=disk_usage)
        (disk,) = detect_hardware([tmp_path], sources=stand_ins).disks
        assert (disk.free_bytes, disk.total_bytes) == (None, None)

    def test_a_missing_psutil_is_an_error_with_a_remedy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "psutil", None)
        with pytest.raises(TalkError, match="psutil") as caught:
            detect_hardware()
        assert "pip install" in caught.value.hint

    def test_the_machine_at_hand_is_described(self, tmp_path: Path) -> None:
        found = detect_hardware([tmp_path])
        assert found.ram.total_bytes >= usable_ram_bytes(found) > 0
        assert found.disks[0].free_bytes
        assert found.system.name
        assert bool(found.gpus) <= (found.driver.version is not None)

    def test_looking_loads_neither_torch_nor_numpy_and_importing_nothing_heavy(self) -> None:
        code = """import sys
import infinitalk_cli.hardware as hardware
assert not {"pynvml", "psutil", "torch", "numpy"} & set(sys.modules), "import loads packages"
hardware.detect_hardware()
assert not {"torch", "numpy"} & set(sys.modules), "detection loads packages"
"""
        subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
