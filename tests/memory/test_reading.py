"""Values come from files by several threads as they would by one, or with an error that names the file."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from infinitalk_cli.errors import WeightsError
from infinitalk_cli.memory import reading
from infinitalk_cli.memory.loading import load_into
from infinitalk_cli.memory.reading import FileSpan, Filling, fill, large_pages
from infinitalk_cli.memory.tensor_files import open_tensors


def noise(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))).to(dtype)


def stored(path: Path, tensor: Tensor) -> FileSpan:
    """Write the bytes of a tensor after some others."""
    content = tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    path.write_bytes(b"header" + content)
    return FileSpan(path, 6, len(content))


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:  # pyright: ignore[reportUnusedFunction]
    """Several pieces a tensor, more threads than the machine may have."""
    monkeypatch.setattr(reading, "PIECE_BYTES", 64)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)


@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("held", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_every_dtype_arrives_as_a_plain_cast_gives_it(tmp_path: Path, held: torch.dtype, wanted: torch.dtype) -> None:
    values = [noise(50, 3, dtype=held), noise(1, dtype=held)[0], noise(0, 4, dtype=held), noise(16, dtype=held)]
    spans = [stored(tmp_path / f"{number}", value) for number, value in enumerate(values)]
    targets = [torch.empty(value.shape, dtype=wanted) for value in values]
    fill([Filling(span, held, target) for span, target in zip(spans, targets, strict=True)])
    assert all(torch.equal(target, value.to(wanted)) for target, value in zip(targets, values, strict=True))


def test_a_file_cut_after_it_was_opened_is_named(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"weight": noise(64, 64), "bias": noise(64)}, path)
    refs = open_tensors(path)
    os.truncate(path, path.stat().st_size - 40)
    with torch.device("meta"):
        module = nn.Linear(64, 64)
    with pytest.raises(
        WeightsError, match=r"w\.safetensors \([\d,]+ bytes\) is damaged or was cut short: .*ends before"
    ):
        load_into(module, refs, what="the layer", dtype_of=lambda name, held: held)


def test_a_file_that_has_gone_is_named(tmp_path: Path) -> None:
    gone = FileSpan(tmp_path / "gone", 0, 4)
    with pytest.raises(FileNotFoundError) as caught:
        fill([Filling(gone, torch.float32, torch.empty(1))])
    assert caught.value.filename == str(tmp_path / "gone")


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_tensors_their_rows_and_other_shapes_of_them_are_found_in_the_file(tmp_path: Path, suffix: str) -> None:
    shared = noise(9, 4)
    tensors = {"a": noise(7, 5), "b": noise(3), "part": shared[2:6], "turned": noise(4, 6).T, "half": noise(5).half()}
    path = tmp_path / f"w.{suffix}"
    if suffix == "pth":
        torch.save(tensors, path)
    else:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    refs = open_tensors(path)
    refs |= {"rows": refs["a"].rows(2, 5), "flat": refs["a"].reshaped(35)}
    expected = {**tensors, "rows": tensors["a"][2:5], "flat": tensors["a"].reshape(35)}
    found = {name for name, ref in refs.items() if ref.span is not None}
    assert found == set(expected) - ({"turned"} if suffix == "pth" else set())
    for name in found:
        span, target = refs[name].span, torch.empty(refs[name].shape, dtype=refs[name].dtype)
        assert span is not None
        fill([Filling(span, target.dtype, target)])
        assert torch.equal(target, expected[name])
        assert torch.equal(refs[name].load(), expected[name])


def test_large_pages_are_there_where_the_system_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for num_bytes in (0, 5_000, reading.LARGE_PAGES_FROM_BYTES + 1):
        assert large_pages(num_bytes).fill_(7).eq(7).sum() == num_bytes
    monkeypatch.delattr(reading.mmap, "MADV_HUGEPAGE", raising=False)
    assert large_pages(reading.LARGE_PAGES_FROM_BYTES).fill_(7).eq(7).all()


@pytest.mark.skipif(sys.platform == "win32", reason="needs setitimer")
def test_ctrl_c_ends_the_reading_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "PIECE_BYTES", 2**22)
    target = torch.empty(2**22, dtype=torch.uint8)
    source = stored(tmp_path / "large", target)
    often = [Filling(source, torch.uint8, target)] * 20_000  # 84 GB: far longer than the test may take

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        begun = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            fill(often)
        assert time.monotonic() - begun < 1.5
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.gpu
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_the_gpu_gets_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: torch.dtype) -> None:
    monkeypatch.setattr(reading, "PIECE_BYTES", 2**16)
    held = torch.float8_e4m3fn if wanted == torch.float8_e4m3fn else torch.float32
    values = [noise(700, 300, dtype=held), noise(33, dtype=held), noise(1, dtype=held)[0]]
    fillings = [
        Filling(stored(tmp_path / f"{number}", value), held, torch.empty(value.shape, dtype=wanted, device="cuda"))
        for number, value in enumerate(values)
    ]
    fill(fillings)
    for filling, value in zip(fillings, values, strict=True):
        expected = value.to(wanted).reshape(-1).view(torch.uint8)
        assert torch.equal(filling.target.cpu().reshape(-1).view(torch.uint8), expected)
