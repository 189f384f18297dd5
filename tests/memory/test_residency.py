"""Networks on the device for their stage. The meta device stands in for a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from infinitalk_cli.memory.residency import Residency

ELSEWHERE = torch.device("meta")


def tied_net() -> nn.Sequential:
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))
    net[2].weight = net[0].weight
    return net


def devices(net: nn.Module) -> set[str]:
    return {tensor.device.type for tensor in (*net.parameters(), *net.buffers())}


def test_module_is_there_for_its_stage_and_its_own_tensors_come_back() -> None:
    net = tied_net()
    before = [*net.parameters(), *net.buffers()]
    with Residency(ELSEWHERE).on_stage(net):
        assert devices(net) == {"meta"}
        assert net[0].weight is net[2].weight
    assert all(after is tensor for after, tensor in zip([*net.parameters(), *net.buffers()], before, strict=True))


def test_kept_module_stays() -> None:
    net = tied_net()
    residency = Residency(ELSEWHERE, keep=True)
    with residency.on_stage(net):
        pass
    weight = net[0].weight
    with residency.on_stage(net):
        assert net[0].weight is weight
    assert devices(net) == {"meta"}


def test_module_on_the_device_is_left_alone() -> None:
    net = tied_net()
    weight = net[0].weight
    with Residency(torch.device("cpu")).on_stage(net):
        assert net[0].weight is weight


def test_stages_may_be_nested() -> None:
    net, residency = tied_net(), Residency(ELSEWHERE)
    with residency.on_stage(net):
        with residency.on_stage(net):
            pass
        assert devices(net) == {"meta"}
    assert devices(net) == {"cpu"}


def test_module_comes_back_after_a_failure() -> None:
    net = tied_net()
    with pytest.raises(RuntimeError, match="out of memory"), Residency(ELSEWHERE).on_stage(net):
        raise RuntimeError("out of memory")
    assert devices(net) == {"cpu"}
