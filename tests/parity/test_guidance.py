"""Guidance, plain and projected, against the original's predictions step by step."""

from __future__ import annotations

import pytest
from torch import Tensor

from infinitalk_cli.sampling.guidance import Guidance, PassKind
from infinitalk_cli.sampling.settings import ApgSettings
from tests.parity.reference import Case, cases, expect_close, tensor, value


def apg_of(case: Case) -> ApgSettings | None:
    if "norm_threshold" not in case.settings:
        return None
    return ApgSettings(
        momentum=case.settings["momentum"],
        norm_threshold=case.settings["norm_threshold"],
        parallel_weight=case.settings["eta"],
    )


@pytest.mark.parametrize("case", cases("guidance"), ids=str)
def test_guided_prediction_equals_the_reference(case: Case) -> None:
    guidance = Guidance(case.settings["text_scale"], case.settings["audio_scale"], apg_of(case))
    steps = {int(name.partition("@")[2] or 0): name for name in case.expected}
    for step, name in sorted(steps.items()):
        velocities: dict[PassKind, Tensor] = {kind: tensor(case.inputs[f"{kind}@{step}"]) for kind in guidance.kinds}
        expect_close(guidance.combine(velocities), value(case.expected[name]), case.tolerance, name)
