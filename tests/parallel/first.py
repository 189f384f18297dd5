"""`python -m tests.parallel.first`: the first process of a team; it says the other one's number and waits."""

from __future__ import annotations

import time

import psutil
import torch

from infinitalk_cli.parallel.team import Team
from tests.parallel.builds import build_small, small_dit


def main() -> None:
    """Have a team of two."""
    team = Team(2, torch.device("cpu"), build_small)
    with team.running():
        team.lead(small_dit())
        print(*(child.pid for child in psutil.Process().children()), flush=True)
        time.sleep(600)


if __name__ == "__main__":
    main()
