"""Compact weight files: where `talk weights convert` puts them, and whether they still say what their sources say.

A compact file replaces published files that hold more than a run reads. Its header names the files that it was made of,
each with its length, its time of change, a digest of samples and, where a download recorded one, the digest of the
whole. A source that is gone is no matter, for that is what compact files are for. A source that is there with another
length, or with another time and other samples, makes the file stale: it is passed over as if it were not there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, cast

from infinitalk_cli.errors import WeightsError
from infinitalk_cli.file_headers import LENGTH_BYTES, METADATA, header_problem

Form = Literal["bf16", "fp8", "int8"]

FOLDER = "compact"
VERSION = "1"
"""To be raised when the meaning of the files changes; files of another version are stale."""

VERSION_KEY, SOURCES_KEY, LORAS_KEY = "talk_compact", "talk_sources", "talk_loras"
IMAGE_ENCODER = f"{FOLDER}/clip_vision_fp16.safetensors"

SAMPLE_BYTES = 64 * 2**10
NUM_SAMPLES = 64


@dataclass(frozen=True)
class Source:
    """A file that a compact file was made of.

    `place`: under the weights folder, with forward slashes; a whole path for a file from elsewhere. `mtime_ns`: its
    time of change then. `samples`: SHA-256 over pieces of it. `sha256`: of all of it, "" where nobody had made it.
    """

    place: str
    size: int
    mtime_ns: int
    samples: str
    sha256: str = ""


def transformer_place(engine: str, num_speakers: int, form: Form, *, has_loras: bool = False) -> str:
    """Where base and adapter in one file belong. MultiTalk has one adapter for one and for two speakers."""
    kind = "" if engine == "multitalk" else "_single" if num_speakers == 1 else "_multi"
    return f"{FOLDER}/{engine}{kind}_{form}{'_lora' if has_loras else ''}.safetensors"


def text_encoder_place(form: Form) -> str:
    """Where the text encoder belongs."""
    return f"{FOLDER}/t5_{form}.safetensors"


def describe_source(path: Path, weights_dir: Path, sha256: str = "") -> Source:
    """What a header says of a source as it is now."""
    place = path.relative_to(weights_dir).as_posix() if path.is_relative_to(weights_dir) else str(path.absolute())
    found = path.stat()
    return Source(place, found.st_size, found.st_mtime_ns, sample_digest(path), sha256)


def sample_digest(path: Path) -> str:
    """SHA-256 over the length and evenly spaced pieces of a file, its beginning and its end among them."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode("ascii"))
    last = max(size - SAMPLE_BYTES, 0)
    with path.open("rb", buffering=0) as file:
        for start in sorted({last * number // (NUM_SAMPLES - 1) for number in range(NUM_SAMPLES)}):
            file.seek(start)
            digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


def header_metadata(sources: Iterable[Source], loras: Mapping[str, float]) -> dict[str, str]:
    """What the header of a compact file says. Args: loras: strength by place."""
    return {
        "format": "pt",
        VERSION_KEY: VERSION,
        SOURCES_KEY: json.dumps([asdict(source) for source in sources]),
        LORAS_KEY: json.dumps(loras),
    }


def read_metadata(path: Path) -> dict[str, str]:
    """What the header of a safetensors file says beside its tensors.

    Raises: WeightsError: if the file is damaged: a file that was cut must not pass for one that is not there.
    """
    problem = header_problem(path)
    if problem is not None:
        raise _damaged(path, problem)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(LENGTH_BYTES), "little")
        said = json.loads(file.read(length)).get(METADATA, {})
    if not isinstance(said, dict) or any(not isinstance(text, str) for text in cast("dict[str, Any]", said).values()):
        raise _damaged(path, "its header does not say what it was made of")
    return cast("dict[str, str]", said)


def recorded_sources(path: Path) -> tuple[Source, ...] | None:
    """The files that a compact file was made of; None if it is of another version or no compact file.

    Raises: WeightsError: if the file is damaged.
    """
    said = read_metadata(path)
    if said.get(VERSION_KEY) != VERSION:
        return None
    try:
        return tuple(_read_source(item) for item in json.loads(said[SOURCES_KEY]))
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, "its header does not say what it was made of") from error


def recorded_loras(path: Path) -> dict[str, float]:
    """Strength by path of the LoRAs that are in a compact file. Raises: WeightsError: if the file is damaged."""
    try:
        return dict(json.loads(read_metadata(path)[LORAS_KEY]))
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, "its header does not say what it was made of") from error


def is_current(path: Path, weights_dir: Path) -> bool:
    """Whether a compact file is there and none of its sources has changed. Raises: WeightsError: if it is damaged."""
    if not path.is_file():
        return False
    sources = recorded_sources(path)
    return sources is not None and not any(_has_changed(source, weights_dir) for source in sources)


def _has_changed(source: Source, weights_dir: Path) -> bool:
    path = weights_dir / source.place
    try:
        found = path.stat()
    except OSError:
        return False
    if found.st_size != source.size:
        return True
    return found.st_mtime_ns != source.mtime_ns and sample_digest(path) != source.samples


def _read_source(item: Mapping[str, Any]) -> Source:
    source = Source(**{field.name: item[field.name] for field in fields(Source)})
    if not (isinstance(source.place, str) and type(source.size) is int and type(source.mtime_ns) is int):
        raise TypeError("a field of another type")
    return source


def _damaged(path: Path, problem: str) -> WeightsError:
    return WeightsError(
        f"{path} is damaged: {problem}",
        hint=f"delete it with `talk weights rm {FOLDER}/{path.name}`; `talk weights convert` makes it again",
    )
