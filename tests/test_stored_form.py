"""Headers tell whether blocks can be read from their files in every pass."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from infinitalk_cli.stored_form import is_stored_as_computed
from tests.lone_transformer import lone_transformer


def write(path: Path, form: torch.dtype, *, blocks: range = range(2)) -> Path:
    """Blocks of a wide layer in a form and a narrow one in float32, and a large tensor of no block."""
    tensors = {f"blocks.{number}.q.weight": torch.zeros(64, 64).to(form) for number in blocks}
    tensors |= {f"blocks.{number}.norm.weight": torch.zeros(64) for number in blocks if form != torch.float32}
    save_file({**tensors, "text_embedding.weight": torch.zeros(200, 200)}, path)
    return path


@pytest.mark.parametrize(
    ("form", "dtype", "expected"),
    [
        (torch.float8_e4m3fn, "auto", True),
        (torch.int8, "float32", True),
        (torch.bfloat16, "auto", True),
        (torch.bfloat16, "float32", False),
        (torch.float16, "bfloat16", False),
        (torch.float32, "auto", False),
        (torch.float32, "float32", True),
    ],
)
def test_what_is_computed_with_as_it_lies_there_can_be_read(
    tmp_path: Path, form: torch.dtype, dtype: str, expected: bool
) -> None:
    assert (
        is_stored_as_computed(lone_transformer(write(tmp_path / "w.safetensors", form), quant="none"), dtype)
        == expected
    )


def test_all_files_count_and_an_adapter_wins(tmp_path: Path) -> None:
    good, bad = write(tmp_path / "a.safetensors", torch.int8), write(tmp_path / "b.safetensors", torch.float16)
    other = write(tmp_path / "c.safetensors", torch.float16, blocks=range(2, 4))
    assert not is_stored_as_computed(lone_transformer(good, other, quant="none"), "auto")
    assert is_stored_as_computed(lone_transformer(bad, adapter=good, quant="none"), "auto")
    assert not is_stored_as_computed(lone_transformer(good, adapter=bad, quant="none"), "auto")


def test_what_is_rounded_while_it_is_read_can_not_be_read_again(tmp_path: Path) -> None:
    path = write(tmp_path / "w.safetensors", torch.bfloat16)
    files = replace(lone_transformer(path, quant="fp8"), round_to="fp8")
    assert not is_stored_as_computed(files, "auto")


def test_files_that_say_nothing_are_left_to_the_loader(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    assert not is_stored_as_computed(lone_transformer(path, quant="none"), "auto")
    path.write_bytes(b"no header")
    assert not is_stored_as_computed(lone_transformer(path, quant="none"), "auto")
    save_file({"head.weight": torch.zeros(3)}, path)
    assert not is_stored_as_computed(lone_transformer(path, quant="none"), "auto")
