"""What a download has to do, file by file, and whether the disk has room for it.

A plan is data: for each file that is wanted, where it will lie, what the hub says of it, and what has to happen. First
the record is asked; if it knows every file, neither the network nor the hub's library is touched, which makes a second
run a matter of milliseconds. Only repositories of files that are not known are listed.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from infinitalk_cli.errors import DoesNotFitError, WeightsError
from infinitalk_cli.hub import Hub, RemoteFile
from infinitalk_cli.hub_listings import Listings
from infinitalk_cli.manifest import HubFile
from infinitalk_cli.part_file import part_path
from infinitalk_cli.progress import OnNote
from infinitalk_cli.published import published_size
from infinitalk_cli.weights_record import Entry, Record

State = Literal["have", "check", "link", "need"]


@dataclass(frozen=True)
class PlannedFile:
    """One file of a plan.

    `state`: "have" (known to be right), "check" (there, its digest is not known yet), "link" (in the hub's cache, at
    `cached`), "need". `size`: None where nobody knows it without the hub. `part_bytes`: received by an earlier attempt.
    `entry`: what the record knows; else `remote`: what the hub says, None offline. `place`: the file on this machine.
    """

    file: HubFile
    place: Path
    size: int | None
    state: State
    remote: RemoteFile | None = None
    cached: Path | None = None
    part_bytes: int = 0
    entry: Entry | None = None

    @property
    def num_bytes(self) -> int:
        """Its length, 0 where nobody knows it."""
        return self.size or 0

    @property
    def need_bytes(self) -> int:
        """What has to be fetched, as far as its length is known."""
        return max(self.num_bytes - self.part_bytes, 0) if self.state == "need" else 0

    @property
    def revision(self) -> str:
        """The revision that was asked for."""
        known = self.remote or self.entry
        return known.revision if known and known.revision else self.file.revisions[0]

    @property
    def commit(self) -> str:
        """What that revision was when the hub was asked; "" where it was not."""
        known = self.remote or self.entry
        return known.commit if known else ""


@dataclass(frozen=True)
class Plan:
    """A whole download. `free_bytes`: room on the disk of the weights folder, None where it can't be asked."""

    weights_dir: Path
    files: tuple[PlannedFile, ...]
    free_bytes: int | None

    @property
    def total_bytes(self) -> int:
        """Of all files whose length is known, wherever they are now."""
        return sum(file.num_bytes for file in self.files)

    @property
    def num_unknown(self) -> int:
        """The files whose length nobody knows without the hub."""
        return sum(file.size is None for file in self.files)

    @property
    def need_bytes(self) -> int:
        """What has to be fetched."""
        return sum(file.need_bytes for file in self.files)

    @property
    def is_done(self) -> bool:
        """Nothing is left to do, not even to read."""
        return all(file.state == "have" for file in self.files)


def plan_from_record(files: Sequence[HubFile], weights_dir: Path, record: Record) -> Plan | None:
    """The plan of a folder in which every file is known, else None. Without what upstream may lack."""
    known = [(file, _known_choice(file, record)) for file in files]
    if any(entry is None for file, entry in known if not file.optional):
        return None
    return Plan(
        weights_dir,
        tuple(_have(file, weights_dir, entry) for file, entry in known if entry is not None),
        free_bytes(weights_dir),
    )


def plan_download(
    files: Sequence[HubFile],
    weights_dir: Path,
    record: Record,
    hub: Hub,
    *,
    ask_again: bool = False,
    on_note: OnNote = lambda text: None,
) -> Plan:
    """Compare what is wanted with what is on the disk and on the hub.

    Args: ask_again: ask about files too that the record knows, and for where their branches are now: a branch that the
        user names may have moved. Else a branch stays for this folder at the commit where its first file came from.
    Raises: WeightsError: if the hub can't be reached, or lacks a file and all its stand-ins.
    """
    listings = Listings(hub, on_note, {} if ask_again else recorded_commits(record))
    planned: list[PlannedFile] = []
    missing: list[HubFile] = []
    for file in files:
        entry = None if ask_again else _known_choice(file, record)
        if entry is not None:
            planned.append(_have(file, weights_dir, entry))
        elif found := _find(file, listings, on_note):
            planned.append(_compare(*found, weights_dir, record, hub))
        elif not file.optional:
            missing.append(file)
    if missing:
        raise WeightsError(
            "the hub does not have, or no longer:"
            + "".join(f"\n  {file.path} of {file.repository}" for file in missing),
            hint="--revision REPOSITORY=REVISION names another version; a newer release may know where they went",
        )
    return Plan(weights_dir, tuple(planned), free_bytes(weights_dir))


def plan_offline(files: Sequence[HubFile], weights_dir: Path, record: Record, hub: Hub) -> Plan:
    """The same from this machine alone: the folder and the hub's cache.

    Raises: WeightsError: naming what is in neither.
    """
    plan = plan_unasked(files, weights_dir, record, hub)
    refuse_lacking(plan)
    return plan


