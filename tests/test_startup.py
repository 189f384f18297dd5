"""The shell starts light: nothing of the engine's is imported to say what a command does or what is wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {"torch", "numpy", "transformers", "huggingface_hub", "safetensors", "scipy", "librosa", "av", "PIL"}


def imported_by(*arguments: str) -> tuple[int, set[str]]:
    """Run `talk` in a fresh interpreter; its exit code and the top-level packages that it imported."""
    command = [sys.executable, "-X", "importtime", "-m", "infinitalk_cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return done.returncode, {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("generate", "--help")])
def test_help_and_version_import_nothing_heavy(arguments: tuple[str, ...]) -> None:
    code, packages = imported_by(*arguments)
    assert code == 0
    assert "typer" in packages  # the list was really read
    assert packages & HEAVY == set()


@pytest.mark.parametrize("arguments", [("doctor", "--json"), ("profiles", "show", "auto")])
def test_looking_at_the_machine_loads_no_engine(arguments: tuple[str, ...]) -> None:
    code, packages = imported_by(*arguments)
    assert code in (0, 3)
    assert "psutil" in packages
    assert packages & {"torch", "transformers", "huggingface_hub", "librosa", "scipy"} == set()


def test_wrong_input_is_refused_before_the_engine_is_imported(tmp_path: Path) -> None:
    job = tmp_path / "job.json"
    job.write_text('{"prompt": 1}')
    code, packages = imported_by("generate", str(job))
    assert code == 2
    assert "pydantic" in packages
    assert packages & HEAVY == set()


INTERRUPTED_IMPORT = """
import sys
from infinitalk_cli.__main__ import main
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "infinitalk_cli.console":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Finder())
main()
"""


def test_ctrl_c_while_the_shell_is_imported_says_so_in_a_line() -> None:
    command = [sys.executable, "-c", INTERRUPTED_IMPORT, "--version"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "error: stopped\n")
