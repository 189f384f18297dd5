"""Weight files into modules: lazily, strictly, with memory for one copy."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from infinitalk_cli.errors import WeightsError
from infinitalk_cli.memory.loading import TensorRef, load_into, merge_tensors, open_tensors
from tests.memory.refs import refs_of, unreadable


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


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "0.weight": torch.randn(4, 3, generator=generator),
        "0.bias": torch.randn(4, generator=generator),
        "1.weight": torch.randn(2, 4, generator=generator).to(torch.bfloat16),
        "1.bias": torch.randn(2, generator=generator).to(torch.float16),
    }


def save(path: Path, tensors: dict[str, Tensor]) -> Path:
    if path.suffix == ".pth":
        torch.save(tensors, path)
    else:
        save_file(tensors, path)
    return path


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_file_is_listed_and_read_tensor_by_tensor(tmp_path: Path, suffix: str, tensors: dict[str, Tensor]) -> None:
    refs = open_tensors(save(tmp_path / f"w.{suffix}", tensors))
    assert {(ref.name, ref.shape, ref.dtype) for ref in refs.values()} == {
        (name, tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()
    }
    assert all(torch.equal(refs[name].load(), tensor) for name, tensor in tensors.items())
    assert torch.equal(refs["0.weight"].rows(1, 3).load(), tensors["0.weight"][1:3])
    assert refs["0.weight"].rows(1, 3).shape == (2, 3)
    assert torch.equal(refs["0.weight"].reshaped(2, 6).load(), tensors["0.weight"].reshape(2, 6))


def test_files_of_torch_before_its_zip_form_are_read(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    torch.save(tensors, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    refs = open_tensors(tmp_path / "old.pth")
    assert all(torch.equal(refs[name].load(), tensor) for name, tensor in tensors.items())


def test_later_file_and_adapter_win(tmp_path: Path) -> None:
    first = save(tmp_path / "a.safetensors", {"x": torch.zeros(2), "y": torch.zeros(1)})
    second = save(tmp_path / "b.safetensors", {"x": torch.ones(2)})
    assert open_tensors([first, second])["x"].load().tolist() == [1, 1]
    merged = merge_tensors(open_tensors([first]), open_tensors([second]))
    assert (merged["x"].path, merged["y"].path) == (second, first)


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


@pytest.mark.parametrize("length", [0, 4, 60, -20, -1])
def test_truncated_safetensors_names_file_length_and_command(
    tmp_path: Path, length: int, tensors: dict[str, Tensor]
) -> None:
    path = save(tmp_path / "w.safetensors", tensors)
    content = path.read_bytes()[:length]
    path.write_bytes(content)
    with pytest.raises(WeightsError) as caught:
        open_tensors(path)
    assert str(path) in str(caught.value)
    assert f"{len(content):,} bytes" in str(caught.value)
    assert "talk download" in caught.value.hint


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"\x80\x02", b"PK\x03\x04broken"], ids=repr)
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_files_that_hold_no_weights_are_refused(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"w.{suffix}"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=re.escape(f"{path} ({len(content)} bytes) is damaged")):
        open_tensors(path)


def test_truncated_pth_is_refused(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    path = save(tmp_path / "w.pth", tensors)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="is damaged or was cut short"):
        open_tensors(path)


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_missing_file_is_named(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(WeightsError, match=r"none\.\w+ does not exist"):
        open_tensors(tmp_path / f"none.{suffix}")


class Code:
    """Creates a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.target,)


def write_zip(content: object, path: Path) -> None:
    torch.save(content, path)


def write_plain(content: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(content))


@pytest.mark.parametrize("write", [write_zip, write_plain])
def test_pickle_with_code_is_refused_and_not_run(tmp_path: Path, write: Callable[[object, Path], None]) -> None:
    trace, path = tmp_path / "trace", tmp_path / "w.pth"
    write({"x": Code(trace)}, path)
    with pytest.raises(WeightsError, match="pickle with code in it and is refused") as caught:
        open_tensors(path)
    assert str(path) in str(caught.value)
    assert not trace.exists()


@pytest.mark.parametrize("content", [[torch.ones(1)], {"model": {"x": torch.ones(1)}}, {"x": 3}], ids=repr)
def test_pth_of_something_else_than_named_tensors_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="flat table of tensors"):
        open_tensors(tmp_path / "w.pth")


NUM_LAYERS, WIDTH = 20, 2048  # 16 MiB a layer in float32
MEASURE = f"""
import sys
from pathlib import Path
import torch
from torch import nn
from infinitalk_cli.memory.loading import load_into, open_tensors

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
