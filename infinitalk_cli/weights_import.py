"""Take weights from a folder that another program or another download filled, without a second copy.

Files are recognised by what they hold: a length and a digest that the hub or the list of published sums states, under
any name, be it in a tree as the guides lay it out, a cache of the hub, or the folders of other programs. Where no
digest is known (offline, for files whose sums nobody published) the name decides, and for other programs' forms of
encoders, VAE and adapters the names and shapes of the tensors; such a file is marked as not verified. On the same disk
both folders share one file (a hard link); from another disk it is copied, or linked by name if that is asked for. The
source folder is never changed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from infinitalk_cli.compact import IMAGE_ENCODER as COMPACT_IMAGE_ENCODER
from infinitalk_cli.compact import text_encoder_place
from infinitalk_cli.errors import WeightsError
from infinitalk_cli.file_headers import header_problem
from infinitalk_cli.hub import RemoteFile
from infinitalk_cli.manifest import HubFile, all_files
from infinitalk_cli.part_file import READ_BYTES, Digest, Hasher, PartFile, disk_errors, hash_file
from infinitalk_cli.published import PUBLISHED, published_at
from infinitalk_cli.repackaged import (
    FOLDER,
    KNOWN_NAMES,
    Kind,
    by_preference,
    find_repackaged,
    has_published_shapes,
    is_other_model,
    kind_by_content,
    kind_of,
)
from infinitalk_cli.weights import BASE, IMAGE_ENCODER, INFINITETALK, MULTITALK, PLAIN_TEXT_ENCODER, SPEECH
from infinitalk_cli.weights_record import Record
from infinitalk_cli.weights_tree import walk

Way = Literal["linked", "copied", "symlinked"]
OnBytes = Callable[[int], None]

READABLE = {name for names in KNOWN_NAMES.values() for name in names}

BETTER: dict[Kind, tuple[str, ...]] = {
    "base_none": (f"{BASE}/diffusion_pytorch_model-00001-of-00007.safetensors",),
    "adapter_single": (f"{INFINITETALK}/single/infinitetalk.safetensors",),
    "adapter_multi": (f"{INFINITETALK}/multi/infinitetalk.safetensors",),
    "text_none": (PLAIN_TEXT_ENCODER, text_encoder_place("bf16")),
    "text_fp8": (
        *(f"{folder}/quant_models/t5_fp8.safetensors" for folder in (INFINITETALK, MULTITALK)),
        text_encoder_place("fp8"),
    ),
    "text_int8": (f"{MULTITALK}/quant_models/t5_int8.safetensors", text_encoder_place("int8")),
    "image": (IMAGE_ENCODER, COMPACT_IMAGE_ENCODER),
    "vae": (f"{BASE}/Wan2.1_VAE.pth",),
    "audio": (f"{SPEECH}/model.safetensors",),
}
"""Places of the files that a run prefers to another program's of this kind."""


@dataclass(frozen=True)
class Wanted:
    """A place to fill, and what is known of the file that belongs there."""

    place: str
    size: int | None = None
    digest: Digest | None = None
    file: HubFile | None = None
    remote: RemoteFile | None = None


@dataclass(frozen=True)
class Match:
    """A file of the other folder and its place in ours. `verified`: by its digest, not by its name or header alone."""

    wanted: Wanted
    source: Path
    size: int
    sha256: str
    verified: bool


@dataclass(frozen=True)
class Imported:
    """What was done with a match."""

    match: Match
    way: Way


@dataclass
class Sources:
    """The files of the other folder, each hashed at most once however many names it has."""

    folder: Path
    on_bytes: OnBytes = lambda count: None
    _by_size: dict[int, list[Path]] = field(default_factory=lambda: dict[int, list[Path]]())
    _hashers: dict[tuple[int, int], Hasher] = field(default_factory=lambda: dict[tuple[int, int], Hasher]())

    def __post_init__(self) -> None:
        for path in walk(self.folder):
            self._by_size.setdefault(path.stat().st_size, []).append(path)

    @property
    def paths(self) -> list[Path]:
        """All of them."""
        return [path for paths in self._by_size.values() for path in paths]

    def of_size(self, size: int) -> list[Path]:
        """Those of this length."""
        return self._by_size.get(size, [])

    def bytes_to_compare(self, wanted: Iterable[Wanted]) -> int:
        """How much will be read to compare digests."""
        sizes = {place.size for place in wanted if place.size is not None}
        return sum(size * len(self.of_size(size)) for size in sizes)

    def hasher(self, path: Path) -> Hasher:
        """The digests of a file's content."""
        found = path.stat()
        key = (found.st_dev, found.st_ino)
        if key not in self._hashers:
            self._hashers[key] = hash_file(path, self.on_bytes)
        return self._hashers[key]


def wanted_places(weights_dir: Path, remote_of: Callable[[HubFile], RemoteFile | None]) -> list[Wanted]:
    """The places of the layout that are empty, with what the hub or the list of sums says of their files.

    Args: remote_of: what the hub says of a file; None where it was not asked or doesn't know.
    """
    places = [_wanted(file, remote_of(file)) for file in all_files()]
    places += [
        Wanted(f"{FOLDER}/{listed.name}", listed.size, Digest("sha256", listed.sha256))
        for listed in PUBLISHED
        if listed.place is None and listed.name in READABLE
    ]
    return [wanted for wanted in places if not (weights_dir / wanted.place).is_file()]


def find_matches(wanted: Iterable[Wanted], sources: Sources) -> Iterator[Match]:
    """The files of the other folder that belong into the places. Raises: WeightsError: if one can't be read."""
    for place in wanted:
        with _reading():
            found = _match(place, sources)
        if found is not None:
            yield found


