"""How tokens are divided: all of them, none twice, about equally, and which latent frames a share lies in."""

from __future__ import annotations

import pytest

from infinitalk_cli.parallel.rank_tokens import share_of


@pytest.mark.parametrize(("num_ranks", "num_tokens"), [(2, 45), (4, 32_928), (5, 7), (8, 75_600), (3, 3)])
def test_shares_follow_one_another_and_differ_by_one_token_at_most(num_ranks: int, num_tokens: int) -> None:
    shares = [share_of(rank, num_ranks, num_tokens) for rank in range(num_ranks)]
    assert [token for share in shares for token in range(share.start, share.stop)] == list(range(num_tokens))
    sizes = [share.stop - share.start for share in shares]
    assert max(sizes) - min(sizes) <= 1
    assert {share.sizes for share in shares} == {tuple(sizes)}


def test_fewer_tokens_than_ranks_are_refused() -> None:
    with pytest.raises(ValueError, match="3 tokens can't be divided among 4 ranks"):
        share_of(0, 4, 3)


def test_share_knows_the_frames_it_lies_in() -> None:
    first, second = (share_of(rank, 2, 45).around(3) for rank in range(2))  # 15 tokens a frame, 22 and 23 of them
    assert (first.frames, first.num_frames, first.before, first.after) == (slice(0, 2), 2, 0, 8)
    assert (second.frames, second.num_frames, second.before, second.after) == (slice(1, 3), 2, 7, 0)


def test_share_that_ends_with_a_frame_needs_no_other() -> None:
    around = share_of(0, 2, 60).around(4)
    assert (around.frames, around.before, around.after) == (slice(0, 2), 0, 0)
