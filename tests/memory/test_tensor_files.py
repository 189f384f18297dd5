"""Files of tensors: listed without being read, and refused with reasons."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from infinitalk_cli.errors import WeightsError
from infinitalk_cli.memory.tensor_files import merge_tensors, open_tensors
from tests.memory.refs import save


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
