"""Weights into modules: strictly, with memory for one copy."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from infinitalk_cli.errors import WeightsError
from infinitalk_cli.memory.loading import load_into
from infinitalk_cli.memory.tensor_files import TensorRef, open_tensors
from tests.memory.refs import refs_of, save, unreadable


def as_stored(name: str, stored: torch.dtype) -> torch.dtype:
    del name
    return stored


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return build()


def small_net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def refs_for(module: nn.Module) -> dict[str, TensorRef]:
    return {name: unreadable(name, tensor.shape) for name, tensor in module.state_dict().items()}


def test_module_is_filled_with_the_asked_dtypes_and_computes(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    module = on_meta(small_net)
    refs = open_tensors(save(tmp_path / "w.safetensors", tensors))
    load_into(module, refs, what="the net", dtype_of=lambda name, _: torch.float64 if name[0] == "0" else torch.float32)
    assert module.get_parameter("0.bias").dtype == torch.float64
    assert not any(parameter.requires_grad for parameter in module.parameters())
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter, tensors[name].to(parameter.dtype))


def test_loaded_values_do_not_depend_on_the_file_any_more(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    module = on_meta(small_net)
    path = save(tmp_path / "w.safetensors", tensors)
    load_into(module, open_tensors(path), what="the net", dtype_of=as_stored)
    with path.open("r+b") as file:
        file.write(b"\0" * path.stat().st_size)
    assert torch.equal(module.get_parameter("0.weight"), tensors["0.weight"])


def test_all_that_does_not_fit_is_listed_before_anything_is_read() -> None:
    module = on_meta(small_net)
    refs = refs_for(module)
    del refs["0.bias"]
    refs["2.weight"] = unreadable("2.weight", (5,))
    refs["1.weight"] = unreadable("1.weight", (4, 2))
    with pytest.raises(WeightsError) as caught:
        load_into(module, refs, what="the small net", dtype_of=as_stored)
    message = str(caught.value)
    assert "the small net" in message
    assert "1 missing: 0.bias" in message
    assert "1 unexpected: 2.weight" in message
    assert "1 of another shape: 1.weight (file: [4, 2], needed: [2, 4])" in message
    assert "nowhere.safetensors" in message
    assert "talk download" in caught.value.hint
    assert module.get_parameter("0.weight").is_meta


def test_a_long_list_is_cut() -> None:
    module = on_meta(lambda: nn.Sequential(*[nn.Linear(1, 1) for _ in range(20)]))
    with pytest.raises(WeightsError, match=r"40 missing: 0\.weight, .* and 32 more"):
        load_into(module, {}, what="the net", dtype_of=as_stored)


def test_names_that_are_rightly_unused_can_be_ignored(tensors: dict[str, Tensor]) -> None:
    module = on_meta(small_net)
    refs = {**refs_of(tensors), "training.step": unreadable("training.step", ())}
    load_into(module, refs, what="the net", dtype_of=as_stored, ignore=lambda name: name.startswith("training."))
    assert not module.get_parameter("0.weight").is_meta


def test_tied_weights_stay_one_tensor_and_need_one_name() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.copy = nn.Embedding(5, 2), nn.Embedding(5, 2)
            self.copy.weight = self.table.weight

    module = on_meta(Tied)
    load_into(module, refs_of({"table.weight": torch.ones(5, 2)}), what="the net", dtype_of=as_stored)
    assert module.get_parameter("copy.weight") is module.get_parameter("table.weight")
    assert module.get_parameter("copy.weight").sum() == 10


def test_saved_buffers_are_read_and_unsaved_ones_made_again() -> None:
    class Buffered(nn.Module):
        saved: Tensor
        made: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("saved", torch.zeros(2))
            self.reset_buffers()

        def reset_buffers(self) -> None:
            self.register_buffer("made", torch.arange(3), persistent=False)

    module = nn.Sequential(on_meta(Buffered))
    load_into(module, refs_of({"0.saved": torch.ones(2)}), what="the net", dtype_of=as_stored)
    assert [tensor.tolist() for tensor in module.buffers()] == [[1, 1], [0, 1, 2]]


def test_stored_dtypes_of_8_bit_values_survive_any_cast() -> None:
    class Stored(nn.Module):
        stored_dtype_names = frozenset({"data"})

        def __init__(self) -> None:
            super().__init__()
            self.data = nn.Parameter(torch.zeros(2, dtype=torch.int8), requires_grad=False)
            self.bias = nn.Parameter(torch.zeros(2))

    module = on_meta(Stored)
    refs = refs_of({"data": torch.tensor([1, -128], dtype=torch.int8), "bias": torch.ones(2)})
    load_into(module, refs, what="the net", dtype_of=lambda name, stored: torch.bfloat16)
    assert module.get_parameter("data").dtype == torch.int8
    assert module.get_parameter("bias").dtype == torch.bfloat16


NUM_LAYERS, WIDTH = 20, 2048  # 16 MiB a layer in float32
MEASURE = f"""
import sys
from pathlib import Path
import torch
from torch import nn
from infinitalk_cli.memory.loading import load_into
from infinitalk_cli.memory.tensor_files import open_tensors

def peak_mib():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024

with torch.device("meta"):
    module = nn.ModuleList(nn.Linear({WIDTH}, {WIDTH}, bias=False) for _ in range({NUM_LAYERS}))
    warm = nn.Linear(2, 2, bias=False)
load_into(warm, {{"weight": open_tensors(Path(sys.argv[2]))["weight"]}}, what="", dtype_of=lambda n, d: torch.bfloat16)
before = peak_mib()
load_into(module, open_tensors(Path(sys.argv[1])), what="", dtype_of=lambda n, d: torch.bfloat16)
print(peak_mib() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_peak_memory_is_the_network_and_little_more(tmp_path: Path, suffix: str) -> None:
    layers = {f"{index}.weight": torch.zeros(WIDTH, WIDTH) for index in range(NUM_LAYERS)}
    path = save(tmp_path / f"w.{suffix}", layers)
    small = save(tmp_path / f"small.{suffix}", {"weight": torch.zeros(2, 2)})
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path), str(small)], capture_output=True, text=True, check=True
    )
    layer_mib = WIDTH * WIDTH * 4 / 2**20
    network_mib = NUM_LAYERS * layer_mib / 2
    assert float(result.stdout) < network_mib + 64 + 2 * layer_mib + 16  # files' pages are let go every 64 MiB
