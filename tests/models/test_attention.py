"""Attention is a softmax over all keys, head by head."""

from __future__ import annotations

import pytest
import torch

from infinitalk_cli.models.attention import attention


@pytest.mark.parametrize("num_keys", [1, 7, 200])
def test_equals_the_softmax_written_out(num_keys: int) -> None:
    torch.manual_seed(num_keys)
    q = torch.randn(2, 5, 3, 8)
    k, v = torch.randn(2, 2, num_keys, 3, 8).unbind(0)
    scores = torch.einsum("blhd,bmhd->bhlm", q, k) / 8**0.5
    expected = torch.einsum("bhlm,bmhd->blhd", scores.softmax(dim=-1), v)
    torch.testing.assert_close(attention(q, k, v), expected, atol=1e-5, rtol=1e-5)
