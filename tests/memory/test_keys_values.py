"""Kept keys and values are those that would be made, are made once, take no more room than given, and go afterwards."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from infinitalk_cli.measure import TINY_DIT, PassSetting, Workload, pass_inputs, random_dit
from infinitalk_cli.memory.keys_values import kept_keys_values
from infinitalk_cli.models.dit import DiT
from infinitalk_cli.run_transformer import steady_keys_values

CPU = torch.device("cpu")
WORK = Workload(height=32, width=48, num_frames=9, is_tiny=True)


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:  # pyright: ignore[reportUnusedFunction]
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def dit() -> DiT:
    with torch.no_grad():
        return random_dit(TINY_DIT, PassSetting("bf16"), CPU)


class Source(nn.Module):
    """Counts how often keys and values are made."""

    calls = 0

    def keys_values(self, x: Tensor, *, negated: bool = False) -> tuple[Tensor, Tensor]:
        self.calls += 1
        return (-x if negated else x + 1), x + 2


@pytest.mark.parametrize("num_speakers", [1, 2])
def test_passes_are_equal_bit_for_bit(dit: DiT, num_speakers: int) -> None:
    given = pass_inputs(dit, WORK, num_speakers)
    plain = dit(**given)
    other = {**given, "context": dit.embed_context(torch.ones(3, TINY_DIT.text_dim), torch.ones(1, 257, 1280))}
    plain_other = dit(**other)
    assert not torch.equal(plain, plain_other)
    with kept_keys_values(steady_keys_values(dit), 10**9) as room:
        passes = [dit(**given), dit(**other), dit(**given), dit(**other)]
        assert room.left_bytes < 10**9
    assert all(torch.equal(found, plain) for found in passes[::2])
    assert all(torch.equal(found, plain_other) for found in passes[1::2])


def test_a_second_pass_makes_none_anew(dit: DiT) -> None:
    given = pass_inputs(dit, WORK, 2)
    with kept_keys_values(steady_keys_values(dit), 10**9) as room:
        dit(**given)
        left_bytes = room.left_bytes
        dit(**given)
        assert room.left_bytes == left_bytes


def test_what_finds_no_room_is_made_again(dit: DiT) -> None:
    given = pass_inputs(dit, WORK, 1)
    with kept_keys_values(steady_keys_values(dit), 20_000) as room:
        passes = [dit(**given) for _ in range(2)]
        assert 0 <= room.left_bytes < 20_000
    assert torch.equal(passes[0], passes[1])


def test_each_source_and_way_is_made_once_and_nothing_stays() -> None:
    source, x, y = Source(), torch.ones(4), torch.ones(4)
    with kept_keys_values([(source, "keys_values")], 1000):
        for _ in range(3):
            assert torch.equal(source.keys_values(x)[0], x + 1)
            assert torch.equal(source.keys_values(x, negated=True)[0], -x)
            source.keys_values(y)
            assert torch.equal(source.keys_values(x[1:])[1], x[1:] + 2)  # another view each time, of the same part
        assert source.calls == 4
    source.keys_values(x)
    assert source.calls == 5
