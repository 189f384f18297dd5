"""The tiny weights tree of the reference set, written once per test session, file by file as tests ask for them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.parity.reference import manifest, reference_dir
from training.random_tree import write_tree


@dataclass(frozen=True)
class TinyTree:
    """The weights folder of the reference set in the published layout."""

    root: Path

    def need(self, *files: str) -> list[Path]:
        """The paths of `files` (names of the manifest), written if they are not there yet."""
        missing = [name for name in files if not (self.root / name).exists()]
        if missing:
            write_tree(manifest(), self.root, source=reference_dir(), only=missing)
        return [self.root / name for name in files]

    def need_matching(self, *patterns: str) -> list[Path]:
        """Every file of the manifest that a glob pattern names."""
        names = [name for name in self.names() if any(Path(name).match(pattern) for pattern in patterns)]
        return self.need(*names)

    def need_all(self) -> Path:
        """The whole tree."""
        self.need(*self.names())
        return self.root

    def names(self) -> Iterable[str]:
        """Every file of the manifest, derived (quantised) ones included."""
        listed = manifest()
        derived = listed.get("derived_files", {})
        maps = [entry["map_file"] for entry in derived.values() if "map_file" in entry]
        return [*listed["files"], *listed["json_files"], *listed["copied_dirs"], *derived, *maps]


@pytest.fixture(scope="session", autouse=True)
def full_float32() -> None:
    """On a GPU, TF32 would round every product to 10 bits; the tolerances are for float32."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


@pytest.fixture(scope="session")
def tiny_tree(tmp_path_factory: pytest.TempPathFactory) -> TinyTree:
    """The reference set's weights on disk."""
    return TinyTree(tmp_path_factory.mktemp("tiny_weights"))
