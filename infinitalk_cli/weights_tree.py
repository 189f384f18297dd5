"""The weights folder as it is: what lies in it, whether it is right, and what could go.

Every question is answered from the disk alone. Three kinds of knowledge are used, the strongest that there is: the
record of a download (the digest that the hub stated), the list of published sums, the header of the file. Files that
neither the manifest nor the converter knows are shown and checked, but never removed: they are the user's.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePath
from typing import Literal, get_args

from infinitalk_cli.compact import FOLDER as COMPACT
from infinitalk_cli.errors import InputError, WeightsError
from infinitalk_cli.file_headers import header_problem, is_bare_pickle
from infinitalk_cli.manifest import HubFile, Need, all_files, plan_files
from infinitalk_cli.part_file import SUFFIX, disk_errors, hash_file
from infinitalk_cli.published import BY_SHA256, published_at
from infinitalk_cli.replaced_files import replacing_places, without_replaced
from infinitalk_cli.weights import Engine, Quant, all_paths, locate
from infinitalk_cli.weights_record import FOLDER, Record

State = Literal["verified", "unverified", "changed", "partial"]

HIDDEN = (FOLDER, ".cache", ".git")


@dataclass(frozen=True)
class TreeFile:
    """A file of the tree.

    `state`: "verified" (its digest was the published one, and it has not changed since), "unverified" (nobody has
    compared it), "changed" (it has another length or time than when it was verified), "partial" (of a download).
    `own_bytes`: what the disk gains when it goes; 0 for a link and for a file that another folder shares. `is_ours`:
    it can be fetched or made again. `origin`: REPOSITORY@COMMIT, "" where no download or import recorded it.
    """

    place: str
    path: Path
    size: int
    own_bytes: int
    state: State
    is_ours: bool
    origin: str = ""


@dataclass(frozen=True)
class Sufficiency:
    """Whether the tree has what a kind of run needs, and what is missing."""

    need: Need
    missing: tuple[str, ...]

    @property
    def name(self) -> str:
        """As in "infinitetalk fp8, 1 speaker"."""
        form = "bf16" if self.need.quant == "none" else self.need.quant
        return f"{self.need.engine} {form}, {self.need.num_speakers} speaker{'s' * (self.need.num_speakers > 1)}"


@dataclass(frozen=True)
class Finding:
    """What a check found.

    `problem`: None if nothing is wrong. `published`: whether it is a published file, None where that can't be said.
    """

    place: str
    size: int
    problem: str | None
    sha256: str | None = None
    published: bool | None = None
    note: str = ""


def list_tree(weights_dir: Path, record: Record) -> tuple[TreeFile, ...]:
    """Every file under the weights folder, by place; an absent folder is empty."""
    ours = {file.place for file in all_files()}
    return tuple(sorted((_tree_file(weights_dir, path, record, ours) for path in walk(weights_dir)), key=_by_place))


def walk(folder: Path) -> Iterator[Path]:
    """The files below a folder, through symbolic links too, but each folder once and no hidden ones of tools."""
    seen = set[tuple[int, int]]()
    for root, folders, names in os.walk(folder, followlinks=True):
        found = Path(root).stat()
        if (found.st_dev, found.st_ino) in seen:
            folders.clear()
            continue
        seen.add((found.st_dev, found.st_ino))
        folders[:] = sorted(name for name in folders if name not in HIDDEN)
        yield from (Path(root, name) for name in sorted(names) if Path(root, name).is_file())


def sufficiencies(weights_dir: Path) -> tuple[Sufficiency, ...]:
    """For every kind of run, what the tree lacks."""
    return tuple(
        Sufficiency(need, _missing(weights_dir, need))
        for engine in get_args(Engine)
        for quant in get_args(Quant)
        for speakers in (1, 2)
        for need in (Need(speakers, quant, engine),)
    )


def check_tree(
    files: Iterable[TreeFile], record: Record, *, full: bool, on_bytes: Callable[[int], None] = lambda count: None
) -> Iterator[Finding]:
    """Check files one by one.

    Args: full: read them whole and compare digests; else lengths and headers. on_bytes: told of bytes read.
    """
    for file in files:
        if file.state == "partial":
            yield Finding(file.place, file.size, None, note="part of a download that goes on with `talk download`")
        else:
            yield _check_whole(file, record, on_bytes) if full else _check_fast(file, record)


def unneeded(weights_dir: Path, files: Iterable[TreeFile], keep: Iterable[Need]) -> tuple[TreeFile, ...]:
    """The files of ours that none of these needs reads: other forms, other LoRAs, parts of downloads."""
    kept = {place for need in keep for place in _kept_places(weights_dir, need)}
    return tuple(file for file in files if (file.is_ours or file.state == "partial") and file.place not in kept)


def matching(files: Iterable[TreeFile], patterns: Iterable[str]) -> tuple[TreeFile, ...]:
    """The files that a pattern names. Raises: InputError: for a pattern without a file."""
    files, chosen = tuple(files), dict[TreeFile, None]()
    for pattern in patterns:
        named = [file for file in files if fnmatchcase(file.place, pattern) or file.place.startswith(f"{pattern}/")]
        if not named:
            raise InputError(f"no file here is called {pattern}", hint="`talk weights ls` shows them")
        chosen.update(dict.fromkeys(named))
    return tuple(chosen)


def remove_files(weights_dir: Path, files: Iterable[TreeFile], record: Record) -> int:
    """Delete files of the tree, and folders that are empty then; what a link points to stays.

    Returns: the bytes that the disk gained.
    Raises: InputError: if a file lies outside the weights folder, behind a linked folder.
    """
    files = tuple(files)
    root = weights_dir.resolve()
    for file in files:
        if not file.path.parent.resolve().is_relative_to(root):
            where = file.path.parent.resolve()
            raise InputError(f"{file.path} lies outside the weights folder, in {where}", hint="remove it there")
    for file in files:
        with disk_errors(file.path):
            file.path.unlink(missing_ok=True)
        record.remove(file.place)
        _remove_empty_folders(file.path.parent, weights_dir)
    return sum(file.own_bytes for file in files)


def _by_place(file: TreeFile) -> str:
    return file.place


def _tree_file(weights_dir: Path, path: Path, record: Record, ours: set[str]) -> TreeFile:
    place, found = path.relative_to(weights_dir).as_posix(), path.stat()
    own_bytes = 0 if path.is_symlink() or found.st_nlink > 1 else found.st_size
    entry = record.known(place)
    origin = f"{entry.repository}@{entry.commit or entry.revision}" if entry and entry.repository else ""
    state = _state(place, path, record)
    return TreeFile(place, path, found.st_size, own_bytes, state, _is_ours(place, ours), origin)


def _state(place: str, path: Path, record: Record) -> State:
    if path.suffix == SUFFIX:
        return "partial"
    known = record.known(place)
    if known is not None:
        return "verified" if known.verified else "unverified"
    return "changed" if record.of(place) is not None else "unverified"


def _missing(weights_dir: Path, need: Need) -> tuple[str, ...]:
    """What a run of this kind would ask for; its loader's word counts, for it takes other forms too."""
    try:
        locate(weights_dir, num_speakers=need.num_speakers, quant=need.quant, engine=need.engine)
    except WeightsError as error:
        return _lacking_places(weights_dir, need) or (error.message,)
    return ()


