"""The portrait and the sentence that come with the package: somebody and a voice that no training has seen or heard.

`python -m training.demo.example infinitalk_cli/demo_media` takes a minute on one core and needs the program espeak-ng.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import av
import numpy as np

from training.demo.people import HELD_OUT, invent
from training.demo.speech import HELD_OUT_VOICES, RATE, speak

PERSON = HELD_OUT + 35
SIDE = 512
SENTENCE = "Hello. I was only a picture. Now I can speak."


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the example of the package.")
    parser.add_argument("out", type=Path)
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    save_portrait(out / "portrait.jpg")
    save_sentence(out / "sentence.flac")


def save_portrait(path: Path) -> None:
    """A photograph as those in `examples`."""
    from make_media import JPEG_QUALITY, still
    from portrait_render import Camera

    still((invent(PERSON),), Camera(), SIDE, SIDE).save(path, quality=JPEG_QUALITY)


def save_sentence(path: Path) -> None:
    """The sentence in 16 bits, mono."""
    samples = (speak(SENTENCE, HELD_OUT_VOICES[0], speed=150).clip(-1, 1) * 32767).round().astype(np.int16)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("flac", rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        frame.sample_rate = RATE
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


if __name__ == "__main__":
    main()
