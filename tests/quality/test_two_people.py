"""Two held-out people in one picture: each follows the own voice and no other."""

from __future__ import annotations

import pytest
import torch

from tests.quality.conftest import SEEDS
from training.demo.theatre import SHAPE_OF_TWO, Theatre, boxed, swapped, together, who_follows_whom

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

SECONDS = 12.0
LEAST = 0.9
"""Of the correlation with the own voice; 0.8 is wanted. Measured: 0.95 to 0.97, swapped and boxed too."""
MOST_FOREIGN = 0.2
"""Of that with the other's voice. Measured: 0.14."""


def check(found: dict[str, float]) -> None:
    assert min(found["mouth_1_voice_1"], found["mouth_2_voice_2"]) >= LEAST
    assert max(found["mouth_1_voice_2"], found["mouth_2_voice_1"]) < MOST_FOREIGN


@pytest.mark.parametrize("seed", SEEDS)
def test_each_mouth_follows_its_own_voice(theatre: Theatre, seed: int) -> None:
    check(together(theatre, seed, SECONDS))


@pytest.mark.parametrize("speaker", [0, 1])
def test_who_is_silent_keeps_the_mouth_closed(theatre: Theatre, speaker: int) -> None:
    scene, voice = theatre.scene(1, *SHAPE_OF_TWO, 2), theatre.said(1, SECONDS)
    speech = [torch.zeros_like(voice), torch.zeros_like(voice)]
    speech[speaker] = voice
    found = who_follows_whom(theatre.play(scene, speech, 1), scene, [voice, voice])
    assert found[f"mouth_{speaker + 1}_voice_1"] >= LEAST
    assert found[f"mouth_{2 - speaker}_voice_1"] < MOST_FOREIGN


def test_swapped_voices_swap_the_mouths(theatre: Theatre) -> None:
    check(swapped(theatre, 2, SECONDS))


def test_boxes_at_unusual_places_are_heeded(theatre: Theatre) -> None:
    """The first speaker on the right, the boxes no larger than the faces."""
    check(boxed(theatre, 2, SECONDS))
