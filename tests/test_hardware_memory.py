"""Limits of control groups and WSL, on stand-ins for the kernel's files and under a real limit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from infinitalk_cli.hardware import usable_ram_bytes
from infinitalk_cli.hardware_memory import cgroup_cpu_limit, cgroup_memory_limit, read_wsl
from tests.hardware_fixtures import hardware, look, recording

MIB, GIB = 1 << 20, 1 << 30

V2_MOUNT = "35 24 0:30 {inside} /sys/fs/cgroup rw,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNT = "33 32 0:29 {inside} /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"


def write(root: Path, files: Mapping[str, object]) -> Path:
    """Kernel files below `root`; returns it."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n")
    return root


def v2(root: Path, group: str, files: Mapping[str, object], inside: str = "/") -> Path:
    """A machine with control groups v2: this process in `group`, the mount showing what is `inside`."""
    groups = {f"sys/fs/cgroup/{name}": value for name, value in files.items()}
    mounts = V2_MOUNT.format(inside=inside)
    return write(root, {"proc/self/cgroup": f"0::{group}", "proc/self/mountinfo": mounts, **groups})


def v1(root: Path, group: str, files: Mapping[str, object], inside: str = "/") -> Path:
    groups = {f"sys/fs/cgroup/memory/{name}": value for name, value in files.items()}
    memberships = f"9:pids:/elsewhere\n4:cpuset,memory:{group}"
    return write(
        root, {"proc/self/cgroup": memberships, "proc/self/mountinfo": V1_MOUNT.format(inside=inside), **groups}
    )


