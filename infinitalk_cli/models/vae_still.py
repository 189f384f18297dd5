"""What stands still in a clip is encoded once: a picture before grey frames is most of what the video VAE encodes.

Each layer looks back a few frames, so behind the start of frames that are all alike its output changes for a few groups
more and then no longer: the next group would give the same bits. The first layers, which are the dearest, come to rest
first. `rest_points` says after how many groups, `still_runs` how long a clip has stood still at each of its groups, and
`shrink_groups` computes from the first layer on that is not at rest yet. Of 20 grey groups at 448 x 896 the four blocks
at full and half size compute 4, 6, 8 and 10.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from infinitalk_cli.models.vae_layers import HISTORY, CausalConv3d, Downsample, ResidualBlock, TemporalCache

_RESAMPLER_HISTORY = 1
"""Frames that halving the time looks back."""


def shrink_groups(layers: Sequence[nn.Module], groups: Sequence[Tensor], dtype: torch.dtype) -> Iterator[Tensor]:
    """Apply layers to groups of frames one after the other, but not to what is known.

    Args: layers: the first of an encoder, none of which looks further than its own history. groups: `(B, 3, t, H, W)`,
        the first being a single frame. dtype: to compute in.
    Yields: for each group what the last layer makes of it, `(B, C, 1, H / 8, W / 8)`; for several perhaps the same.
    """
    cache = TemporalCache()
    rest = rest_points(layers, groups[-1].shape[2])
    runs = still_runs(groups)
    known: Tensor | None = None
    for group, run, next_run in zip(groups, runs, [*runs[1:], 0], strict=True):
        at_rest, needed = (sum(point < length for point in rest) for length in (run, next_run))
        x = known if known is not None and at_rest else group.to(dtype)
        known = known if needed == at_rest else None
        for number, layer in enumerate(layers[at_rest:], start=at_rest + 1):
            x = layer(x, cache)
            if number == needed:
                known = x
        yield x
        cache.is_first = False


def still_runs(groups: Sequence[Tensor]) -> list[int]:
    """How many groups up to each, itself included, are all alike."""
    runs: list[int] = []
    for number, group in enumerate(groups):
        runs.append(runs[-1] + 1 if number and torch.equal(group, groups[number - 1]) else 1)
    return runs


def rest_points(layers: Sequence[nn.Module], num_frames: int) -> list[int]:
    """How many equal groups of frames each layer must have seen to give for all further ones what it gave for the last.

    Args: layers: each fed with what the one before makes. num_frames: of a group, for the first layer.
    """
    points: list[int] = []
    seen = 1
    for layer in layers:
        seen += _groups_in_history(layer, num_frames)
        points.append(seen)
        if isinstance(layer, Downsample) and layer.time_conv is not None:
            num_frames = max(1, num_frames // 2)
    return points


def _groups_in_history(layer: nn.Module, num_frames: int) -> int:
    """How many groups of so many frames a layer looks back."""
    in_history = -(-HISTORY // num_frames)
    if isinstance(layer, ResidualBlock):
        return 2 * in_history
    if isinstance(layer, CausalConv3d):
        return in_history if layer.kernel_size[0] > 1 else 0
    if isinstance(layer, Downsample):
        return -(-_RESAMPLER_HISTORY // num_frames) if layer.time_conv is not None else 0
    raise TypeError(f"{type(layer).__name__} looks back nobody knows how far")
