"""What is done when the GPU's memory runs out, with errors raised by hand."""

from __future__ import annotations

import pytest
import torch

from infinitalk_cli.errors import OutOfGpuMemoryError
from infinitalk_cli.memory.ladder import Ladder, is_out_of_memory


@pytest.mark.parametrize(
    ("error", "is_it"),
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (MemoryError("out of memory"), False),
    ],
)
def test_want_of_gpu_memory_is_told_from_other_errors(error: Exception, is_it: bool) -> None:
    assert is_out_of_memory(error) == is_it


class Steps:
    """A ladder of numbers from 3 down to 0, and what happened on it."""

    def __init__(self) -> None:
        self.taken: list[int] = []
        self.told: list[int] = []
        self.found: list[int] = []
        self.ladder = Ladder(
            rung=3,
            lower=lambda rung: rung - 1 if rung else None,
            take=self.taken.append,
            on_step=self.told.append,
            on_found=self.found.append,
            last_failed=lambda said: OutOfGpuMemoryError(f"too little: {said}"),
        )

    def need(self, rung: int) -> str:
        if self.ladder.rung > rung:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.\nmore lines")
        return f"made on {self.ladder.rung}"


def test_the_same_is_tried_again_on_the_next_rungs_until_one_works() -> None:
    steps = Steps()
    assert steps.ladder.attempt(lambda: steps.need(1)) == "made on 1"
    assert (steps.taken, steps.told, steps.found) == ([2, 1], [2, 1], [1])


def test_what_works_at_once_changes_nothing_and_later_attempts_stay_down() -> None:
    steps = Steps()
    assert steps.ladder.attempt(lambda: steps.need(3)) == "made on 3"
    assert (steps.taken, steps.found) == ([], [])
    steps.ladder.attempt(lambda: steps.need(2))
    assert steps.ladder.attempt(lambda: steps.need(3)) == "made on 2"
    assert steps.found == [2]


def test_only_when_the_last_rung_has_failed_is_it_an_error() -> None:
    steps = Steps()
    with pytest.raises(OutOfGpuMemoryError, match=r"^too little: CUDA out of memory\.$"):
        steps.ladder.attempt(lambda: steps.need(-1))
    assert steps.taken == [2, 1, 0]
    assert steps.found == []


def test_another_error_is_not_tried_again() -> None:
    steps = Steps()
    with pytest.raises(ZeroDivisionError):
        steps.ladder.attempt(lambda: 1 // 0)
    assert steps.taken == []
