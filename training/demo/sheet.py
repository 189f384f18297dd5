"""A picture for the README: a row of frames of each video.

`python -m training.demo.sheet docs/demo.png talk-demo.mp4 two.mp4` spreads the frames evenly over each video. 256
colours keep the file small.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

ROW_WIDTH = 1280


def main() -> None:
    parser = argparse.ArgumentParser(description="Put frames of videos on one picture.")
    parser.add_argument("out", type=Path)
    parser.add_argument("videos", type=Path, nargs="+")
    wish = parser.parse_args()
    rows = [row_of(path) for path in wish.videos]
    sheet = Image.new("RGB", (ROW_WIDTH, sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    sheet.quantize(256, dither=Image.Dither.NONE).save(wish.out, optimize=True)
    print(f"{wish.out}: {wish.out.stat().st_size // 1000} kB")


def row_of(path: Path) -> Image.Image:
    """As many frames as a row holds, in order."""
    with av.open(str(path)) as container:
        frames: list[NDArray[np.uint8]] = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    number = ROW_WIDTH // frames[0].shape[1]
    chosen = np.linspace(0, len(frames) - 1, number).round().astype(int)
    return Image.fromarray(np.concatenate([frames[at] for at in chosen], axis=1))


if __name__ == "__main__":
    main()
