"""Where the source video of a run cuts to another scene, on the timeline of the new video."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction

from infinitalk_cli.errors import EnvironmentUnfitError
from infinitalk_cli.media.reference import VIDEO_FPS, Reference, VideoReference
from infinitalk_cli.media.scenes import INSTALL, can_find_cuts, find_cuts
from infinitalk_cli.request import GenerateRequest

MOST_CUTS_TOLD = 5


def scene_cuts(
    request: GenerateRequest, reference: Reference, num_frames: int, on_note: Callable[[str], None]
) -> tuple[int, ...]:
    """The frames of a video of `num_frames` that are the first of a scene; none for a picture, or if unwished.

    Raises: EnvironmentUnfitError: if the search is wished but PySceneDetect is missing. InputError: if it fails.
    """
    wish = request.source.scenes
    if not isinstance(reference, VideoReference) or reference.by_index or wish == "off":
        return ()
    cuts_s: Sequence[Fraction] = ()
    if wish == "on" or can_find_cuts():
        try:
            cuts_s = find_cuts(reference.reader.path, reference.time.length_s or Fraction(num_frames, VIDEO_FPS))
        except EnvironmentUnfitError as error:  # installed, but it does not start
            if wish == "on":
                raise
            on_note(f"note: scene cuts are not looked for: {error.message}; {error.hint}; --scenes off: there are none")
    else:
        on_note(f"note: if the video cuts from scene to scene: {INSTALL} finds that; --scenes off: it does not")
    cuts = reference.time.cut_frames(cuts_s, num_frames, VIDEO_FPS)
    if cuts:
        told = [f"{cut / VIDEO_FPS:.2f}" for cut in cuts[:MOST_CUTS_TOLD]]
        more = f" and {len(cuts) - len(told)} more" if len(cuts) > len(told) else ""
        on_note(f"{len(cuts)} scene cut{'s' if len(cuts) > 1 else ''} at {', '.join(told)} s{more}: each starts anew")
    return cuts
