"""Scene cuts of a video, found by PySceneDetect, which is an optional package.

Its adaptive detector compares each frame's change of colour with that of the frames around it, so that a fast pan or a
gesture is no cut. Frames are read through PyAV and by their timestamps, so any codec and a variable rate will do;
nothing beyond the needed length is decoded.
"""

from __future__ import annotations

import importlib
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from infinitalk_cli.errors import EnvironmentUnfitError, InputError

SHORTEST_SCENE_S = 0.5

INSTALL = 'pip install "infinitalk-cli[dub]"'


def can_find_cuts() -> bool:
    """Whether the optional packages are there."""
    return find_spec("scenedetect") is not None and find_spec("cv2") is not None


def find_cuts(path: Path, until_s: Fraction) -> tuple[Fraction, ...]:
    """Times of the cuts of a video's first `until_s` seconds, counted from its first frame, ascending.

    Raises: EnvironmentUnfitError: if PySceneDetect is not installed or does not start. InputError: if it can't read the
    video.
    """
    try:
        scenedetect: Any = importlib.import_module("scenedetect")  # optional: type checkers may not find it
    except ImportError as error:
        hint = f"{INSTALL}; where it complains about libGL: pip install --force-reinstall opencv-python-headless"
        raise EnvironmentUnfitError(f"scene cuts need PySceneDetect: {error}", hint=hint) from error
    try:
        with path.open("rb") as file:  # opened here, as a name with a colon would be taken for an address
            manager = scenedetect.SceneManager()
            manager.add_detector(scenedetect.AdaptiveDetector(min_scene_len=f"{SHORTEST_SCENE_S}s"))
            video = scenedetect.VideoStreamAv(file, suppress_output=True)  # else FFmpeg talks on stderr from now on
            manager.detect_scenes(video, end_time=float(until_s))
            scenes = manager.get_scene_list()
    except (OSError, scenedetect.VideoOpenFailure) as error:
        raise InputError(
            f"{path} can't be searched for scene cuts: {error}", hint="--scenes off goes without"
        ) from error
    return tuple(Fraction(start.seconds).limit_denominator(100_000) for start, _ in scenes[1:])
