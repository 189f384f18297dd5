"""The tokens of a pass over the processes of a group: sequence parallelism by exchange of heads.

Outside of self-attention rank r computes a run of tokens with all heads; the runs are as equal as can be and need not
end where a frame ends, and no token is padded. For self-attention every rank sends each other one the heads that are
the other's, and gets its own heads of all tokens; one softmax sees all keys, as on a single GPU, so nothing is
approximate. Afterwards the way back. In a block each rank sends `4 (R - 1) / R` times its tokens.

Source: "DeepSpeed Ulysses" (Jacobs et al. 2023).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from infinitalk_cli.models.tokens import DivideTokens, TokenShare


def share_of(rank: int, num_ranks: int, num_tokens: int) -> RankShare:
    """The share of one rank. Raises: ValueError: if there are fewer tokens than ranks."""
    if num_tokens < num_ranks:
        raise ValueError(f"{num_tokens} tokens can't be divided among {num_ranks} ranks")
    starts = [each * num_tokens // num_ranks for each in range(num_ranks + 1)]
    sizes = tuple(stop - start for start, stop in pairwise(starts))
    return RankShare(starts[rank], starts[rank + 1], num_tokens, sizes)


def divider(rank: int, num_ranks: int) -> DivideTokens:
    """What to put in place of `models.tokens.all_tokens`."""
    return partial(share_of, rank, num_ranks)


@dataclass(frozen=True)
class RankShare(TokenShare):
    """The share of one rank of torch's default group. `sizes`: tokens of every rank. All ranks make the same calls."""

    sizes: tuple[int, ...]

    @property
    def num_ranks(self) -> int:
        """How many share the tokens."""
        return len(self.sizes)

    def to_heads(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        arriving = [self._send_heads(x) for x in (q, k, v)]  # one is packed while another is on its way
        for _, work in arriving:
            work.wait()
        q, k, v = (heads.unsqueeze(0) for heads, _ in arriving)
        return q, k, v

    def _send_heads(self, x: Tensor) -> tuple[Tensor, Any]:
        """`(1, n, H, D)` to `(N, h, D)` and what to wait for. Runs of tokens arrive in the order of ranks: theirs."""
        by_rank = x[0].unflatten(1, (self.num_ranks, -1)).transpose(0, 1).contiguous()  # (R, n, h, D)
        heads = x.new_empty(self.total, *by_rank.shape[2:])
        leaving = [self.stop - self.start] * self.num_ranks
        return heads, dist.all_to_all_single(heads, by_rank.flatten(0, 1), list(self.sizes), leaving, async_op=True)

    def to_tokens(self, x: Tensor) -> Tensor:
        num_own = self.stop - self.start
        by_rank = x.new_empty(self.num_ranks, num_own, *x.shape[2:])  # (R, n, h, D)
        arriving = [num_own] * self.num_ranks
        dist.all_to_all_single(by_rank.flatten(0, 1), x[0].contiguous(), arriving, list(self.sizes))
        return by_rank.transpose(0, 1).flatten(1, 2).unsqueeze(0)

    def mean_over_heads(self, x: Tensor) -> Tensor:
        total = x.contiguous()
        dist.all_reduce(total)
        return total / self.num_ranks

    def gather(self, x: Tensor) -> Tensor:
        longest = max(self.sizes)  # torch gathers pieces of one size only
        own = x.new_zeros(longest, *x.shape[2:])
        own[: x.shape[1]] = x[0]
        found = [torch.empty_like(own) for _ in self.sizes]
        dist.all_gather(found, own)
        return torch.cat([piece[:size] for piece, size in zip(found, self.sizes, strict=True)]).unsqueeze(0)
