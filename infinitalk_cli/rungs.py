"""How a run shares out the GPU: what it starts with, and what it tries next where memory runs out.

A `Rung` is one way to share out the GPU. They form a ladder: each takes less than the one above and computes the same
video. A run starts on the first that fits by arithmetic (`footprint.py`), `first_rung`; where memory runs out all the
same, `lower_rung` is the next one to try. A dry run and the run ask the same functions, so what is predicted and what
is done can't disagree.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from infinitalk_cli.footprint import (
    FFN_TOKENS,
    NUM_SLOTS,
    PUBLISHED,
    SEGMENTS_SHARE,
    JobShape,
    Rung,
    all_parameters,
    block_bytes,
    block_parameters,
    decoding_bytes,
    outside_parameters,
    vram_bytes,
    working_bytes,
)
from infinitalk_cli.models.config import DiTConfig
from infinitalk_cli.profile_table import Profile

TILE = 40
"""Latents on a side of a tile of the video VAE, 8 pixels each."""
SMALL_TILE = 24
FEW_TOKENS = 4_096

Stage = Literal["transformer", "vae", "other"]
"""Where a run was when memory ran out."""


def first_rung(profile: Profile, shape: JobShape, free_bytes: int, sizes: DiTConfig = PUBLISHED) -> Rung:
    """The best way to share out `free_bytes`; the lowest where even that takes more.

    The whole transformer if it finds room. Else as many blocks as find room beside what a pass takes; decoding is made
    to take no more than that, for beside streaming the recomputed borders of tiles are nothing.
    """
    *better, rung = _starts(profile, shape, free_bytes, sizes)
    for whole in better:
        if vram_bytes(shape, profile, whole, sizes) <= free_bytes:
            return whole
    while vram_bytes(shape, profile, rung, sizes) > free_bytes and (lower := _less_at_once(rung)) is not None:
        rung = lower
    return _filled(rung, profile, shape, free_bytes, sizes)


def lower_rung(rung: Rung, num_blocks: int, stage: Stage) -> Rung | None:
    """What to try next when memory has run out in that stage; None when there is nothing less.

    What slows a run down least comes first: a third of the blocks less, down to none; then smaller portions.
    """
    fewer = replace(rung, num_resident=max(0, rung.num_resident - -(-num_blocks // 3)))
    if stage == "vae" and rung.vae_tile != SMALL_TILE:
        return replace(rung, vae_tile=TILE if rung.vae_tile is None else SMALL_TILE)
    if rung.num_resident:
        return fewer
    return None if stage == "other" else _less_at_once(rung, stage)


def _less_at_once(rung: Rung, stage: Stage | None = None) -> Rung | None:
    """Smaller portions, of the transformer's or the video VAE's work, or of both in turn."""
    if stage != "vae":
        if rung.attention_tokens is None:
            return replace(rung, attention_tokens=FFN_TOKENS // 2)
        if rung.ffn_tokens > FEW_TOKENS:
            return replace(rung, attention_tokens=FEW_TOKENS // 2, ffn_tokens=FEW_TOKENS)
    if stage != "transformer" and rung.vae_tile != SMALL_TILE:
        return replace(rung, vae_tile=TILE if rung.vae_tile is None else SMALL_TILE)
    return None


def _starts(profile: Profile, shape: JobShape, free_bytes: int, sizes: DiTConfig) -> list[Rung]:
    """The rungs to start on if they fit, the best first; the last one streams."""
    asked, block = asked_resident(profile, sizes), block_bytes(profile, sizes)
    always = TILE if profile.vae_tiling == "on" else None
    starts: list[Rung] = []
    if asked is None:
        whole = Rung(sizes.num_layers, vae_tile=always)
        starts += [whole, whole if profile.vae_tiling == "off" else replace(whole, vae_tile=TILE)]
    streamed = Rung(asked or 0, vae_tile=always)
    beside = working_bytes(shape, profile, streamed, sizes) + NUM_SLOTS * block
    if profile.vae_tiling == "auto" and decoding_bytes(shape, profile, streamed) > beside:
        streamed = replace(streamed, vae_tile=TILE)
    return [*starts, _filled(streamed, profile, shape, free_bytes, sizes)]


def _filled(rung: Rung, profile: Profile, shape: JobShape, free_bytes: int, sizes: DiTConfig) -> Rung:
    """With as many resident blocks as there is room for, or as were asked for."""
    if asked_resident(profile, sizes) is not None:
        return rung
    room = free_bytes - vram_bytes(shape, profile, replace(rung, num_resident=0), sizes, with_text=False)
    num_resident = int(room / (SEGMENTS_SHARE * block_bytes(profile, sizes)))
    return replace(rung, num_resident=max(0, min(sizes.num_layers - 1, num_resident)))


def asked_resident(profile: Profile, sizes: DiTConfig = PUBLISHED) -> int | None:
    """Blocks that stay on the GPU by the profile's number of parameters; None where it leaves that open, or asks for
    all, which may stay if they fit."""
    persistent = profile.num_persistent_param_in_dit
    if persistent is None or persistent >= all_parameters(sizes):
        return None
    left = persistent - outside_parameters(sizes)
    return max(0, min(sizes.num_layers, left // block_parameters(sizes)))
