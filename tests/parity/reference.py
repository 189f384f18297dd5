"""Access to the reference data: the outputs of the original programs on tiny random weights.

`TALK_REFERENCE_DIR` names another set in the same format (other sizes and seeds); the tests then run on that one. So
tests choose cases by what the data says (`family`, `settings`, the expected keys), never by their ids.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open

Array = NDArray[Any]

DEVICE = torch.device(os.environ.get("TALK_TEST_DEVICE", "cpu"))
"""Where the parity tests compute. On a GPU the same tests run with `TALK_TEST_DEVICE=cuda` (TF32 off)."""


def reference_dir() -> Path:
    """The folder of the reference set."""
    named = os.environ.get("TALK_REFERENCE_DIR")
    return Path(named) if named else Path(__file__).parent.parent / "data" / "reference"


@dataclass(frozen=True)
class Case:
    """One case of `goldens.json`."""

    id: str
    family: str
    data: Mapping[str, Any]

    @property
    def group(self) -> str:
        """What the case tests: the part of the id before the slash."""
        return self.id.split("/")[0]

    @property
    def settings(self) -> Mapping[str, Any]:
        return self.data.get("settings", {})

    @property
    def inputs(self) -> Mapping[str, Any]:
        return self.data.get("inputs", {})

    @property
    def expected(self) -> Mapping[str, Any]:
        return self.data["expected"]

    @property
    def weights(self) -> Mapping[str, Any]:
        return self.data.get("weights", {})

    @property
    def tolerance(self) -> Any:
        return self.data.get("tolerance")

    def __repr__(self) -> str:
        return self.id


@cache
def goldens() -> Mapping[str, Any]:
    """The parsed `goldens.json`."""
    return json.loads((reference_dir() / "goldens.json").read_text(encoding="utf-8"))


@cache
def manifest() -> Mapping[str, Any]:
    """The parsed `tiny_weights.json`."""
    return json.loads((reference_dir() / "tiny_weights.json").read_text(encoding="utf-8"))


@cache
def full_manifest() -> Mapping[str, Any]:
    """The parsed `full_weights.json`: names and shapes of the published files."""
    return json.loads((reference_dir() / "full_weights.json").read_text(encoding="utf-8"))


def cases(group: str, where: Callable[[Case], bool] = lambda _: True) -> list[Case]:
    """The cases of one group (`dit`, `e2e`, ...) for which `where` holds."""
    found = [Case(entry["id"], entry["family"], entry) for entry in goldens()["cases"]]
    return [case for case in found if case.group == group and where(case)]


def rule(name: str, shape: list[int], seed: int, scale: float, offset: float) -> Array:
    """The numbers that the rule of the reference set gives for a name."""
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode("utf-8")) + seed))
    return generator.standard_normal(shape, dtype=np.float32) * np.float32(scale) + np.float32(offset)


def value(form: Mapping[str, Any]) -> Array:
    """The array that a value form of the data describes."""
    if "rule" in form:
        made = rule(**{key: form["rule"][key] for key in ("name", "shape", "seed", "scale", "offset")})
        return made.clip(-1, 1) if "then" in form else made
    if "zeros" in form:
        return np.zeros(form["zeros"], np.float32)
    if "ones" in form:
        return np.ones(form["ones"], np.float32)
    with safe_open(reference_dir() / form["file"], framework="np") as stored:
        return stored.get_tensor(form["tensor"])


def tensor(form: Mapping[str, Any]) -> torch.Tensor:
    """`value` as a torch tensor on `DEVICE`."""
    return torch.from_numpy(np.ascontiguousarray(value(form))).to(DEVICE)


def named_values(entry: Mapping[str, Any]) -> Iterator[tuple[str, Array]]:
    """The entries of an `expected` mapping that are stored arrays."""
    for name, form in entry.items():
        if isinstance(form, dict) and "file" in form and "tensor" in form:
            yield name, value(form)  # pyright: ignore[reportUnknownArgumentType]


def expect_close(actual: Any, expected: Any, tolerance: Mapping[str, float] | str, what: str) -> None:
    """Assert closeness in the sense of `numpy.allclose` with the tolerance of the data (or equality for "exact")."""
    got, want = _on_host(actual), _on_host(expected)
    assert got.shape == want.shape, f"{what}: shape {got.shape}, expected {want.shape}"
    if isinstance(tolerance, str):
        assert tolerance.startswith("exact"), f"{what}: unknown tolerance {tolerance!r}"
        assert np.array_equal(got, want), f"{what}: differs in {int((got != want).sum())} of {got.size} values"
        return
    difference = np.abs(got.astype(np.float64) - want.astype(np.float64))
    allowed = tolerance["atol"] + tolerance["rtol"] * np.abs(want.astype(np.float64))
    assert np.isfinite(got).all(), f"{what}: not finite"
    assert (difference <= allowed).all(), f"{what}: off by up to {difference.max():.3g}, allowed {tolerance}"


def _on_host(values: Any) -> Array:
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
