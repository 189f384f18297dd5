"""Where the source video of a run cuts to another scene, on the timeline of the new video."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

from infinitalk_cli.errors import EnvironmentUnfitError
from infinitalk_cli.estimate import num_chunks
from infinitalk_cli.media.reference import VIDEO_FPS, Reference, VideoReference
from infinitalk_cli.media.scenes import INSTALL, can_find_cuts, find_cuts
from infinitalk_cli.media.source_time import SourceTime
from infinitalk_cli.progress import OnNote
from infinitalk_cli.request import GenerateRequest
from infinitalk_cli.run_plan import PlannedJob

MOST_CUTS_TOLD = 5

LONG_SEARCH_S = 60
"""A search takes about a tenth of the time that it looks at; from here on it is told that one goes on."""


def source_time(reference: Reference) -> SourceTime | None:
    """Of a video that is read by time; None for others."""
    return reference.time if isinstance(reference, VideoReference) and not reference.by_index else None


def scene_cuts(request: GenerateRequest, time: SourceTime | None, num_frames: int, on_note: OnNote) -> tuple[int, ...]:
    """The frames of a video of `num_frames` that are the first of a scene; none if unwished, or without a `time`.

    Raises: EnvironmentUnfitError: if the search is wished but PySceneDetect is missing. InputError: if it fails.
    """
    wish = request.source.scenes
    if time is None or wish == "off":
        return ()
    cuts_s: Sequence[Fraction] = ()
    if wish == "on" or can_find_cuts():
        try:
            cuts_s = find_cuts(request.job.reference, time.length_s or Fraction(num_frames, VIDEO_FPS))
        except EnvironmentUnfitError as error:  # installed, but it does not start
            if wish == "on":
                raise
            on_note(f"note: scene cuts are not looked for: {error.message}; {error.hint}; --scenes off: there are none")
    else:
        on_note(f"note: if the video cuts from scene to scene: {INSTALL} finds that; --scenes off: it does not")
    cuts = time.cut_frames(cuts_s, num_frames, VIDEO_FPS)
    if cuts:
        told = [f"{cut / VIDEO_FPS:.2f}" for cut in cuts[:MOST_CUTS_TOLD]]
        more = f" and {len(cuts) - len(told)} more" if len(cuts) > len(told) else ""
        chunks = f"{num_chunks(num_frames, request.profile, cuts)} chunks in all"
        where = f"{len(cuts)} scene cut{'s' if len(cuts) > 1 else ''} at {', '.join(told)} s{more}"
        on_note(f"{where}: each starts anew, {chunks}")
    return cuts


def with_scenes(request: GenerateRequest, planned: PlannedJob, on_note: OnNote) -> PlannedJob:
    """The plan with every scene cut that the run would find. Raises: as `scene_cuts`."""
    shape = planned.shape
    if planned.time and request.source.scenes != "off" and shape.num_frames > LONG_SEARCH_S * VIDEO_FPS:
        on_note(f"looking for scene cuts in {request.job.reference.name}")
    cuts = scene_cuts(request, planned.time, shape.num_frames, on_note)
    return replace(planned, shape=replace(shape, cuts=cuts))
