"""Which chunks make up a video: where each starts, which of its frames are kept, how the speech is extended.

Chunks overlap by the motion frames. The last one ends after the speech; its surplus frames are cut off, and what they
hear is the end of the speech played backwards. A video whose source cuts from scene to scene is planned scene by scene
on the one timeline of the speech: a scene's first chunk starts at the cut and carries nothing over it, its last one is
cut off at the next. This module is arithmetic on frame counts and knows no tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise

from infinitalk_cli.sampling.settings import InvalidInput, SamplingSettings

SPARE_ROWS = 3
"""Rows of speech beyond a chunk's last frame: two for its window and one that the original programs add."""


@dataclass(frozen=True)
class ChunkPlan:
    """One chunk.

    `start`: its first frame, counted in the whole video, motion frames included. `keep`: the frames of the chunk that
    are new and stay in the video, counted within the chunk. `tails`: rows of reversed speech after each speaker's own.
    `ends_scene`: the next chunk, if there is one, starts anew and needs nothing of this one. `anew`: within a scene, it
    starts from the reference picture instead of the frames before.
    """

    index: int
    start: int
    keep: range
    tails: tuple[int, ...]
    ends_scene: bool = False
    anew: bool = False


def plan_chunks(
    num_audio_frames: Sequence[int], settings: SamplingSettings, cuts: Sequence[int] = ()
) -> tuple[ChunkPlan, ...]:
    """The chunks of a video as long as its longest speaker, up to the frame limit.

    Args: num_audio_frames: per speaker. cuts: first frames of new scenes, ascending; those outside the video are none.
    Raises: InvalidInput: if a speaker has no frames, or the settings refuse the length.
    """
    if not num_audio_frames or min(num_audio_frames) < 1:
        raise InvalidInput(f"no speech: the speakers have {list(num_audio_frames)} frames")
    if settings.compatibility.refuse_short_audio and min(num_audio_frames) <= settings.chunk_frames:
        raise InvalidInput(
            f"speech of {min(num_audio_frames)} frames is not longer than a chunk of {settings.chunk_frames} frames"
        )
    if settings.compatibility.reference_trim:
        return _plan_as_reference(num_audio_frames, settings)
    num_frames = _limited(max(num_audio_frames), settings)
    borders = [0, *(cut for cut in cuts if 0 < cut < num_frames), num_frames]
    scenes = (
        _cut(_chunks_covering(stop - start, num_audio_frames, settings, start), stop)
        for start, stop in pairwise(borders)
    )
    return tuple(replace(chunk, index=index) for index, chunk in enumerate(chain.from_iterable(scenes)))


def _plan_as_reference(num_audio_frames: Sequence[int], settings: SamplingSettings) -> tuple[ChunkPlan, ...]:
    """The chunks of the original programs.

    The first speaker ends the loop, and only the last chunk extends the speech. InfiniteTalk then cuts to the last
    speaker's length; MultiTalk takes away as many frames as the first speaker's speech was extended by, and all if by
    none.
    """
    covering = _chunks_covering(_limited(num_audio_frames[0], settings), num_audio_frames, settings)
    silent = tuple(0 for _ in num_audio_frames)
    end = covering[-1].start + settings.chunk_frames
    chunks = [replace(chunk, tails=silent) for chunk in covering]
    num_frames = _limited(end, settings)
    if settings.is_streaming and end >= min(num_audio_frames):
        tails = tuple(
            tail if end >= rows else 0 for tail, rows in zip(covering[-1].tails, num_audio_frames, strict=True)
        )
        chunks[-1] = replace(chunks[-1], tails=tails)
        if settings.engine == "infinitetalk":
            num_frames = min(num_frames, num_audio_frames[-1])
        else:
            num_frames = num_frames - tails[0] if tails[0] else 0
    return _cut(chunks, num_frames)


def _limited(num_frames: int, settings: SamplingSettings) -> int:
    return num_frames if settings.max_frames is None else min(num_frames, settings.max_frames)


def _chunks_covering(
    num_frames: int, num_audio_frames: Sequence[int], settings: SamplingSettings, scene_start: int = 0
) -> tuple[ChunkPlan, ...]:
    """The fewest chunks that have so many frames, uncut. Every speaker is extended as far as the chunk listens."""
    starts: Sequence[int] = [scene_start]
    if num_frames > settings.chunk_frames:
        starts = range(scene_start, scene_start + num_frames - settings.motion_frames, settings.chunk_stride)
    return tuple(
        ChunkPlan(
            index=index,
            start=start,
            keep=_new_frames(settings, is_first=index == 0, is_last=index == len(starts) - 1),
            tails=tuple(_tail(start + settings.chunk_frames, rows) for rows in num_audio_frames),
            ends_scene=index == len(starts) - 1,
            anew=settings.reanchor_every is not None and index % settings.reanchor_every == 0,
        )
        for index, start in enumerate(starts)
    )


def _new_frames(settings: SamplingSettings, *, is_first: bool, is_last: bool) -> range:
    """Of a scene's chunk: all behind the frames in common with the chunk before. Where these are blended they are the
    later chunk's, and the earlier one ends before them."""
    if settings.cross_fade:
        return range(settings.chunk_frames if is_last else settings.chunk_stride)
    return range(0 if is_first else settings.motion_frames, settings.chunk_frames)


def _tail(end: int, rows: int) -> int:
    """Rows to add to `rows` of speech for a chunk that ends before frame `end`; no more than there are to reverse."""
    return min(max(end + SPARE_ROWS - rows, 0), rows)


def _cut(chunks: Sequence[ChunkPlan], num_frames: int) -> tuple[ChunkPlan, ...]:
    """Keep the frames of the video before number `num_frames`; chunks beyond keep an empty range."""
    return tuple(
        replace(chunk, keep=chunk.keep[: max(num_frames - chunk.start - chunk.keep.start, 0)]) for chunk in chunks
    )
