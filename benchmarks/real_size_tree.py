"""Write a weights tree of the published names, shapes and dtypes, filled with random numbers, to measure whole runs.

    python benchmarks/real_size_tree.py FOLDER        # fp8, one speaker: about 32 GB on the disk

A network of random weights makes no picture, but it takes the time and the memory of the real one. The names come from
tests/data/reference/full_weights.json; the numbers are drawn on the GPU if there is one, since 19 billion of them are
needed.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from infinitalk_cli.demo_package import demo_weights_dir

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F8_E4M3": torch.float8_e4m3fn}
BASE, SPEECH, QUANTISED = "Wan2.1-I2V-14B-480P", "chinese-wav2vec2-base", "InfiniteTalk/quant_models"
FILES = (
    f"{QUANTISED}/infinitetalk_single_fp8.safetensors",
    f"{QUANTISED}/t5_fp8.safetensors",
    f"{BASE}/models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth",
    f"{BASE}/Wan2.1_VAE.pth",
    f"{SPEECH}/model.safetensors",
)
LARGEST_FP8 = 448.0
SPEECH_CONFIG = {
    "architectures": ["Wav2Vec2ForPreTraining"],
    "do_stable_layer_norm": False,
    "feat_extract_norm": "group",
    "feat_extract_activation": "gelu",
    "hidden_act": "gelu",
    "conv_bias": False,
    "conv_dim": [512] * 7,
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_conv_pos_embeddings": 128,
    "num_conv_pos_embedding_groups": 16,
    "layer_norm_eps": 1e-5,
}


def main(target: Path) -> None:
    """Write the tree. The tokenizer is the demo's: its few tokens are among those of the real table."""
    reference = Path(__file__).parent.parent / "tests" / "data" / "reference"
    manifest = json.loads((reference / "full_weights.json").read_text(encoding="utf-8"))
    for name in FILES:
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {name: make(name, *form) for name, form in expanded(manifest["files"][name]["tensors"])}
        if path.suffix == ".safetensors":
            save_file(tensors, path)
        else:
            torch.save(tensors, path)
        print(f"{name}: {path.stat().st_size / 1e9:.2f} GB", flush=True)
    config = manifest["configs"][f"{BASE}/config.json"]
    (target / BASE / "config.json").write_text(json.dumps(config))
    (target / SPEECH / "config.json").write_text(json.dumps(SPEECH_CONFIG))
    (target / SPEECH / "preprocessor_config.json").write_text('{"do_normalize": false, "sampling_rate": 16000}')
    shutil.copytree(demo_weights_dir() / BASE / "google", target / BASE / "google", dirs_exist_ok=True)


def expanded(tensors: dict[str, Any]) -> Iterator[tuple[str, tuple[str, list[int]]]]:
    """Every tensor of a file; `{a..b}` in a name stands for one per number."""
    for pattern, (dtype, shape) in tensors.items():
        span = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
        numbers = range(int(span[1]), int(span[2]) + 1) if span else [None]
        for number in numbers:
            yield pattern if span is None else pattern.replace(span[0], str(number)), (dtype, shape)


def make(name: str, dtype: str, shape: list[int]) -> torch.Tensor:
    """Numbers of a size that keeps activations near 1: norms are ones, biases small, matrices 1 / sqrt(inputs)."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    leaf, fan_in = name.rsplit(".", 1)[-1], max(1, torch.Size(shape[1:]).numel())
    if leaf in ("input_scale", "output_scale", "gamma") or (leaf == "weight" and len(shape) == 1):
        return torch.ones(shape, dtype=DTYPES[dtype])
    if leaf == "_scale":
        return torch.full(shape, 1.0, dtype=DTYPES[dtype]) * 4 / LARGEST_FP8 / 5120**0.5
    spread = LARGEST_FP8 / 4 if leaf == "_data" else 0.02 if len(shape) <= 1 else fan_in**-0.5
    drawn = torch.randn(shape, device=device) * spread
    return drawn.clamp(-LARGEST_FP8, LARGEST_FP8).to(DTYPES[dtype]).cpu()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