def _lacking_places(weights_dir: Path, need: Need) -> tuple[str, ...]:
    try:
        files = without_replaced(plan_files(need), need, weights_dir)
    except WeightsError:  # a damaged compact file, which the loader has told already
        return ()
    needed = (file for file in files if not file.optional)
    return tuple(
        file.place for file in needed if not any((weights_dir / choice.place).is_file() for choice in file.choices)
    )


def _kept_places(weights_dir: Path, need: Need) -> Iterator[str]:
    """What the need asks for, by its first form that is there; of what was converted, the compact files alone."""
    for file in without_replaced(plan_files(need), need, weights_dir):
        yield _first_there(weights_dir, file).place
    yield from replacing_places(need).values()
    try:
        files = locate(weights_dir, num_speakers=need.num_speakers, quant=need.quant, engine=need.engine)
    except WeightsError:
        return
    yield from (path.relative_to(weights_dir).as_posix() for path in all_paths(files))


def _is_ours(place: str, ours: set[str]) -> bool:
    """Whether it can be had again: fetched, or converted. A compact file with LoRAs of the user's in it can't."""
    return place in ours or (place.startswith(f"{COMPACT}/") and not PurePath(place).stem.endswith("_lora"))


def _first_there(weights_dir: Path, file: HubFile) -> HubFile:
    return next((choice for choice in file.choices if (weights_dir / choice.place).is_file()), file)