def plan_unasked(files: Sequence[HubFile], weights_dir: Path, record: Record, hub: Hub) -> Plan:
    """What can be said without the hub; what is not on this machine is needed, of its published length if any."""
    found = [(file, _find_offline(file, weights_dir, record, hub)) for file in files]
    planned = [
        there or PlannedFile(file, weights_dir / file.place, published_size(file.place), "need")
        for file, there in found
        if there is not None or not file.optional
    ]
    return Plan(weights_dir, tuple(planned), free_bytes(weights_dir))


def refuse_lacking(plan: Plan) -> None:
    """Raises: WeightsError: naming what an offline run of the plan could not have."""
    if missing := [file for file in plan.files if file.state == "need"]:
        raise WeightsError(
            "offline, and not on this machine:" + "".join(f"\n  {file.file.place}" for file in missing),
            hint="run it again with a network, or `talk weights import DIR` if another folder has them",
        )


def recorded_commits(record: Record) -> dict[tuple[str, str], str]:
    """By repository and revision, the commit that the folder's files came from; of several the latest recorded."""
    return {(entry.repository, entry.revision): entry.commit for entry in record.entries if entry.commit}


def check_room(plan: Plan) -> None:
    """Refuse a download that can't end. Raises: DoesNotFitError: with the room that is missing."""
    needed: dict[int | None, int] = {}
    free: dict[int | None, tuple[int, Path]] = {}
    for file in plan.files:
        folder = nearest_folder(file.place)
        device = folder.stat().st_dev
        needed[device] = needed.get(device, 0) + file.need_bytes
        free[device] = (shutil.disk_usage(folder).free, folder)
    for device, (free_now, folder) in free.items():
        lacking = needed[device] - free_now
        if lacking > 0:
            raise DoesNotFitError(
                f"{needed[device] / 1e9:.1f} GB to fetch, but the disk of {folder} has {free_now / 1e9:.1f} GB free",
                hint=f"make {lacking / 1e9:.1f} GB of room (`talk weights rm` frees what a profile doesn't need), "
                "or name another folder with --weights-dir",
            )


def free_bytes(folder: Path) -> int | None:
    """Room on the disk where `folder` is or would be."""
    try:
        return shutil.disk_usage(nearest_folder(folder)).free
    except OSError:
        return None


def nearest_folder(path: Path) -> Path:
    """The folder at or above `path` that exists."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_dir())


def _known_choice(file: HubFile, record: Record) -> Entry | None:
    """The file or a stand-in that is there and known, at a revision that is wanted."""
    entries = ((choice, record.known(choice.place)) for choice in file.choices)
    return next((entry for choice, entry in entries if entry and _is_wanted(entry, choice)), None)


def _is_wanted(entry: Entry, choice: HubFile) -> bool:
    return entry.verified and (not entry.repository or entry.revision in choice.revisions)


def _have(file: HubFile, weights_dir: Path, entry: Entry) -> PlannedFile:
    taken = next(choice for choice in file.choices if choice.place == entry.place)
    return PlannedFile(taken, weights_dir / entry.place, entry.size, "have", entry=entry)


def _find(file: HubFile, listings: Listings, on_note: OnNote) -> tuple[HubFile, RemoteFile] | None:
    """The file on the hub, or the first stand-in that is there."""
    for choice in file.choices:
        remote = listings.of(choice).get(choice.path)
        if remote is not None:
            if choice != file:
                on_note(f"note: the hub has no {file.place}; taking {choice.place} in its place")
            return choice, remote
    return None


def _compare(file: HubFile, listed: RemoteFile, weights_dir: Path, record: Record, hub: Hub) -> PlannedFile:
    """What has to be done for a file of the hub's."""
    remote, place = hub.describe(listed), weights_dir / file.place
    entry = record.known(file.place)
    if entry is not None and remote.digest.kind == "sha256":
        state: State = "have" if entry.sha256 == remote.digest.value else "need"
    else:
        state = "check" if _size_of(place) == remote.size else "need"
    cached = None
    if state == "need":
        cached = hub.cached(file.repository, (remote.commit, remote.revision), file.path, remote.digest)
        cached = cached if cached and _size_of(cached) == remote.size else None
    part_bytes = min(_size_of(part_path(place, remote.digest)) or 0, remote.size)
    return PlannedFile(file, place, remote.size, "link" if cached else state, remote, cached, part_bytes)


def _find_offline(file: HubFile, weights_dir: Path, record: Record, hub: Hub) -> PlannedFile | None:
    for choice in file.choices:
        place = weights_dir / choice.place
        size = _size_of(place)
        if size is not None:
            entry = record.known(choice.place)
            return PlannedFile(choice, place, size, "have" if entry else "check", entry=entry)
        cached = hub.cached(choice.repository, choice.revisions, choice.path, None)
        if cached is not None:
            return PlannedFile(choice, place, cached.stat().st_size, "link", cached=cached)
    return None


def _size_of(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
