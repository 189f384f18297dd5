"""What several GPUs of one host gain over one: the same pass both ways, timed and compared.

Weights are random, made on each GPU from one seed, so all GPUs must be of one kind: others draw other numbers.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from infinitalk_cli.measure import Measured, PassSetting, Stopwatch, Workload, pass_inputs, ready_dit, time_pass
from infinitalk_cli.models.dit import DiT
from infinitalk_cli.parallel.team import Team


@dataclass(frozen=True)
class Comparison:
    """A pass on one GPU and on `num_gpus`. Differences are between the two velocities.

    `relative_difference`: of the norms. `max_difference`: the largest, beside `max_value`, the largest value.
    """

    num_gpus: int
    one: Measured
    many: Measured
    relative_difference: float
    max_difference: float
    max_value: float

    @property
    def speed_up(self) -> float:
        """How many times faster the many are."""
        return self.one.median_s / self.many.median_s


@torch.no_grad()
def compare_gpus(num_gpus: int, setting: PassSetting, work: Workload, watch: Stopwatch) -> Comparison:
    """Time a pass on one GPU, then on several. Raises: EnvironmentUnfitError: if they are not there."""
    team = Team(num_gpus, watch.device, partial(build_random, setting, is_tiny=work.is_tiny))
    with ready_dit(setting, watch.device, is_tiny=work.is_tiny) as (dit, _):
        given = pass_inputs(dit, work, setting.num_speakers)
        one, expected = time_pass(dit, given, watch, setting.name)
        with team.running():
            team.lead(dit)
            with team.stage():
                many, found = time_pass(dit, given, watch, f"{setting.name} on {num_gpus}")
    return Comparison(num_gpus, one, many, *differences(found, expected))


def differences(found: Tensor, expected: Tensor) -> tuple[float, float, float]:
    """Of the norms, relative; the largest; and the largest value."""
    off, size = (found - expected).double(), expected.double()
    return (off.norm() / size.norm()).item(), off.abs().max().item(), size.abs().max().item()


@contextmanager
def build_random(setting: PassSetting, device: torch.device, *, is_tiny: bool) -> Generator[DiT]:
    """What the other processes load."""
    with ready_dit(setting, device, is_tiny=is_tiny) as (dit, _):
        yield dit
