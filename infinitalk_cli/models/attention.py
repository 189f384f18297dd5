"""The one place where an attention kernel is called.

Every attention of the transformer is plain softmax attention without a mask, so one function serves them all, and a
faster kernel has one place to go. PyTorch's fused kernels never hold the whole query x key matrix.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention with scale `1 / sqrt(head width)`.

    Args: q: `(B, L, H, D)`. k, v: `(B, M, H, D)`, all of one dtype.
    Returns: `(B, L, H, D)`.
    """
    return F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)