def _check_fast(file: TreeFile, record: Record) -> Finding:
    entry = record.of(file.place)
    if entry is not None and entry.size != file.size:
        return Finding(file.place, file.size, f"{file.size} bytes, but {entry.size} when it was verified")
    problem = header_problem(file.path) or (None if entry else _foreign_pickle(file))
    if problem is None and file.state == "changed":
        return Finding(file.place, file.size, None, note="written to since it was verified: --full reads it again")
    return Finding(file.place, file.size, problem, note="" if entry or problem else _length_note(file))


def _length_note(file: TreeFile) -> str:
    listed = published_at(file.place)
    if listed is None or listed.size is None or listed.size == file.size:
        return "not compared with anything yet: --full makes its digest" if file.is_ours else ""
    return f"not the published file, which has {listed.size} bytes"


def _foreign_pickle(file: TreeFile) -> str | None:
    """What is wrong with a file that has neither the published length nor anything that shows it to be whole.

    Another file of tensors may lie at a published place: an archive tells by its directory that nothing is cut.
    """
    listed = published_at(file.place)
    if listed is None or listed.size in (None, file.size) or not is_bare_pickle(file.path):
        return None
    return f"{file.size} bytes, but the published file has {listed.size}; and it is no archive of tensors"


def _check_whole(file: TreeFile, record: Record, on_bytes: Callable[[int], None]) -> Finding:
    problem = header_problem(file.path) or (None if record.of(file.place) else _foreign_pickle(file))
    try:
        sha256 = hash_file(file.path, on_bytes).sha256
    except OSError as error:
        return Finding(file.place, file.size, f"can't be read: {error.strerror}")
    entry, listed = record.of(file.place), published_at(file.place)
    published = sha256 in BY_SHA256 if listed or sha256 in BY_SHA256 else None
    if entry is not None and entry.sha256 != sha256:
        problem = problem or f"its digest is not that of {entry.repository or 'when it was recorded'}"
    if problem is None:
        _remember(file, sha256, record, published=bool(published))
    return Finding(file.place, file.size, problem, sha256, published, note=_published_note(sha256, published))


def _remember(file: TreeFile, sha256: str, record: Record, *, published: bool) -> None:
    """Keep the digest, so that the next check needs no reading; a folder that can't be written to is no failure."""
    entry = record.of(file.place)
    origin = (
        {"repository": entry.repository, "revision": entry.revision, "commit": entry.commit, "path": entry.path}
        if entry
        else {}
    )
    try:
        record.add(file.place, sha256, verified=published or bool(entry and entry.verified), **origin)
    except InputError:
        return


def _published_note(sha256: str, published: bool | None) -> str:
    if published is None:
        return ""
    return f"the published {BY_SHA256[sha256].name}" if published else "not the published file"


def _remove_empty_folders(folder: Path, weights_dir: Path) -> None:
    while folder != weights_dir and PurePath(weights_dir) in folder.parents and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent
