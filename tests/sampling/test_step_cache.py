from __future__ import annotations

import pytest
import torch

from infinitalk_cli.sampling.step_cache import (
    COEFFICIENTS,
    FIRST_FULL_STEPS,
    StepCache,
    relative_change,
    rescaled_change,
    steps_that_reuse,
)


@pytest.mark.parametrize(
    ("change", "at_480", "at_720"),
    [
        (0.0, 0.13252, -0.04178),
        (0.005, 0.09538, 0.03227),
        (0.01, 0.10406, 0.08935),
        (0.02, 0.17965, 0.15982),
        (0.05, 0.13956, 0.17431),
        (0.1, 3.09446, 0.83555),
    ],
)
def test_polynomials(change: float, at_480: float, at_720: float) -> None:
    assert rescaled_change(change, COEFFICIENTS["480"]) == pytest.approx(at_480, abs=1e-5)
    assert rescaled_change(change, COEFFICIENTS["720"]) == pytest.approx(at_720, abs=1e-5)


def test_change_is_relative_to_the_earlier_embedding() -> None:
    assert relative_change(torch.tensor([3.0, -3.0]), torch.tensor([2.0, -2.0])) == pytest.approx(0.5)


def growing(num_steps: int) -> list[torch.Tensor]:
    """Embeddings each of which is 10 % larger than the one before."""
    return [torch.tensor([1.1**step]) for step in range(num_steps)]


def test_blocks_run_again_when_the_changes_add_up_to_the_threshold() -> None:
    linear = (1.0, 0.0)
    reuse = steps_that_reuse(growing(12), 0.25, linear)
    assert reuse[:FIRST_FULL_STEPS] == [False] * 5
    assert reuse[FIRST_FULL_STEPS:] == [True, True, False, True, True, False, True]


def test_few_steps_never_skip() -> None:
    assert not any(steps_that_reuse(growing(5), 1e9, (1.0, 0.0)))


def test_residuals_are_kept_per_kind_of_pass_and_only_while_they_are_needed() -> None:
    cache = StepCache([False, False, True, True, False])
    assert cache.residual(0, "cond") is None
    filled, other = cache.residual(1, "cond"), cache.residual(1, "uncond")
    assert filled is not None
    assert filled is not other
    assert not filled.reuse
    assert cache.residual(2, "cond") is filled
    assert filled.reuse
    assert cache.residual(3, "cond") is filled
    assert cache.residual(4, "cond") is None


def test_a_step_between_two_skips_refills_the_residual() -> None:
    cache = StepCache([False, True, False, True])
    holder = cache.residual(0, "cond")
    assert holder is not None
    assert [cache.residual(step, "cond") is holder and holder.reuse for step in (1, 2, 3)] == [True, False, True]
