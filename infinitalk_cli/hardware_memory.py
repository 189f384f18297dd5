"""Main memory and the limits that stand between a process and it: control groups and WSL.

psutil tells what the machine has, not what this process may use: in a container or a batch job the kernel kills at the
limit of the control group ("Killed", exit 137) while psutil still reports free memory. So `/proc/self/cgroup` is walked
here. A group may use no more than any of its ancestors, hence every level from the process's own group up to the mount
point counts, and the least room of all levels is the room. Both generations are read: v2 (`memory.max`, one tree) and
v1 (`memory.limit_in_bytes`, a tree of its own); hybrid systems have both mounted and only one of them limits memory.

Room is `limit - usage + file pages`: the page cache of mapped weights is charged to the group, but the kernel drops
clean file pages before it kills, just as `MemAvailable` counts them as available.

WSL 2 is a virtual machine with a fixed share of the Windows memory (half of it unless `.wslconfig` says otherwise):
its whole memory *is* the limit, and raising it is a matter of that file, so both are reported.

Every file is read below `root`, "/" on a real machine; tests pass a folder that looks like one. Paths are reported as
the machine names them.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from configparser import ConfigParser, Error
from dataclasses import dataclass
from pathlib import Path
from typing import Any

UNLIMITED_BYTES = 1 << 60
"""A v1 limit of this size or more is the kernel's "none" (2**63 rounded down to a page)."""

BYTES_OF_UNIT = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


@dataclass(frozen=True)
class CgroupLimit:
    """The level of the control groups that leaves the least room; `room_bytes` is what may still be taken under it."""

    version: int
    folder: Path
    limit_bytes: int
    room_bytes: int


@dataclass(frozen=True)
class Wsl:
    """The Windows Subsystem for Linux: its version and what the user's `.wslconfig` says about memory, if found."""

    version: int
    config: Path | None
    configured_bytes: int | None


@dataclass(frozen=True)
class Ram:
    """Main memory. `total_bytes` and `available_bytes` are the machine's; `cgroup` is the tightest limit on top."""

    total_bytes: int
    available_bytes: int
    swap_total_bytes: int | None
    swap_free_bytes: int | None
    cgroup: CgroupLimit | None

    @property
    def usable_bytes(self) -> int:
        """What this process can take without swapping and without being killed."""
        room = self.available_bytes if self.cgroup is None else self.cgroup.room_bytes
        return min(self.available_bytes, room)

    @property
    def limit_bytes(self) -> int:
        """What this process could take on an otherwise idle machine."""
        limit = self.total_bytes if self.cgroup is None else self.cgroup.limit_bytes
        return min(self.total_bytes, limit)


def read_ram(psutil: Any, root: Path) -> Ram:
    """Memory by `psutil` (the module or a stand-in), limits by the files below `root`."""
    memory = psutil.virtual_memory()
    swap_total, swap_free = _read_swap(psutil)
    return Ram(int(memory.total), int(memory.available), swap_total, swap_free, cgroup_memory_limit(root))


def cgroup_memory_limit(root: Path) -> CgroupLimit | None:
    """The tightest memory limit of the control groups this process is in, or None."""
    levels = (_read_level(version, folder, root) for version, folder in _levels(root, "memory"))
    return min((level for level in levels if level), key=lambda level: level.room_bytes, default=None)


def cgroup_cpu_limit(root: Path) -> float | None:
    """How many cores' worth of time the control groups allow, e.g. 1.5, or None."""
    quotas = (_read_quota(version, folder) for version, folder in _levels(root, "cpu"))
    return min((quota for quota in quotas if quota is not None), default=None)


def read_wsl(root: Path) -> Wsl | None:
    """WSL by its kernel's name. The file of another Windows user is not guessed at: with several, none is named."""
    release = read_text(root / "proc/sys/kernel/osrelease").lower()
    if "microsoft" not in release:
        return None
    try:
        configs = list((root / "mnt/c/Users").glob("*/.wslconfig"))
    except OSError:
        configs = []
    config = configs[0] if len(configs) == 1 else None
    configured = None if config is None else _configured_memory(read_text(config))
    version = 2 if "wsl2" in release or "standard" in release else 1
    return Wsl(version, None if config is None else _machine_path(config, root), configured)


def read_text(path: Path) -> str:
    """A small file of the kernel; "" where it is absent or may not be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _machine_path(path: Path, root: Path) -> Path:
    return Path("/") / path.relative_to(root)


def _read_swap(psutil: Any) -> tuple[int | None, int | None]:
    """Total and free swap; some sandboxed kernels hide the counters psutil wants, which it tells by a warning."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            swap = psutil.swap_memory()
    except (OSError, RuntimeError):
        return None, None
    return int(swap.total), int(swap.free)


