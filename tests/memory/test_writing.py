"""The writer of safetensors files: what it writes is what readers read, and a killed attempt goes on."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from infinitalk_cli.memory.writing import SafetensorsWriter, TensorToWrite


def to_write(name: str, tensor: Tensor, made: list[str] | None = None, rows: int = 2) -> TensorToWrite:
    """A tensor that notes when it is made, in slices of some rows."""

    def slices() -> Iterator[Tensor]:
        if made is not None:
            made.append(name)
        yield from tensor.split(rows) if tensor.dim() else (tensor,)

    return TensorToWrite(name, tensor.dtype, tuple(tensor.shape), slices)


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    values = torch.randn(7, 6, generator=generator)
    return {
        "wide": values,
        "half": values.to(torch.bfloat16),
        "eight": values.to(torch.float8_e4m3fn),
        "whole": (values * 10).to(torch.int8),
        "number": torch.tensor(3.0),
        "none": torch.zeros(0, 4),
    }


def writer(path: Path, tensors: dict[str, Tensor], made: list[str] | None = None) -> SafetensorsWriter:
    return SafetensorsWriter(path, [to_write(name, t, made) for name, t in tensors.items()], {"format": "pt", "a": "b"})


def test_file_is_read_back_and_its_digest_is_returned(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    path, counted = tmp_path / "deep" / "x.safetensors", list[int]()
    plan = writer(path, tensors)
    sha256 = plan.write(counted.append)
    assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert sum(counted) == plan.num_bytes == path.stat().st_size
    found = load_file(path)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert torch.equal(found[name].float(), tensor.float()), name
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"format": "pt", "a": "b"}
    assert list(path.parent.iterdir()) == [path]


def test_narrow_tensors_of_odd_length_go_behind_wide_ones(tmp_path: Path) -> None:
    odd = {"odd": torch.ones(3, dtype=torch.int8), "wide": torch.arange(3.0), "half": torch.ones(1).to(torch.bfloat16)}
    writer(tmp_path / "x.safetensors", odd).write()
    found = load_file(tmp_path / "x.safetensors")  # the library refuses to map a tensor that is not aligned
    assert all(torch.equal(found[name], tensor) for name, tensor in odd.items())


@pytest.mark.parametrize("cut", range(0, 620, 23))
def test_cut_attempt_is_continued_at_the_last_whole_tensor(
    tmp_path: Path, tensors: dict[str, Tensor], cut: int
) -> None:
    path = tmp_path / "x.safetensors"
    writer(path, tensors).write()
    whole = path.read_bytes()
    made = list[str]()
    plan = writer(path, tensors, made)
    plan.part.write_bytes(whole[:cut])
    kept = plan.have_bytes
    path.unlink()
    plan.write()
    assert path.read_bytes() == whole
    assert kept <= cut
    assert len(whole) - kept == sum(tensors[name].nbytes for name in made) + (0 if kept else header_bytes(whole))


def header_bytes(whole: bytes) -> int:
    """Length of a file's header."""
    return 8 + int.from_bytes(whole[:8], "little")


def test_part_of_another_header_is_dropped(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    path, made = tmp_path / "x.safetensors", list[str]()
    other = SafetensorsWriter(path, [], {"other": "1"})
    other.part.write_bytes(b"left behind")
    plan = writer(path, tensors, made)
    plan.part.write_bytes(b"\0" * 5000)  # right name, wrong content
    plan.write()
    assert made == list(tensors)
    assert list(tmp_path.iterdir()) == [path]


def test_part_that_is_a_link_is_replaced_and_what_it_leads_to_stays(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(b"precious")
    plan = writer(tmp_path / "x.safetensors", tensors)
    plan.part.symlink_to(precious)
    plan.write()
    assert precious.read_bytes() == b"precious"
    assert load_file(plan.path).keys() == tensors.keys()


def test_failure_leaves_the_old_file_and_the_part(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"old")
    plan = writer(path, tensors)

    def stop(count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        plan.write(stop)
    assert path.read_bytes() == b"old"
    assert plan.part.is_file()


def slow_writer(path: Path) -> SafetensorsWriter:
    """Six tensors of 8000 bytes, each 0.2 s in the making."""

    def slices(number: int) -> Iterator[Tensor]:
        for row in range(20):
            time.sleep(0.01)
            yield torch.full((1, 100), number + row / 100)

    tensors = [TensorToWrite(f"t{n}", torch.float32, (20, 100), partial(slices, n)) for n in range(6)]
    return SafetensorsWriter(path, tensors, {})


@pytest.mark.skipif(os.name == "nt", reason="there is no kill -9")
def test_killed_attempt_is_continued_to_the_right_bytes(tmp_path: Path) -> None:
    path = tmp_path / "killed.safetensors"
    code = f"from tests.memory.test_writing import *; slow_writer(Path({str(path)!r})).write()"
    process = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 60
    while sum(part.stat().st_size for part in tmp_path.glob("*.part")) < 3 * 8000:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert not path.exists()
    plan = slow_writer(path)
    assert 2 * 8000 < plan.have_bytes < plan.num_bytes
    plan.write()
    found = load_file(path)
    rows = torch.arange(20) / 100
    for number in range(6):
        assert torch.allclose(found[f"t{number}"][:, 0], number + rows)
