"""Which of a pass's tokens are computed here, and how they meet the others.

Between attention and attention every token is on its own, so the tokens of a pass may be divided among several
devices. Self-attention alone needs all of them: there the heads are divided instead, for each head is on its own, too.
A `TokenShare` names the places of a pass where that matters. Usually all tokens are here, and nothing is done at these
places; what divides them is put in from outside (`parallel.rank_tokens`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor


@dataclass(frozen=True)
class TokenShare:
    """Tokens `start` to `stop`, the latter excluded, of `total`, in (frame, row, column) order.

    As it stands, the share of a device that has all tokens and all heads. With fewer, n of N tokens outside of
    self-attention and h of H heads inside, the methods are what brings them together.
    """

    start: int
    stop: int
    total: int

    @property
    def part(self) -> slice:
        """These, of something that has an entry for every token."""
        return slice(self.start, self.stop)

    def some(self, part: slice) -> TokenShare:
        """A part of these; of all of them it is they themselves."""
        if part == slice(0, self.stop - self.start):
            return self
        return TokenShare(self.start + part.start, self.start + part.stop, self.total)

    def around(self, num_frames: int) -> FrameRange:
        """The latent frames of a pass with `num_frames` that these tokens are of."""
        size = self.total // num_frames
        first, last = self.start // size, -(-self.stop // size)
        return FrameRange(slice(first, last), self.start - first * size, last * size - self.stop)

    def to_heads(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Own tokens with all heads, `(1, n, H, D)`, to all tokens with own heads, `(1, N, h, D)`."""
        return q, k, v

    def to_tokens(self, x: Tensor) -> Tensor:
        """Back: `(1, N, h, D)` to `(1, n, H, D)`."""
        return x

    def mean_over_heads(self, x: Tensor) -> Tensor:
        """Of a mean over own heads the mean over all."""
        return x

    def gather(self, x: Tensor) -> Tensor:
        """Own tokens `(1, n, C)` to all, `(1, N, C)`."""
        return x


@dataclass(frozen=True)
class FrameRange:
    """Latent frames around some tokens, and how many tokens of the first and the last are not among them."""

    frames: slice
    before: int
    after: int

    @property
    def num_frames(self) -> int:
        """How many they are."""
        return self.frames.stop - self.frames.start


@dataclass(frozen=True)
class Portions:
    """How many tokens are worked on at a time where it need not be all of them: smaller ones take less memory.

    `ffn`: in the hidden layer of the feed-forward; 16,384 take 450 MB of it, twice as many are not faster.
    `attention`: in a block's attentions, None for all; keys and values are of all tokens in any case. Every token's
    result is the same, but for the order in which a matrix product of another size may sum.
    """

    ffn: int = 16_384
    attention: int | None = None

    def attention_parts(self, own: TokenShare) -> list[slice]:
        """The portions of the tokens computed here, about equal; one where these are not all tokens."""
        count = own.stop - own.start
        if self.attention is None or count < own.total:
            return [slice(0, count)]
        num_parts = -(-count // self.attention)
        cuts = [number * count // num_parts for number in range(num_parts + 1)]
        return [slice(start, stop) for start, stop in pairwise(cuts)]


DivideTokens = Callable[[int], TokenShare]
"""Of a number of tokens the share that is computed here."""


def all_tokens(num_tokens: int) -> TokenShare:
    """All of them."""
    return TokenShare(0, num_tokens, num_tokens)
