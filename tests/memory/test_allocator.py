from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from infinitalk_cli.memory.allocator import VARIABLES, use_growing_segments

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="torch has growing segments on Linux alone"
)


@pytest.mark.parametrize(("version", "name"), [("2.4.1+cu121", VARIABLES[1]), ("2.13.0+cpu", VARIABLES[0])])
def test_growing_segments_are_asked_for_by_the_name_that_this_torch_knows(
    monkeypatch: pytest.MonkeyPatch, version: str, name: str
) -> None:
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(torch, "__version__", version)
    monkeypatch.setenv(name, "")  # so that the change is taken back
    monkeypatch.delenv(name)
    use_growing_segments()
    assert {key: os.environ.get(key) for key in VARIABLES if key in os.environ} == {name: "expandable_segments:True"}


@pytest.mark.parametrize("name", VARIABLES)
def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv(name, "max_split_size_mb:128")
    use_growing_segments()
    assert [os.environ.get(key) for key in VARIABLES if key in os.environ] == ["max_split_size_mb:128"]


@pytest.mark.gpu
def test_this_torch_takes_the_setting() -> None:
    """In a process of its own: the allocator reads it once."""
    program = """
import warnings; warnings.simplefilter("error")
from infinitalk_cli.memory.allocator import use_growing_segments
use_growing_segments()
import torch
held = [torch.empty(10_000_000 + 3_000_000 * i, dtype=torch.uint8, device="cuda") for i in range(8)]
del held
one = torch.empty(150_000_000, dtype=torch.uint8, device="cuda")
assert torch.cuda.max_memory_reserved() < 1.3 * torch.cuda.max_memory_allocated(), torch.cuda.memory_summary()
"""
    subprocess.run([sys.executable, "-c", program], check=True)