def _levels(root: Path, controller: str) -> Iterator[tuple[int, Path]]:
    """(version, folder) of every group this process is in that has a say about `controller`, innermost first."""
    for version, group in _groups(root, controller):
        mount = _mount_of(group, list(_mounts(root, version, controller)))
        if mount is None:
            continue
        mount_root, mount_point = mount
        folder = mount_point / _relative(group, mount_root)
        yield version, folder
        while folder != mount_point:
            folder = folder.parent
            yield version, folder


def _groups(root: Path, controller: str) -> Iterator[tuple[int, str]]:
    """(version, group) of this process, from lines such as "0::/user.slice" (v2) and "4:cpu,memory:/job" (v1)."""
    for line in read_text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if number == "0" and not controllers:
            yield 2, group
        elif controller in controllers.split(","):
            yield 1, group


def _mounts(root: Path, version: int, controller: str) -> Iterator[tuple[str, Path]]:
    """(root inside the control groups, folder) of each mount of this version that holds `controller`."""
    for line in read_text(root / "proc/self/mountinfo").splitlines():
        mount, _, system = line.partition(" - ")
        kind, options = system.partition(" ")[0], system.rpartition(" ")[2].split(",")
        if kind == "cgroup2" if version == 2 else kind == "cgroup" and controller in options:
            fields = mount.split(" ")
            yield fields[3], root / fields[4].replace("\\040", " ").lstrip("/")


def _mount_of(group: str, mounts: list[tuple[str, Path]]) -> tuple[str, Path] | None:
    """The mount that shows `group`, else any: a container sees its own group alone, mounted as if it were the top."""
    showing = [mount for mount in mounts if _relative(group, mount[0]) or mount[0] in ("/", group)]
    return next(iter(showing or mounts), None)


def _relative(group: str, mount_root: str) -> str:
    """The way from a mount to `group`; "" (the mount itself) where the group lies outside of what is mounted."""
    prefix = mount_root.rstrip("/") + "/"
    if not group.startswith(prefix) or ".." in group.split("/"):
        return ""
    return group[len(prefix) :]


def _read_level(version: int, folder: Path, root: Path) -> CgroupLimit | None:
    """One group's limit and room. v2's `memory.high` counts too: past it the kernel slows the process to a crawl."""
    if version == 2:
        limits = [_read_number(folder / name) for name in ("memory.max", "memory.high")]
        usage, prefix = _read_number(folder / "memory.current"), ""
    else:
        limits = [_read_number(folder / "memory.limit_in_bytes")]
        usage, prefix = _read_number(folder / "memory.usage_in_bytes"), "total_"
    limit = min((limit for limit in limits if limit is not None), default=UNLIMITED_BYTES)
    if limit >= UNLIMITED_BYTES:
        return None
    statistics = dict(line.split(" ", 1) for line in read_text(folder / "memory.stat").splitlines() if " " in line)
    files = sum(int(statistics.get(f"{prefix}{name}", 0)) for name in ("inactive_file", "active_file"))
    room = min(limit, max(0, limit - (usage or 0) + files))
    return CgroupLimit(version, _machine_path(folder, root), limit, room)


def _read_quota(version: int, folder: Path) -> float | None:
    """Cores' worth of CPU time of one group: quota over period."""
    if version == 2:
        quota, _, period = read_text(folder / "cpu.max").strip().partition(" ")
    else:
        quota, period = (read_text(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period"))
    if not quota.isdigit() or not period.isdigit() or int(period) == 0:
        return None  # "max" (v2) and "-1" (v1) mean no limit
    return int(quota) / int(period)


def _read_number(path: Path) -> int | None:
    """The number in a file; None for "max", for anything else and for no file."""
    text = read_text(path).strip()
    return int(text) if text.isdigit() else None


def _configured_memory(text: str) -> int | None:
    """`memory` of `[wsl2]` in bytes, e.g. "memory=24GB"; None where it is absent or not understood."""
    parser = ConfigParser(strict=False, interpolation=None)
    try:
        parser.read_string(text.lstrip("\ufeff"))
    except Error:
        return None
    match = re.fullmatch(r"(\d+)\s*([kmgt]?)b?", parser.get("wsl2", "memory", fallback="").strip().lower())
    return int(match[1]) * BYTES_OF_UNIT[match[2]] if match else None
