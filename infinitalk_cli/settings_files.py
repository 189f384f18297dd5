"""What a user has settled once and for all: `talk.toml` of the project, the user's config file, TALK_ variables.

The nearest wins: option, environment, project, user. Here the last three are read into values that remember where each
was said, so that a wrong one can be named by file, line and key, and `talk profiles show` can tell the origin of all.

The project's file is `talk.toml` in the working folder or the nearest one above it. Keys are the options' names:

    preset = "fast"
    size = "720"
    steps = 8
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

from infinitalk_cli.errors import InputError
from infinitalk_cli.profiles import AUTO, PRESETS, PROFILES, Attention, LoraMode, TextEncoderPlace, VaeDtype, VaeTiling

PROJECT_FILE = "talk.toml"
USER_FILE = "config.toml"
VARIABLE_PREFIX = "TALK_"


@dataclass(frozen=True)
class Key:
    """A setting. `kind`: of its value; `choices`: all there are, () for any; `least`, `most`: of a number, `step`: from
    one whole number to the next."""

    kind: type[str] | type[int] | type[float]
    choices: tuple[str, ...] = ()
    least: float = 0.0
    most: float = math.inf
    step: int = 1


KEYS: dict[str, Key] = {
    "profile": Key(str, (AUTO, *(profile.name for profile in PROFILES))),
    "preset": Key(str, tuple(preset.name for preset in PRESETS)),
    "gpu": Key(str),
    "size": Key(str, ("480", "720")),
    "quant": Key(str, ("none", "fp8", "int8")),
    "num_persistent_param_in_dit": Key(int),
    "frames": Key(int, least=5, most=10_001, step=4),
    "motion_frames": Key(int, least=1, most=10_001, step=4),
    "steps": Key(int, least=1, most=1000),
    "shift": Key(float, least=0.01, most=100),
    "text_guidance": Key(float, most=100),
    "audio_guidance": Key(float, most=100),
    "attention": Key(str, get_args(Attention)),
    "vae_dtype": Key(str, get_args(VaeDtype)),
    "vae_tiling": Key(str, get_args(VaeTiling)),
    "text_encoder": Key(str, get_args(TextEncoderPlace)),
    "lora_mode": Key(str, get_args(LoraMode)),
}
"""Every key, with the values that can make sense; finer rules are those of the options."""


@dataclass(frozen=True)
class Setting:
    """A value and where it was said, in words."""

    value: Any
    origin: str


def read_settings(environment: Mapping[str, str], folder: Path, user_file: Path | None = None) -> dict[str, Setting]:
    """The settings of environment, project and user; of those said twice the nearest.

    Args: folder: the working folder. user_file: None for the usual place.
    Raises: InputError: naming file, line and key, or the variable.
    """
    user = read_file(user_file or user_config_path())
    project = find_project_file(folder)
    return {**user, **(read_file(project) if project else {}), **_read_environment(environment)}


def user_config_path() -> Path:
    """The user's file, there or not."""
    import platformdirs

    return Path(platformdirs.user_config_dir("infinitalk-cli", appauthor=False)) / USER_FILE


def find_project_file(folder: Path) -> Path | None:
    """`talk.toml` of the folder or of the nearest one above."""
    start = folder.absolute()
    return next((path for path in (above / PROJECT_FILE for above in (start, *start.parents)) if path.is_file()), None)


def read_file(path: Path) -> dict[str, Setting]:
    """The settings of one file; none if it is not there. Raises: InputError: as `read_settings`."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} can't be read: {getattr(error, 'strerror', None) or error}") from error
    table = _parse(text, path)
    return {name: _checked(name, value, f"{path}, line {_line(text, name)}") for name, value in table.items()}


def _parse(text: str, path: Path) -> dict[str, Any]:
    tomllib: Any = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(
            f"{path} is no TOML: {error}", hint='a line is KEY = VALUE, such as preset = "fast"'
        ) from error


def _line(text: str, name: str) -> int:
    """The line of a key or table, 1 if it hides in a notation of its own."""
    wanted = re.compile(rf"""\s*\[?\s*["']?{re.escape(name)}["']?\s*[=.\]]""")
    return next((number for number, line in enumerate(text.splitlines(), 1) if wanted.match(line)), 1)


def _read_environment(environment: Mapping[str, str]) -> dict[str, Setting]:
    found: dict[str, Setting] = {}
    for name, key in KEYS.items():
        variable = VARIABLE_PREFIX + name.upper()
        if text := environment.get(variable):
            found[name] = _checked(name, _number(text, key), variable)
    return found


def _number(text: str, key: Key) -> object:
    """A variable's text as the number it should be; as it is if it is none."""
    try:
        return text if key.kind is str else key.kind(text)
    except ValueError:
        return text


def _checked(name: str, value: object, origin: str) -> Setting:
    if name not in KEYS:
        near = get_close_matches(name, KEYS, n=1)
        raise InputError(
            f"{origin}: unknown key {name!r}",
            hint=f"did you mean {near[0]!r}?" if near else f"keys: {', '.join(KEYS)}",
        )
    key = KEYS[name]
    if (key.choices == ("480", "720") and value in (480, 720)) or (name == "gpu" and type(value) is int):
        value = str(value)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if key.kind is float and number:
        value = float(value)  # pyright: ignore[reportArgumentType]
    if type(value) is not key.kind:
        kinds = {str: "a text", int: "a whole number", float: "a number"}
        raise InputError(f"{origin}: {name} must be {kinds[key.kind]}, not {value!r}")
    if key.choices and value not in key.choices:
        near = get_close_matches(str(value), key.choices, n=1)
        hint = f"did you mean {near[0]!r}?" if near else ""
        raise InputError(f"{origin}: {name} must be one of {', '.join(key.choices)}, not {value!r}", hint=hint)
    if isinstance(value, (int, float)) and not key.least <= value <= key.most:
        upper = "up" if key.most == math.inf else f"to {key.most:g}"
        raise InputError(f"{origin}: {name} must be from {key.least:g} {upper}, not {value!r}")
    if isinstance(value, int) and (value - int(key.least)) % key.step:
        below = value - (value - int(key.least)) % key.step
        raise InputError(f"{origin}: {name} must be 4n + 1, such as {below} or {below + key.step}, not {value}")
    return Setting(value, origin)
