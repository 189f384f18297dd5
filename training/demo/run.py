"""The stages of the training, one after the other.

`python -m training.demo.run first --data DIR --out DIR` trains the audio encoder and the VAE side by side; `second`
trains the transformer and measures; `third` trains it further and measures again. Each part reads what the ones before
left in the output folder, so they may run on different days and machines.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

SECOND_PART = 0.55
"""Of the transformer's whole training."""


def start(module: str, wish: argparse.Namespace, *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-u", "-m", f"training.demo.{module}", "--data", str(wish.data), "--out", str(wish.out)]
    return subprocess.Popen([*command, *arguments])


def finish(*processes: subprocess.Popen[bytes]) -> None:
    """Wait for all. Raises: SystemExit: if one failed."""
    failed = [process for process in processes if process.wait()]
    if failed:
        raise SystemExit(f"a stage failed: {failed[0].args}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the demo's weights.")
    parser.add_argument("part", choices=("first", "second", "third"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=7.5, help="of the longest stage")
    wish = parser.parse_args()
    wish.out.mkdir(parents=True, exist_ok=True)
    minutes = ["--minutes", str(wish.minutes)]
    if wish.part == "first":
        finish(start("train_audio", wish, "--minutes", str(0.4 * wish.minutes)), start("train_vae", wish, *minutes))
        return
    span = ("0", str(SECOND_PART)) if wish.part == "second" else (str(SECOND_PART), "1")
    resume = ["--resume"] if wish.part == "third" else []
    finish(start("train_dit", wish, *minutes, *resume, "--span", *span))
    finish(start("evaluate", wish))


if __name__ == "__main__":
    main()
