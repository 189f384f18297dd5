"""The table of profiles, and how wishes are laid over one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from infinitalk_cli.errors import InputError
from infinitalk_cli.profiles import PROFILES, Engine, Profile, Wishes, find_profile, profile_problems, settle

PLAIN = find_profile("default")


def test_default_profile_holds_the_settings_of_the_published_models() -> None:
    settled = settle(PLAIN, Wishes(), "infinitetalk")
    assert (settled.size, settled.quant, settled.dtype) == ("480", "none", "auto")
    assert (settled.chunk_frames, settled.motion_frames) == (81, 9)
    assert (settled.num_steps, settled.shift) == (40, 7.0)
    assert (settled.text_guidance_scale, settled.audio_guidance_scale) == (5.0, 4.0)


@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.name)
@pytest.mark.parametrize("engine", ["infinitetalk", "multitalk"])
def test_every_profile_can_run(profile: Profile, engine: Engine) -> None:
    assert list(profile_problems(settle(profile, Wishes(), engine))) == []


def test_multitalk_carries_more_frames_unless_told_otherwise() -> None:
    assert settle(PLAIN, Wishes(), "multitalk").motion_frames == 25
    assert settle(PLAIN, Wishes(motion_frames=9), "multitalk").motion_frames == 9


def test_another_size_brings_its_own_shift_unless_told_otherwise() -> None:
    assert settle(PLAIN, Wishes(size="720"), "infinitetalk").shift == 11.0
    assert settle(PLAIN, Wishes(size="720", shift=5.0), "infinitetalk").shift == 5.0
    assert settle(PLAIN, Wishes(size="480"), "infinitetalk").shift == 7.0
    special = replace(PLAIN, shift=2.0)
    assert settle(special, Wishes(size="480"), "infinitetalk").shift == 2.0


def test_wishes_win_and_the_rest_stays() -> None:
    wishes = Wishes(quant="fp8", chunk_frames=33, num_steps=8, text_guidance_scale=1.0, audio_guidance_scale=2.0)
    expected = replace(
        PLAIN, quant="fp8", chunk_frames=33, num_steps=8, text_guidance_scale=1.0, audio_guidance_scale=2.0
    )
    assert settle(PLAIN, wishes, "infinitetalk") == expected


def test_unknown_profile_is_named_with_the_nearest_one() -> None:
    with pytest.raises(InputError) as caught:
        find_profile("dem")
    assert "'dem'" in caught.value.message
    assert caught.value.hint == "did you mean 'demo'?"
    with pytest.raises(InputError) as caught:
        find_profile("zzz")
    assert "default, demo" in caught.value.hint
    with pytest.raises(InputError, match="fast is a preset") as caught:
        find_profile("fast")
    assert "--preset fast" in caught.value.hint


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"chunk_frames": 80}, "--frames must be 4n + 1 and at least 5, such as 77 or 81, not 80"),
        ({"chunk_frames": 1, "motion_frames": 1}, "--frames must be 4n + 1 and at least 5, such as 5, not 1"),
        ({"chunk_frames": -7}, "--frames must be 4n + 1 and at least 5, such as 5, not -7"),
        ({"motion_frames": 8}, "--motion-frames must be 4n + 1 and at least 1, such as 5 or 9, not 8"),
        ({"motion_frames": 0}, "--motion-frames must be 4n + 1 and at least 1, such as 1, not 0"),
        ({"motion_frames": 81}, "--motion-frames must be less than --frames"),
        ({"motion_frames": 85}, "--motion-frames must be less than --frames"),
        ({"num_steps": 0}, "--steps must be at least 1, not 0"),
        ({"shift": 0.0}, "--shift must be a number above 0, not 0"),
        ({"shift": float("nan")}, "--shift must be a number above 0, not nan"),
        ({"text_guidance_scale": -1.0}, "--text-guidance must be a number from 0 up (1 is off), not -1"),
        ({"audio_guidance_scale": float("inf")}, "--audio-guidance must be a number from 0 up (1 is off), not inf"),
    ],
)
def test_what_cannot_work_is_told_by_option(changes: dict[str, float], told: str) -> None:
    profile = replace(PLAIN, **changes)  # pyright: ignore[reportArgumentType]
    assert any(told in problem for problem in profile_problems(profile))


@pytest.mark.parametrize(("frames", "motion"), [(5, 1), (81, 77), (85, 25)])
def test_frame_counts_of_the_right_form_are_accepted(frames: int, motion: int) -> None:
    assert list(profile_problems(replace(PLAIN, chunk_frames=frames, motion_frames=motion))) == []
