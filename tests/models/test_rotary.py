"""Rotary embedding: which pair turns by which angle."""

from __future__ import annotations

import pytest
import torch

from infinitalk_cli.models.rotary import Rotation, grid_rotation, position_rotation, rotate

CPU = torch.device("cpu")


def angles(rotation: Rotation) -> torch.Tensor:
    return torch.atan2(rotation.sin, rotation.cos)


@pytest.mark.parametrize(
    ("token", "pairs", "expected"),
    [
        (4, [0, 1, 2, 3, 21], [1, 0.657933, 0.432876, 0.284804, 1.51991e-4]),  # frame 1, row 0, column 0
        (2, [22, 23, 24, 25, 42], [1, 0.644947, 0.415956, 0.268270, 1.55052e-4]),  # row 1
        (1, [43, 44, 45, 46, 63], [1, 0.644947, 0.415956, 0.268270, 1.55052e-4]),  # column 1
    ],
)
def test_each_axis_turns_its_own_pairs(token: int, pairs: list[int], expected: list[float]) -> None:
    turned = angles(grid_rotation((2, 2, 2), 128, CPU))[token, 0]
    torch.testing.assert_close(turned[pairs], torch.tensor(expected), atol=1e-6, rtol=1e-5)
    others = torch.ones(64, dtype=torch.bool)
    others[pairs[0] : pairs[-1] + 1] = False
    assert (turned[others] == 0).all()


def test_tokens_run_over_columns_then_rows_then_frames() -> None:
    first_of_axis = angles(grid_rotation((2, 3, 2), 128, CPU))[:, 0, [0, 22, 43]]
    expected = [[t, y, x] for t in range(2) for y in range(3) for x in range(2)]
    torch.testing.assert_close(first_of_axis, torch.tensor(expected).float())


def test_far_positions_keep_their_digits() -> None:
    rotation = grid_rotation((900, 1, 1), 32, CPU)
    position, pair, width = 899, 1, 12
    expected = torch.tensor(position * 10000.0 ** (-2 * pair / width), dtype=torch.float64).cos()
    assert abs(rotation.cos[position, 0, pair].double() - expected) < 1e-7


def test_narrow_heads_split_unevenly() -> None:
    assert grid_rotation((2, 2, 2), 32, CPU).cos.shape == (8, 1, 16)


def test_real_positions_turn_the_whole_width() -> None:
    turned = position_rotation(torch.tensor([[2.0, 22.0]]), 128)
    assert turned.cos.shape == (1, 2, 1, 64)
    expected = torch.tensor([2, 1.731929, 1.499788])
    torch.testing.assert_close(angles(turned)[0, 0, 0, :3], expected, atol=1e-6, rtol=1e-6)


def test_pairs_are_neighbours_and_turn_counter_clockwise() -> None:
    quarter = torch.full((1, 1, 2), torch.pi / 2)
    x = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 1, 4)
    turned = rotate(x, Rotation(quarter.cos(), quarter.sin()))
    torch.testing.assert_close(turned.flatten(), torch.tensor([-2.0, 1.0, -4.0, 3.0]))


def test_products_depend_on_the_distance_alone() -> None:
    q, k = torch.randn(1, 1, 2, 16), torch.randn(1, 1, 2, 16)

    def product(at: float, to: float) -> torch.Tensor:
        turned = [rotate(x, position_rotation(torch.tensor([p]), 16)) for x, p in ((q, at), (k, to))]
        return (turned[0] * turned[1]).sum(-1)

    torch.testing.assert_close(product(3.0, 5.5), product(13.0, 15.5), atol=1e-5, rtol=1e-5)


def test_dtype_of_the_input_is_kept() -> None:
    x = torch.randn(1, 3, 2, 8).to(torch.bfloat16)
    rotation = position_rotation(torch.arange(3.0), 8)
    expected = rotate(x.float(), rotation).to(torch.bfloat16)
    assert torch.equal(rotate(x, rotation), expected)
