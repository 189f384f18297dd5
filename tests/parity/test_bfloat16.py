"""Whole videos with the transformer in bfloat16, as runs on a GPU have it: how far they stray from the reference.

The references are exact maths in float32, so this is no parity but a bound. A tiny network of random weights is no
measure of a picture's quality either; the bound catches a part that should have stayed float32 and did not.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.parity.conftest import TinyTree
from tests.parity.reference import DEVICE, Case, cases, tensor
from tests.parity.whole_run import Encoders, run_case

ONE_SPEAKER = [
    case
    for case in (*cases("e2e"), *cases("multitalk"))
    if len(case.inputs["audio_embeddings"]) == 1 and "teacache_threshold" not in case.settings
]

LARGEST_DEVIATION = 0.1
"""Root mean square of the difference, as a share of the reference's; guidance at 5 and 4 magnifies rounding."""


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE.type == "cpu", reason="TALK_TEST_DEVICE names no GPU")
@pytest.mark.parametrize("case", ONE_SPEAKER, ids=str)
def test_bfloat16_stays_near_the_reference(
    case: Case, tiny_tree: TinyTree, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    run = run_case(tiny_tree, case, Encoders.build(tiny_tree, case), tmp_path, torch.bfloat16)
    decoded = run.chunks[0].decoded
    assert decoded is not None
    expected = tensor(case.expected["final_latents"][0])
    deviation = float((decoded - expected).norm() / expected.norm())
    record_property("deviation", deviation)
    print(f"\n{case.id}: deviation of the first chunk's latents in bfloat16 {deviation:.4f}")
    assert deviation < LARGEST_DEVIATION
