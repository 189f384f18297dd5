"""Features of prompts on the disk, so that the text encoder, which is as large as a card, need not read one twice.

An entry's name is a digest of all that its values follow from: the cleaned prompt, the files of the encoder and the
tokenizer, the dtype, and what computed it. So a hit has the very bits that the encoder would make, and a changed file
is another entry. The prompt itself is not kept. Of a file of gigabytes its length, its time and its first megabyte,
with the header, stand for the rest.

An entry that can't be read counts as none and is made anew; a cache that can't be written is no obstacle to a run.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from infinitalk_cli.models.text_encoder import clean_prompt
from infinitalk_cli.weights import WeightFiles

ENVIRONMENT_VARIABLE = "TALK_PROMPT_CACHE"
"""The folder of the cache, where it is not to be the user's cache folder. Empty: no cache."""

RULE_VERSION = 1
"""To be raised when the same prompt and files give other values."""
MAX_ENTRIES = 200
"""Of at most 4 MB each; beyond it those go that were not used for longest."""
PREFIX = "prompt-"
"""Of the files' names: others in the folder are left alone."""
_HEAD_BYTES = 2**20
_TENSOR = "features"


@dataclass(frozen=True)
class PromptCache:
    """Features of prompts as one encoder makes them. `encoder`: all that they depend on beside the prompt."""

    folder: Path
    encoder: str
    dtype: torch.dtype

    def find(self, prompt: str) -> Tensor | None:
        """The features `(L, dim)` of a prompt, on the CPU; None if they are not there or of no use."""
        path = self._path(prompt)
        try:
            features = load_file(path)[_TENSOR]
        except (OSError, SafetensorError, KeyError, ValueError):
            return None
        if features.dtype != self.dtype or features.dim() != 2 or not features.isfinite().all():
            return None
        with suppress(OSError):
            os.utime(path)  # used just now
        return features

    def keep(self, prompt: str, features: Tensor) -> None:
        """Store what the encoder made of a prompt."""
        path = self._path(prompt)
        part = path.with_suffix(f".{os.getpid()}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({_TENSOR: features.cpu().contiguous()}, part)
            part.replace(path)
        except (OSError, SafetensorError):
            with suppress(OSError):
                part.unlink()
        self._forget_oldest()

    def _path(self, prompt: str) -> Path:
        return self.folder / f"{PREFIX}{_digest([self.encoder, clean_prompt(prompt)])}.safetensors"

    def _forget_oldest(self) -> None:
        with suppress(OSError):  # another run may be at the same
            entries = sorted(self.folder.glob(f"{PREFIX}*"), key=lambda path: path.stat().st_mtime, reverse=True)
            for path in entries[MAX_ENTRIES:]:
                path.unlink()


def open_prompt_cache(files: WeightFiles, dtype: torch.dtype, computed_by: str) -> PromptCache | None:
    """The cache for an encoder's files; None if the user wants none. `computed_by`: the device, by its model."""
    named = os.environ.get(ENVIRONMENT_VARIABLE)
    if named == "":
        return None
    encoder = [RULE_VERSION, str(dtype), computed_by, *_identity(files.text_encoder), *_identity(files.tokenizer)]
    return PromptCache(Path(named).expanduser() if named else _user_folder(), _digest(encoder), dtype)


def _user_folder() -> Path:
    import platformdirs

    return platformdirs.user_cache_path("infinitalk-cli", appauthor=False) / "prompts"


def _identity(path: Path) -> tuple[int, int, str]:
    """What tells a file from another one: length, time of the last change, and a digest of its beginning."""
    state = path.stat()
    with path.open("rb") as file:
        return state.st_size, state.st_mtime_ns, hashlib.sha256(file.read(_HEAD_BYTES)).hexdigest()


def _digest(content: Sequence[str | int]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]
