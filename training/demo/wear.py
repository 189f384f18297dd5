"""What frames go through from chunk to chunk, exaggerated: training on it lets a transformer mend it.

In the chunk loop the motion frames are generated ones that went through the VAE. Chunk after chunk their colours get
stronger, stains and coloured edges appear. A transformer that has seen such motion frames, but always clean frames
behind them, looks at the reference picture for colours and at the motion frames for the pose alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

WORN_SHARE = 0.75
STAINS = 5
"""Grid of the stains."""


def worn(frames: Tensor, generator: torch.Generator) -> Tensor:
    """Frames `(B, 3, T, H, W)` in [-1, 1] with wear of random strength, the same in all frames of a clip."""
    batch, _, _, height, width = frames.shape

    def draw(*shape: int) -> Tensor:
        return torch.rand((batch, *shape, 1, 1, 1), generator=generator, device=frames.device)

    strength = draw(1) * (draw(1) < WORN_SHARE)
    grey = frames.mean(dim=1, keepdim=True)
    changed = grey + (1 + strength * (1.4 * draw(1) - 0.5)) * (frames - grey)
    changed = changed * (1 + strength * (0.45 * draw(1) - 0.2)) + strength * (0.24 * draw(3) - 0.12)
    spots = torch.randn((batch, 3, STAINS, STAINS), generator=generator, device=frames.device)
    stains = F.interpolate(spots, size=(height, width), mode="bicubic")[:, :, None]
    edges = changed - blurred(changed)
    colour = (draw(3) - 0.5) * edges.mean(dim=1, keepdim=True)
    changed = changed + strength * (0.12 * stains + (1.9 * draw(1) - 0.7) * edges + 1.5 * colour)
    return changed.clamp(-1, 1)


def blurred(frames: Tensor) -> Tensor:
    """The mean of 5 x 5 pixels."""
    return F.avg_pool3d(frames, (1, 5, 5), stride=1, padding=(0, 2, 2), count_include_pad=False)
