from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from infinitalk_cli.sampling.schedule import TIME_SCALE, get_timesteps


@pytest.mark.parametrize(
    ("num_steps", "shift", "expected"),
    [
        (8, 2.0, [1000.00, 923.16, 833.53, 727.62, 600.56, 445.31, 251.31, 2.00, 0]),
        (4, 7.0, [1000.00, 933.43, 778.30, 6.96, 0]),
        (1, 7.0, [1000, 0]),
    ],
)
def test_times_of_the_recommended_settings(num_steps: int, shift: float, expected: list[float]) -> None:
    assert [TIME_SCALE * t for t in get_timesteps(num_steps, shift)] == pytest.approx(expected, abs=0.005)


def test_ends_of_a_long_schedule() -> None:
    times = [TIME_SCALE * t for t in get_timesteps(40, 7.0)]
    assert times[:4] == pytest.approx([1000, 996.26, 992.35, 988.25], abs=0.005)
    assert times[-4:] == pytest.approx([278.38, 160.65, 6.96, 0], abs=0.005)
    assert len(times) == 41


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0, 11.0])
def test_time_only_falls_from_one_to_zero(shift: float) -> None:
    times = get_timesteps(20, shift)
    assert (times[0], times[-1]) == (1.0, 0.0)
    assert all(later < earlier for earlier, later in pairwise(times))


def test_times_are_float32_numbers_on_the_networks_scale() -> None:
    times = np.array([TIME_SCALE * t for t in get_timesteps(20, 5.0)])
    assert np.abs(times - times.astype(np.float32)).max() < 1e-12
