"""Weight files judged by their headers: whole ones pass; cut, malformed and hostile ones are told apart."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from infinitalk_cli.file_headers import header_problem, read_safetensors_header


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def safetensors(path: Path, header: object, num_data_bytes: int) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(num_data_bytes))
    return path


GOOD = {"__metadata__": {"format": "pt"}, "a": entry("F32", [2, 3], 0, 24), "b": entry("BF16", [], 24, 26)}


def test_whole_file_passes_and_names_its_tensors(tmp_path: Path) -> None:
    path = safetensors(tmp_path / "a.safetensors", GOOD, 26)
    assert header_problem(path) is None
    assert read_safetensors_header(path) == {"a": ("F32", (2, 3)), "b": ("BF16", ())}


def test_file_written_by_the_library_passes(tmp_path: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    save_file({"x": np.zeros((3, 5), np.float16), "y": np.ones(7, np.int8)}, tmp_path / "a.safetensors")
    assert header_problem(tmp_path / "a.safetensors") is None


@pytest.mark.parametrize(
    ("header", "num_data_bytes", "problem"),
    [
        (GOOD, 25, "1 bytes are missing at its end"),
        (GOOD, 30, "4 bytes too many"),
        ({"a": entry("F32", [2], 0, 4)}, 4, "contradicts itself"),
        ({"a": entry("F32", [-1], 0, -4)}, 0, "contradicts itself"),
        ({"a": entry("F32", [1], 4, 8), "b": entry("F32", [1], 4, 8)}, 8, "overlap or leave gaps"),
        ({"a": entry("F32", [1], 4, 8)}, 8, "overlap or leave gaps"),
        ({"a": entry("F31", [1], 0, 4)}, 4, "malformed"),
        ({"a": {"dtype": "F32", "shape": [1]}}, 4, "malformed"),
        ({"a": entry("U8", [True], 0, 1)}, 1, "contradicts itself"),  # pyright: ignore[reportArgumentType]
        ({"a": 3}, 0, "malformed"),
        ([1, 2], 0, "not a table"),
        (b'{"a": 1, "a": 2}', 0, "twice"),
        (b"\xff\xfe", 0, "not JSON"),
        (b"[" * 5000, 0, "not JSON"),
        (b'{"a": ', 0, "not JSON"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_malformed_header_is_told(tmp_path: Path, header: object, num_data_bytes: int, problem: str) -> None:
    found = header_problem(safetensors(tmp_path / "a.safetensors", header, num_data_bytes))
    assert found is not None
    assert problem in found


@pytest.mark.parametrize("content", [b"", b"abc", (2**63).to_bytes(8, "little") + b"{}", bytes(100)])
def test_what_is_no_safetensors_file_is_told_without_reading_it(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    assert "no safetensors file, or cut short" in str(header_problem(tmp_path / "a.safetensors"))


def test_archive_that_was_cut_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data/0", bytes(1000))
    assert header_problem(path) is None
    path.write_bytes(path.read_bytes()[:-30])
    assert header_problem(path) is not None
    path.write_bytes(b"")
    assert header_problem(path) == "empty"


def test_json_and_missing_files(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "b.json").write_text('{"a": ')
    assert header_problem(tmp_path / "a.json") is None
    assert header_problem(tmp_path / "b.json") is not None
    assert "can't be read" in str(header_problem(tmp_path / "c.json"))
    assert header_problem(tmp_path / "d.model") is None
