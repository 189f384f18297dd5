from __future__ import annotations

from dataclasses import replace

import pytest

from infinitalk_cli.sampling.chunk_plan import ChunkPlan, plan_chunks
from infinitalk_cli.sampling.settings import Compatibility, InvalidInput, SamplingSettings

INFINITETALK = SamplingSettings()
MULTITALK = SamplingSettings(engine="multitalk", motion_frames=25)
SHORT = SamplingSettings(chunk_frames=17)


def kept(plan: tuple[ChunkPlan, ...]) -> list[int]:
    """Numbers of the frames that a plan keeps, in the whole video."""
    return [chunk.start + frame for chunk in plan for frame in chunk.keep]


@pytest.mark.parametrize(
    ("num_frames", "num_chunks"),
    [(82, 2), (100, 2), (153, 2), (154, 3), (225, 3), (250, 4), (1000, 14), (1017, 14), (1100, 16)],
)
def test_number_of_chunks(num_frames: int, num_chunks: int) -> None:
    assert len(plan_chunks([num_frames], INFINITETALK)) == num_chunks


def test_chunks_of_ten_seconds() -> None:
    plan = plan_chunks([250], INFINITETALK)
    assert [chunk.start for chunk in plan] == [0, 72, 144, 216]
    assert [chunk.keep for chunk in plan] == [range(81), range(9, 81), range(9, 81), range(9, 34)]
    assert [chunk.tails for chunk in plan] == [(0,), (0,), (0,), (50,)]


@pytest.mark.parametrize("settings", [SHORT, replace(SHORT, motion_frames=1), replace(SHORT, motion_frames=13)])
@pytest.mark.parametrize("max_frames", [None, 1, 17, 18, 40])
def test_every_frame_of_the_speech_is_kept_once_and_every_chunk_keeps_some(
    settings: SamplingSettings, max_frames: int | None
) -> None:
    settings = replace(settings, max_frames=max_frames)
    for num_frames in range(1, 80):
        plan = plan_chunks([num_frames], settings)
        assert kept(plan) == list(range(min(num_frames, max_frames or num_frames)))
        assert all(chunk.keep for chunk in plan)


def test_multitalk_keeps_every_frame_too() -> None:
    for num_frames in (79, 82, 137, 138, 964, 1000, 1034, 1100):
        assert kept(plan_chunks([num_frames], MULTITALK)) == list(range(num_frames))


def test_speech_shorter_than_a_chunk_gives_one_chunk_cut_to_its_length() -> None:
    assert plan_chunks([5], INFINITETALK) == (ChunkPlan(0, 0, range(5), (5,), ends_scene=True),)


def test_longest_speaker_decides_and_the_other_is_extended() -> None:
    for lengths in ([30, 40], [40, 30]):
        plan = plan_chunks(lengths, SHORT)
        assert kept(plan) == list(range(40))
        assert all(
            rows + tail >= min(chunk.start + 17 + 3, 2 * rows)
            for chunk in plan
            for rows, tail in zip(lengths, chunk.tails, strict=True)
        )


@pytest.mark.parametrize("lengths", [[], [0], [20, 0]])
def test_speaker_without_frames_is_refused(lengths: list[int]) -> None:
    with pytest.raises(InvalidInput, match="no speech"):
        plan_chunks(lengths, INFINITETALK)


def test_short_speech_is_refused_only_where_the_original_is_followed() -> None:
    strict = replace(INFINITETALK, compatibility=Compatibility(refuse_short_audio=True))
    with pytest.raises(InvalidInput, match="81 frames is not longer than a chunk"):
        plan_chunks([81], strict)
    assert len(plan_chunks([82], strict)) == 2


@pytest.mark.parametrize(
    ("num_frames", "num_kept"),
    [(82, 79), (100, 97), (137, 134), (138, 135), (990, 954), (1000, 964), (1015, 979), (1033, 997), (1034, 1000)],
)
def test_original_multitalk_loses_frames_at_the_end(num_frames: int, num_kept: int) -> None:
    as_original = replace(MULTITALK, max_frames=1000, compatibility=Compatibility(reference_trim=True))
    assert len(kept(plan_chunks([num_frames], as_original))) == num_kept


def test_an_hour_is_planned_without_gaps() -> None:
    plan = plan_chunks([90_000], INFINITETALK)
    assert kept(plan) == list(range(90_000))


@pytest.mark.parametrize("cuts", [[20], [17, 34], [1], [5, 6, 39], [0, 10, 40, 90]])
def test_every_frame_is_kept_once_whatever_the_cuts(cuts: list[int]) -> None:
    plan = plan_chunks([40], SHORT, cuts)
    assert kept(plan) == list(range(40))
    assert [chunk.index for chunk in plan] == list(range(len(plan)))
    assert all(chunk.keep for chunk in plan)


def test_a_cut_starts_a_chunk_that_no_frames_are_carried_into() -> None:
    plan = plan_chunks([60], SHORT, [20, 45])
    assert [(chunk.start, chunk.keep, chunk.ends_scene) for chunk in plan] == [
        (0, range(17), False),
        (8, range(9, 12), True),
        (20, range(17), False),
        (28, range(9, 17), True),
        (45, range(15), True),
    ]


def test_only_the_last_chunk_ends_a_video_without_cuts() -> None:
    assert [chunk.ends_scene for chunk in plan_chunks([60], SHORT)] == [False] * 6 + [True]
