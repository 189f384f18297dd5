"""The demo's trained weights, and held-out people and speech to measure them with."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from infinitalk_cli.demo_package import ENVIRONMENT_VARIABLE, WEIGHTS
from training.demo.theatre import Ensemble, Theatre, alone

DATA = Path(__file__).parents[1] / "data" / "demo"
DEVICE = torch.device(os.environ.get("TALK_TEST_DEVICE", "cpu"))
"""On a GPU: `TALK_TEST_DEVICE=cuda pytest -m slow tests/quality`."""

SHAPE = (128, 128)
SEEDS = range(5)

Film = Callable[[int, float], dict[str, Any]]


@pytest.fixture(scope="session")
def trained() -> Generator[None]:
    """The package's own weights, which the other tests do without."""
    if not WEIGHTS.is_dir():
        pytest.skip("the package has no trained weights")
    with pytest.MonkeyPatch.context() as session:
        session.delenv(ENVIRONMENT_VARIABLE, raising=False)
        yield


@pytest.fixture(scope="session")
def theatre(trained: None) -> Theatre:
    return Theatre(Ensemble.of_package(DEVICE), DATA, DEVICE)


@pytest.fixture(scope="session")
def film(theatre: Theatre) -> Film:
    """One person who talks so many seconds, with all figures; each made once a session."""

    @cache
    def make(seed: int, seconds: float) -> dict[str, Any]:
        return alone(theatre, seed, seconds, SHAPE)

    return make