def choose_other_forms(weights_dir: Path, matches: Iterable[Match], sources: Sources) -> list[Path]:
    """The files that, by their headers, can be what the tree and the matches lack; one of each kind, the best."""
    matches = tuple(matches)
    taken, places = {match.source for match in matches}, {match.wanted.place for match in matches}
    there = {kind_of(Path(place)) for place in places}
    candidates: dict[Kind, list[Path]] = {}
    for path in sources.paths:
        kind = _other_form(path) if path not in taken else None
        if kind is not None and kind not in there and not _is_served(weights_dir, kind, places):
            candidates.setdefault(kind, []).append(path)
    best = [by_preference(kind, paths)[0] for kind, paths in candidates.items()]
    return [path for path in best if not (weights_dir / FOLDER / path.name).exists()]


def match_other_form(path: Path, sources: Sources) -> Match:
    """Another program's file and its place. Raises: WeightsError: if it can't be read."""
    with _reading():
        sha256 = sources.hasher(path).sha256
        return Match(Wanted(f"{FOLDER}/{path.name}"), path, path.stat().st_size, sha256, verified=False)


def damaged_files(sources: Sources) -> Iterator[tuple[Path, str]]:
    """Files that are called as ones that we could take, and what is wrong with them."""
    for path in sorted(sources.paths):
        if path.name in READABLE and (problem := header_problem(path)) is not None:
            yield path, problem


def bring(match: Match, weights_dir: Path, record: Record, *, symlink: bool, on_bytes: OnBytes) -> Imported:
    """Put a matched file at its place and record it. Raises: TalkError: if the disk is full or can't be written."""
    place = weights_dir / match.wanted.place
    with disk_errors(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        way = _link(match.source, place, symlink=symlink)
    if way == "copied":
        _copy(match, place, on_bytes)
    origin = match.wanted.remote.origin if match.wanted.remote else {}
    record.add(match.wanted.place, match.sha256, verified=match.verified, **origin)
    return Imported(match, way)


@contextmanager
def _reading() -> Generator[None, None, None]:
    try:
        yield
    except OSError as error:
        raise WeightsError(f"can't read {error.filename}: {error.strerror}", hint="check the disk") from error


def _wanted(file: HubFile, remote: RemoteFile | None) -> Wanted:
    if remote is not None and remote.size >= 0 and remote.digest.kind != "unknown":
        return Wanted(file.place, remote.size, remote.digest, file, remote)
    listed = published_at(file.place)
    if listed is not None:
        return Wanted(file.place, listed.size, Digest("sha256", listed.sha256), file)
    return Wanted(file.place, file=file)


def _match(wanted: Wanted, sources: Sources) -> Match | None:
    digest = wanted.digest
    candidates = _called_so(wanted, sources) if wanted.size is None else sources.of_size(wanted.size)
    for path in candidates:
        hasher = sources.hasher(path)
        if digest is not None and hasher.agrees_with(digest):
            return Match(wanted, path, path.stat().st_size, hasher.sha256, verified=True)
        if digest is None and header_problem(path) is None:
            named_by_digest = path.resolve().name == hasher.sha256  # a blob of the hub's cache
            return Match(wanted, path, path.stat().st_size, hasher.sha256, verified=named_by_digest)
    return None


def _other_form(path: Path) -> Kind | None:
    """What a file can be for us: named as it is known to be, or in the published size and of no other model."""
    kind = kind_by_content(path)
    if kind is None or path.name in KNOWN_NAMES[kind]:
        return kind
    if kind.startswith("base") or is_other_model(path.name) or not has_published_shapes(path):
        return None
    return kind


def _is_served(weights_dir: Path, kind: Kind, places: Collection[str]) -> bool:
    """Whether the tree has something of this kind, or gets it by a match."""
    better = BETTER.get(kind, ())
    return any(place in places or (weights_dir / place).is_file() for place in better) or bool(
        find_repackaged(weights_dir, kind)
    )


def _called_so(wanted: Wanted, sources: Sources) -> list[Path]:
    """The files whose path ends as the place does, or as the hub's cache files it."""
    tails = [tuple(wanted.place.split("/"))]
    found = [path for path in sources.paths if _ends_with(path, tails)]
    if wanted.file is not None:
        folder, tail = f"models--{wanted.file.repository.replace('/', '--')}", tuple(wanted.file.path.split("/"))
        found += [path for path in sources.paths if folder in path.parts and _ends_with(path, [tail])]
    return [path for path in found if path.stat().st_size]


def _ends_with(path: Path, tails: Iterable[tuple[str, ...]]) -> bool:
    parts = path.absolute().parts
    return any(parts[-len(tail) :] == tail for tail in tails)


def _link(source: Path, place: Path, *, symlink: bool) -> Way:
    real = source.resolve()
    try:
        os.link(real, place)
        return "linked"
    except OSError:
        if not symlink:
            return "copied"
    place.symlink_to(real)
    return "symlinked"


def _copy(match: Match, place: Path, on_bytes: OnBytes) -> None:
    with (
        PartFile(place, match.size, Digest("sha256", match.sha256), on_bytes=on_bytes) as part,
        match.source.open("rb") as file,
    ):
        file.seek(part.have_bytes)
        while data := file.read(READ_BYTES):
            part.write(data)
        if not part.is_right:
            part.discard()
            raise WeightsError(f"{match.source} changed while it was copied", hint="run the import again")
        part.finish()
