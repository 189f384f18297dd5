"""What the demo's transformer reads and sees through networks that are never trained: prompts' features and a CLIP.

`python -m training.demo.frozen DIR` writes `prompts.npz` (a few prompts through the package's small UMT5) and
`clip.safetensors`. Both networks are random; the transformer learns what their outputs mean.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from infinitalk_cli.networks import build_text_encoder
from infinitalk_cli.weights import locate
from training.demo.networks import IMAGE_FILE, new_image_encoder, save_half
from training.random_tree import ensure_random_weights

PROMPTS = (
    "",
    "A person talks.",
    "A woman is talking.",
    "A man is talking.",
    "A woman talks to the camera in a bright room.",
    "A woman with auburn hair and a blue pullover talks to the camera in a bright room.",
    "A man in a grey pullover talks while the camera moves slowly past him.",
    "A woman in a blue pullover and a man in a grey pullover sit side by side and talk to each other.",
    "Two people are talking in a podcast studio.",
    "a portrait of a person who speaks",
    "Somebody says hello.",
    "A person is speaking calmly, looking at the camera.",
    "An interview, soft light, high quality.",
    "A singer sings a song.",
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Prepare what is not trained.")
    parser.add_argument("out", type=Path)
    out: Path = parser.parse_args().out
    encoder = build_text_encoder(locate(ensure_random_weights(), num_speakers=1), dtype=torch.float32)
    texts: dict[str, Any] = {
        f"prompt_{number:02d}": encoder.encode(prompt).numpy() for number, prompt in enumerate(PROMPTS)
    }
    np.savez_compressed(out / "prompts.npz", **texts)
    save_half(new_image_encoder(0).state_dict(), out / IMAGE_FILE)


if __name__ == "__main__":
    main()
