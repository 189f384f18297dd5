"""How a run is made: named sets of choices, and what the user wishes otherwise.

A `Profile` holds every choice that trades time and memory for quality. It is frozen data: the table below, one rule
that lays the user's wishes over a profile, and one that says what is wrong with the outcome.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from typing import Literal

from infinitalk_cli.errors import InputError

Engine = Literal["infinitetalk", "multitalk"]
Quant = Literal["none", "fp8", "int8"]
Size = Literal["480", "720", "demo"]
Dtype = Literal["auto", "float32", "bfloat16"]

SHIFT_OF_SIZE: dict[Size, float] = {"480": 7.0, "720": 11.0, "demo": 7.0}
"""Schedule shift that the models were tuned for, by bucket set."""

FRAMES_PER_LATENT = 4
"""The video VAE packs 4 frames into one latent frame, after a first one of its own: lengths are 4n + 1."""


@dataclass(frozen=True)
class Profile:
    """Every choice that trades time and memory for quality.

    `size`: the set of picture sizes, by its short name. `chunk_frames`, `motion_frames`: frames denoised at once and
    those carried into the next chunk, both 4n + 1; MultiTalk carries `multitalk_motion_frames`. Guidance scales: 1.0
    means off. `dtype` "auto": bfloat16 on a GPU, float32 on a CPU. `demo_weights`: runs on the small weights that the
    package makes by itself unless a weights folder is named.
    """

    name: str
    description: str
    size: Size = "480"
    quant: Quant = "none"
    chunk_frames: int = 81
    motion_frames: int = 9
    multitalk_motion_frames: int = 25
    num_steps: int = 40
    shift: float = 7.0
    text_guidance_scale: float = 5.0
    audio_guidance_scale: float = 4.0
    dtype: Dtype = "auto"
    demo_weights: bool = False


@dataclass(frozen=True)
class Wishes:
    """What the user says about a run; None leaves it to the profile. Names as in `Profile`."""

    size: Size | None = None
    quant: Quant | None = None
    chunk_frames: int | None = None
    motion_frames: int | None = None
    num_steps: int | None = None
    shift: float | None = None
    text_guidance_scale: float | None = None
    audio_guidance_scale: float | None = None


PROFILES: tuple[Profile, ...] = (
    Profile(name="default", description="the models' own settings: 480 sizes, 40 steps, bfloat16 on a GPU"),
    Profile(
        name="demo",
        description="every stage in seconds on a CPU, with small weights made on the spot",
        size="demo",
        chunk_frames=33,
        multitalk_motion_frames=9,
        num_steps=3,
        demo_weights=True,
    ),
)


def find_profile(name: str) -> Profile:
    """The profile of that name. Raises: InputError: naming the nearest ones."""
    by_name = {profile.name: profile for profile in PROFILES}
    if name in by_name:
        return by_name[name]
    near = get_close_matches(name, by_name, n=1)
    raise InputError(
        f"there is no profile {name!r}",
        hint=f"did you mean {near[0]!r}?" if near else f"profiles: {', '.join(by_name)}",
    )


def settle(profile: Profile, wishes: Wishes, engine: Engine) -> Profile:
    """Lay the wishes over a profile; what follows from a wish (the shift of another size) follows here."""
    motion_frames = profile.motion_frames if engine == "infinitetalk" else profile.multitalk_motion_frames
    size = wishes.size or profile.size
    shift = profile.shift if size == profile.size else SHIFT_OF_SIZE[size]
    named = {field.name: getattr(wishes, field.name) for field in fields(wishes)}
    said = {name: value for name, value in named.items() if value is not None}
    return replace(profile, **{"motion_frames": motion_frames, "shift": shift, **said})


def profile_problems(profile: Profile) -> Iterator[str]:
    """What can't work in a settled profile, each in one sentence about the option that sets it."""
    yield from _frame_count_problems("--frames", profile.chunk_frames, least=5)
    yield from _frame_count_problems("--motion-frames", profile.motion_frames, least=1)
    if profile.motion_frames >= profile.chunk_frames:
        yield (
            f"--motion-frames must be less than --frames, or no chunk adds a frame: "
            f"{profile.motion_frames} of {profile.chunk_frames}"
        )
    if profile.num_steps < 1:
        yield f"--steps must be at least 1, not {profile.num_steps}"
    if not 0 < profile.shift < math.inf:
        yield f"--shift must be a number above 0, not {profile.shift:g}"
    for option, scale in (
        ("--text-guidance", profile.text_guidance_scale),
        ("--audio-guidance", profile.audio_guidance_scale),
    ):
        if not 0 <= scale < math.inf:
            yield f"{option} must be a number from 0 up (1 is off), not {scale:g}"


def _frame_count_problems(option: str, count: int, *, least: int) -> Iterator[str]:
    if count >= least and count % FRAMES_PER_LATENT == 1:
        return
    below = (count - 1) // FRAMES_PER_LATENT * FRAMES_PER_LATENT + 1
    near = f"{below} or {below + FRAMES_PER_LATENT}" if below >= least else str(least)
    yield f"{option} must be 4n + 1 and at least {least}, such as {near}, not {count}"
