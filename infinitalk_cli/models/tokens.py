"""Which of a pass's tokens are computed here, and how they meet the others.

Between attention and attention every token is on its own, so the tokens of a pass may be divided among several
devices. Self-attention alone needs all of them: there the heads are divided instead, for each head is on its own, too.
A `TokenShare` names the places of a pass where that matters. Usually all tokens are here, and nothing is done at these
places; what divides them is put in from outside (`parallel.rank_tokens`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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


DivideTokens = Callable[[int], TokenShare]
"""Of a number of tokens the share that is computed here."""


def all_tokens(num_tokens: int) -> TokenShare:
    """All of them."""
    return TokenShare(0, num_tokens, num_tokens)
