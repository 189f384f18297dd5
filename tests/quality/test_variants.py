"""What saves time or memory must not cost the lips: 8-bit weights, skipped steps, blended borders."""

from __future__ import annotations

from typing import Any

import pytest

from infinitalk_cli.weights import Quant
from tests.quality.conftest import DEVICE, SHAPE, Film
from training.demo.theatre import Ensemble, Theatre, alone

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

SEED, SECONDS = 0, 8.0
MOST_LOST = 0.03
TEACACHE = 4.0
"""A threshold at which one of the eight steps is skipped; at the usual 0.2 none is."""


@pytest.mark.parametrize("quant", ["fp8", "int8"])
def test_8_bit_weights_lose_next_to_nothing(theatre: Theatre, film: Film, quant: Quant) -> None:
    rounded = theatre.with_networks(Ensemble.of_package(DEVICE, quant))
    assert_close(alone(rounded, SEED, SECONDS, SHAPE), film(SEED, SECONDS))


def test_skipped_steps_lose_next_to_nothing(theatre: Theatre, film: Film) -> None:
    skipping = alone(theatre, SEED, SECONDS, SHAPE, step_cache_threshold=TEACACHE)
    assert_close(skipping, film(SEED, SECONDS))


def test_blending_chunks_loses_next_to_nothing(theatre: Theatre, film: Film) -> None:
    assert_close(film(SEED, SECONDS), alone(theatre, SEED, SECONDS, SHAPE, cross_fade=False))


def assert_close(variant: dict[str, Any], plain: dict[str, Any]) -> None:
    assert abs(variant["lag"]) <= 1
    assert variant["sync"] > plain["sync"] - MOST_LOST
