"""What the package brings along: small trained weights, a portrait and a sentence.

The weights lie in `demo_weights` in the published layout and are read by the loader of the published ones. One file of
audio parts serves one speaker, two speakers and MultiTalk's loop. All of it is synthetic: `demo_weights/ABOUT.txt` says
where it comes from, and `training/demo` of the repository makes it.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from infinitalk_cli.errors import WeightsError
from infinitalk_cli.weights import INFINITETALK, Engine, Quant, WeightFiles, locate

PACKAGE = Path(__file__).parent
WEIGHTS = PACKAGE / "demo_weights"
PORTRAIT = PACKAGE / "demo_media" / "portrait.jpg"
SENTENCE = PACKAGE / "demo_media" / "sentence.flac"

ADAPTER = f"{INFINITETALK}/multi/infinitetalk.safetensors"

ENVIRONMENT_VARIABLE = "TALK_DEMO_WEIGHTS"
"""Another folder of weights for the demo; the tests, which need no picture, name one with smaller networks."""


def demo_weights_dir() -> Path:
    """The folder of the demo's weights."""
    if said := os.environ.get(ENVIRONMENT_VARIABLE):
        return Path(said)
    return WEIGHTS


def locate_demo(*, num_speakers: int, engine: Engine = "infinitetalk", quant: Quant = "none") -> WeightFiles:
    """The files of a run with the demo's weights, which are small enough to be rounded to 8 bits while they are read.

    Raises: WeightsError: if some are missing.
    """
    folder = demo_weights_dir()
    try:
        files = locate(folder, num_speakers=num_speakers, engine=engine, adapter=folder / ADAPTER)
    except WeightsError as error:
        raise WeightsError(error.message, hint="they come with the package: install it again") from error
    return replace(files, round_to=quant)