class TestControlGroups:
    def test_v2_without_limits_is_no_limit(self, tmp_path: Path) -> None:
        root = v2(tmp_path, "/user.slice/a", {"user.slice/memory.max": "max", "user.slice/a/memory.max": "max"})
        assert cgroup_memory_limit(root) is None

    def test_v2_counts_an_ancestor_whose_own_group_is_unlimited(self, tmp_path: Path) -> None:
        files = {"job/memory.max": 8 * GIB, "job/memory.current": 3 * GIB, "job/step/memory.max": "max"}
        limit = cgroup_memory_limit(v2(tmp_path, "/job/step", files))
        assert limit is not None
        assert (limit.version, limit.limit_bytes, limit.room_bytes) == (2, 8 * GIB, 5 * GIB)
        assert limit.folder == Path("/sys/fs/cgroup/job")

    def test_the_level_with_the_least_room_counts_not_the_smallest_limit(self, tmp_path: Path) -> None:
        files = {
            "job/memory.max": 16 * GIB,
            "job/memory.current": 15 * GIB,  # other processes of the job
            "job/step/memory.max": 8 * GIB,
            "job/step/memory.current": 1 * GIB,
        }
        limit = cgroup_memory_limit(v2(tmp_path, "/job/step", files))
        assert limit is not None
        assert (limit.limit_bytes, limit.room_bytes) == (16 * GIB, 1 * GIB)

    def test_v2_slows_down_from_the_high_mark_on(self, tmp_path: Path) -> None:
        files = {"job/memory.max": 8 * GIB, "job/memory.high": 6 * GIB, "job/memory.current": GIB}
        limit = cgroup_memory_limit(v2(tmp_path, "/job", files))
        assert limit is not None
        assert (limit.limit_bytes, limit.room_bytes) == (6 * GIB, 5 * GIB)

    def test_cached_files_count_as_room_and_shared_memory_does_not(self, tmp_path: Path) -> None:
        stat = f"anon {GIB}\nfile {4 * GIB}\nshmem {2 * GIB}\ninactive_file {GIB}\nactive_file {GIB}"
        files = {"memory.max": 8 * GIB, "memory.current": 5 * GIB, "memory.stat": stat}
        limit = cgroup_memory_limit(v2(tmp_path, "/", files))
        assert limit is not None
        assert limit.room_bytes == 5 * GIB

    def test_room_never_exceeds_the_limit(self, tmp_path: Path) -> None:
        stat = f"inactive_file {2 * GIB}"  # read a moment after the usage
        limit = cgroup_memory_limit(
            v2(tmp_path, "/", {"memory.max": 8 * GIB, "memory.current": GIB, "memory.stat": stat})
        )
        assert limit is not None
        assert limit.room_bytes == 8 * GIB

    def test_a_group_over_its_limit_has_no_room(self, tmp_path: Path) -> None:
        limit = cgroup_memory_limit(v2(tmp_path, "/", {"memory.max": GIB, "memory.current": 2 * GIB}))
        assert limit is not None
        assert limit.room_bytes == 0

    @pytest.mark.parametrize("group", ["/docker/c1", "/docker/c1/inner", "/elsewhere", "/../c2"])
    def test_a_container_that_sees_only_its_own_group(self, tmp_path: Path, group: str) -> None:
        root = v2(tmp_path, group, {"memory.max": 4 * GIB, "memory.current": 0}, inside="/docker/c1")
        limit = cgroup_memory_limit(root)
        assert limit is not None
        assert (limit.limit_bytes, limit.folder) == (4 * GIB, Path("/sys/fs/cgroup"))

    def test_a_mount_is_not_taken_for_that_of_a_namesake(self, tmp_path: Path) -> None:
        root = v2(tmp_path, "/docker/c12", {"2/memory.max": GIB, "memory.max": 2 * GIB}, inside="/docker/c1")
        limit = cgroup_memory_limit(root)
        assert limit is not None
        assert limit.limit_bytes == 2 * GIB

    def test_v1_limit_with_hierarchical_statistics(self, tmp_path: Path) -> None:
        files = {
            "pod/memory.limit_in_bytes": 6 * GIB,
            "pod/memory.usage_in_bytes": 4 * GIB,
            "pod/memory.stat": f"inactive_file 7\ntotal_inactive_file {GIB}\ntotal_active_file {GIB}",
            "memory.limit_in_bytes": 2**63 - 4096,
        }
        limit = cgroup_memory_limit(v1(tmp_path, "/pod", files))
        assert limit is not None
        assert (limit.version, limit.limit_bytes, limit.room_bytes) == (1, 6 * GIB, 4 * GIB)

    def test_v1_unlimited_is_no_limit(self, tmp_path: Path) -> None:
        files = {"pod/memory.limit_in_bytes": 2**63 - 4096, "memory.limit_in_bytes": 2**63 - 4096}
        assert cgroup_memory_limit(v1(tmp_path, "/pod", files)) is None

    def test_v1_container_with_the_hosts_paths(self, tmp_path: Path) -> None:
        limit = cgroup_memory_limit(v1(tmp_path, "/kube/c1", {"memory.limit_in_bytes": GIB}, inside="/kube/c1"))
        assert limit is not None
        assert limit.limit_bytes == GIB

    def test_a_hybrid_system_is_limited_by_whichever_tree_limits(self, tmp_path: Path) -> None:
        v1(tmp_path, "/pod", {"pod/memory.limit_in_bytes": 3 * GIB, "pod/memory.usage_in_bytes": GIB})
        mounts = V1_MOUNT.format(inside="/") + V2_MOUNT.format(inside="/").replace("/cgroup ", "/cgroup/unified ")
        write(tmp_path, {"proc/self/cgroup": "4:memory:/pod\n0::/pod", "proc/self/mountinfo": mounts})
        limit = cgroup_memory_limit(tmp_path)
        assert limit is not None
        assert (limit.version, limit.room_bytes) == (1, 2 * GIB)

    @pytest.mark.parametrize("text", ["", "nonsense", "0::", "4:memory:/pod", "0::/job"])
    def test_files_that_are_absent_or_odd_mean_no_limit(self, tmp_path: Path, text: str) -> None:
        write(tmp_path, {"proc/self/cgroup": text})
        assert cgroup_memory_limit(tmp_path) is None
        assert cgroup_memory_limit(tmp_path / "nothing") is None

    def test_cpu_quota_of_both_generations(self, tmp_path: Path) -> None:
        files = {"job/cpu.max": "150000 100000", "cpu.max": "max 100000"}
        assert cgroup_cpu_limit(v2(tmp_path / "two", "/job", files)) == 1.5
        assert cgroup_cpu_limit(v2(tmp_path / "free", "/job", {"job/cpu.max": "max 100000"})) is None
        assert hardware("l4-kubernetes").cpu.usable_cores == 6
        assert hardware("a10g-docker").cpu.usable_cores == 4

    @pytest.mark.parametrize(
        ("name", "limit", "usable"),
        [
            ("a10g-docker", 14 * GIB, 14 * GIB - 3 * GIB + GIB + GIB // 2),
            ("l4-kubernetes", 24 * GIB, 23 * GIB),
            ("a100-40-mig", 64 * GIB, 63 * GIB),
            ("rtx3090-desktop", int(31.2 * GIB), int(28.4 * GIB)),
        ],
    )
    def test_usable_ram_is_the_lesser_of_free_memory_and_room(self, name: str, limit: int, usable: int) -> None:
        found = hardware(name)
        assert found.ram.limit_bytes == limit
        assert usable_ram_bytes(found) == usable

    def test_a_limit_above_the_machines_memory_does_not_add_any(self, tmp_path: Path) -> None:
        machine = recording("a100-40-mig")
        machine["psutil"]["virtual_memory"] = {"total": 32 * GIB, "available": 10 * GIB}
        found = look(machine, tmp_path)
        assert (found.ram.limit_bytes, usable_ram_bytes(found)) == (32 * GIB, 10 * GIB)

    @pytest.fixture
    def real_group(self) -> Iterator[Path]:
        """A control group of our own below the one this process is in, limited to 512 MiB; skips where none is had."""
        lines = Path("/proc/self/cgroup").read_text().splitlines() if Path("/proc/self/cgroup").exists() else []
        v1_group = next((line.split(":")[2] for line in lines if line.split(":")[1] == "memory"), None)
        above = Path("/sys/fs/cgroup") if v1_group is None else Path(f"/sys/fs/cgroup/memory{v1_group}")
        group = above / f"talk-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError as error:
            pytest.skip(f"no control group can be made here: {error}")
        try:
            (group / ("memory.max" if v1_group is None else "memory.limit_in_bytes")).write_text(str(512 * MIB))
            yield group
        except OSError as error:
            pytest.skip(f"no memory limit can be set here: {error}")
        finally:
            group.rmdir()

    @pytest.mark.slow
    def test_a_child_under_a_real_limit_sees_it(self, real_group: Path) -> None:
        code = """import json, sys
sys.stdin.readline()
from infinitalk_cli.hardware import detect_hardware, usable_ram_bytes
found = detect_hardware()
print(json.dumps([found.ram.cgroup and found.ram.cgroup.limit_bytes, usable_ram_bytes(found)]))"""
        command = [sys.executable, "-c", code]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
            (real_group / "cgroup.procs").write_text(str(child.pid))
            output, _ = child.communicate("go\n", timeout=60)
        limit, usable = json.loads(output)
        assert limit == 512 * MIB
        assert 256 * MIB < usable <= 512 * MIB


class TestWsl:
    def release(self, root: Path, text: str) -> Path:
        return write(root, {"proc/sys/kernel/osrelease": text})

    def test_wsl2_with_its_configured_memory(self) -> None:
        found = hardware("rtx4080-wsl2")
        wsl = found.system.wsl
        assert wsl is not None
        assert (wsl.version, wsl.configured_bytes) == (2, 24 * GIB)
        assert wsl.config == Path("/mnt/c/Users/someone/.wslconfig")
        assert usable_ram_bytes(found) == int(21.9 * GIB)

    def test_linux_is_not_wsl(self) -> None:
        assert hardware("rtx3090-desktop").system.wsl is None

    @pytest.mark.parametrize(
        ("release", "version"),
        [("4.4.0-19041-Microsoft", 1), ("4.19.104-microsoft-standard", 2), ("5.15.90.1-microsoft-standard-WSL2", 2)],
    )
    def test_generations_are_told_apart_by_their_kernels(self, tmp_path: Path, release: str, version: int) -> None:
        wsl = read_wsl(self.release(tmp_path, release))
        assert wsl is not None
        assert (wsl.version, wsl.config, wsl.configured_bytes) == (version, None, None)

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("[wsl2]\nmemory=8GB", 8 * GIB),
            ("\ufeff[wsl2]\r\nMemory = 6144 MB\r\n", 6 * GIB),
            ("[wsl2]\nmemory=8589934592", 8 * GIB),
            ("[wsl2]\nswap=0", None),
            ("[experimental]\nmemory=8GB", None),
            ("[wsl2]\nmemory=lots", None),
            ("memory=8GB", None),
        ],
    )
    def test_wslconfig_is_read_as_people_write_it(self, tmp_path: Path, text: str, expected: int | None) -> None:
        root = self.release(tmp_path, "5.15.90.1-microsoft-standard-WSL2")
        wsl = read_wsl(write(root, {"mnt/c/Users/me/.wslconfig": text}))
        assert wsl is not None
        assert wsl.configured_bytes == expected

    def test_the_file_of_another_windows_user_is_not_guessed_at(self, tmp_path: Path) -> None:
        root = self.release(tmp_path, "5.15.90.1-microsoft-standard-WSL2")
        files: dict[str, object] = {f"mnt/c/Users/{user}/.wslconfig": "[wsl2]\nmemory=8GB" for user in ("me", "you")}
        wsl = read_wsl(write(root, files))
        assert wsl is not None
        assert (wsl.config, wsl.configured_bytes) == (None, None)
