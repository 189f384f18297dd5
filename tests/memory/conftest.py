"""What the tests of reading and loading share."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    """The tensors of two linear layers, in three dtypes."""
    generator = torch.Generator().manual_seed(1)
    return {
        "0.weight": torch.randn(4, 3, generator=generator),
        "0.bias": torch.randn(4, generator=generator),
        "1.weight": torch.randn(2, 4, generator=generator).to(torch.bfloat16),
        "1.bias": torch.randn(2, generator=generator).to(torch.float16),
    }
