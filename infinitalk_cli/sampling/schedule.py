"""The times at which the network is asked, from pure noise (1.0) to the clean video (0.0)."""

from __future__ import annotations

import torch

TIME_SCALE = 1000.0
"""The network counts time in thousandths: it was trained on 0 to 1000."""


def get_timesteps(num_steps: int, shift: float) -> list[float]:
    """`num_steps` times from 1.0 downwards and a final 0.0, drawn towards 1.0 by `shift`.

    The grid ends at 1/1000, not at 1/`num_steps`: the weights' own programs do so, and the last step is tiny. Like
    theirs it is rounded to float32 on the network's scale; times `TIME_SCALE` gives those numbers back.
    """
    grid = torch.linspace(TIME_SCALE, 1, num_steps, dtype=torch.float64).float() / TIME_SCALE
    grid = torch.cat([grid, torch.zeros(1)])
    shifted = shift * grid / (1 + (shift - 1) * grid) * TIME_SCALE
    return [t / TIME_SCALE for t in shifted.tolist()]
