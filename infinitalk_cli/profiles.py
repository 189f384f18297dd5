"""How a run is made: named sets of choices, and what the user wishes otherwise.

A `Profile` holds every choice that trades time and memory for quality; `profile_table` has them all. Here are the rules
on them: one that finds a profile by name, one that lays a preset and the user's wishes over it, one that says what is
wrong with the outcome. Which profile suits a machine is `profile_choice`'s matter.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from typing import Any

from infinitalk_cli.errors import InputError
from infinitalk_cli.profile_table import (
    PRESETS,
    PROFILES,
    SHIFT_OF_SIZE,
    Attention,
    Dtype,
    Engine,
    LoraMode,
    Preset,
    PresetName,
    Profile,
    Quant,
    Size,
    TextEncoderPlace,
    VaeDtype,
    VaeTiling,
)

__all__ = [
    "AUTO",
    "PRESETS",
    "PROFILES",
    "SHIFT_OF_SIZE",
    "Attention",
    "Dtype",
    "Engine",
    "LoraMode",
    "Preset",
    "PresetName",
    "Profile",
    "Quant",
    "Size",
    "TextEncoderPlace",
    "VaeDtype",
    "VaeTiling",
    "Wishes",
    "find_preset",
    "find_profile",
    "profile_problems",
    "settle",
    "settled_origins",
]

AUTO = "auto"
"""The name that stands for the profile that suits the machine."""

FRAMES_PER_LATENT = 4
"""The video VAE packs 4 frames into one latent frame, after a first one of its own: lengths are 4n + 1."""


@dataclass(frozen=True)
class Wishes:
    """What the user says about a run; None leaves it to the profile. Names as in `Profile`."""

    size: Size | None = None
    quant: Quant | None = None
    num_persistent_param_in_dit: int | None = None
    chunk_frames: int | None = None
    motion_frames: int | None = None
    num_steps: int | None = None
    shift: float | None = None
    text_guidance_scale: float | None = None
    audio_guidance_scale: float | None = None
    attention: Attention | None = None
    vae_dtype: VaeDtype | None = None
    vae_tiling: VaeTiling | None = None
    text_encoder: TextEncoderPlace | None = None
    lora_mode: LoraMode | None = None


def find_profile(name: str) -> Profile:
    """The profile of that name. Raises: InputError: naming the nearest ones."""
    by_name = {profile.name: profile for profile in PROFILES}
    if name in by_name:
        return by_name[name]
    if any(preset.name == name for preset in PRESETS):
        raise InputError(
            f"{name} is a preset, no profile", hint=f"talk generate --preset {name}; talk profiles ls has all"
        )
    near = get_close_matches(name, [*by_name, AUTO], n=3)
    raise InputError(
        f"there is no profile {name!r}",
        hint=f"did you mean {' or '.join(map(repr, near))}?" if near else f"profiles: {', '.join([AUTO, *by_name])}",
    )


def find_preset(name: str) -> Preset:
    """The preset of that name. Raises: InputError: naming all."""
    for preset in PRESETS:
        if preset.name == name:
            return preset
    raise InputError(f"there is no preset {name!r}", hint=f"presets: {', '.join(preset.name for preset in PRESETS)}")


def settle(profile: Profile, wishes: Wishes, engine: Engine, preset: Preset | None = None) -> Profile:
    """Lay preset and wishes over a profile; what follows from a wish (the shift of another size) follows here."""
    motion_frames = profile.motion_frames if engine == "infinitetalk" else profile.multitalk_motion_frames
    size = wishes.size or profile.size
    shift = profile.shift if size == profile.size else SHIFT_OF_SIZE[size]
    chosen: dict[str, Any] = {"motion_frames": motion_frames, "shift": shift}
    return replace(profile, **{**chosen, **_preset_values(preset), **_said(wishes)})


def settled_origins(profile: Profile, wishes: Wishes, preset: Preset | None, origins: dict[str, str]) -> dict[str, str]:
    """Where each value of the settled profile comes from. `origins`: of the wishes and the preset, by field."""
    found = {field.name: f"profile {profile.name}" for field in fields(Profile)}
    if wishes.size not in (None, profile.size):
        found["shift"] = f"size {wishes.size}"
    if preset is not None:
        found.update(dict.fromkeys(_preset_values(preset), f"preset {preset.name}"))
    return {**found, **{name: origins.get(name, "option") for name in _said(wishes)}}


def profile_problems(profile: Profile) -> Iterator[str]:
    """What can't work in a settled profile, each in one sentence about the option that sets it."""
    yield from _frame_count_problems("--frames", profile.chunk_frames, least=5)
    yield from _frame_count_problems("--motion-frames", profile.motion_frames, least=1)
    if profile.motion_frames >= profile.chunk_frames:
        yield (
            f"--motion-frames must be less than --frames, or no chunk adds a frame: "
            f"{profile.motion_frames} of {profile.chunk_frames}"
        )
    persistent = profile.num_persistent_param_in_dit
    if persistent is not None and persistent < 0:
        yield f"--num-persistent-param-in-dit must be 0 or more, not {persistent}"
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


def _preset_values(preset: Preset | None) -> dict[str, Any]:
    """The fields of a profile that a preset sets."""
    if preset is None:
        return {}
    named = {field.name: getattr(preset, field.name) for field in fields(preset)}
    return {name: value for name, value in named.items() if name not in ("name", "description") and value is not None}


def _said(wishes: Wishes) -> dict[str, Any]:
    named = {field.name: getattr(wishes, field.name) for field in fields(wishes)}
    return {name: value for name, value in named.items() if value is not None}
