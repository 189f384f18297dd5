"""Kokoro as small as its package lets it be, with random weights: the class that the published weights are loaded into.

Its decoder's widths are fixed, so it has 68 million parameters; everything else is tiny.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import torch

PHONEMES = " ,.!?;:—…\"'“”()abcdefhijklmnopqrstuvwxyzæçðøŋœɐɑɒɔɕəɚɛɜɟɡɣɥɪɯɲɹɾʁʃʊʋʌʎʒʔʝˈˌːʤʧAIOQWYSTᵊᵻ"

CONFIG: dict[str, Any] = {
    "istftnet": {
        "upsample_kernel_sizes": [20, 12],
        "upsample_rates": [10, 6],
        "gen_istft_hop_size": 5,
        "gen_istft_n_fft": 20,
        "resblock_dilation_sizes": [[1, 3, 5]],
        "resblock_kernel_sizes": [3],
        "upsample_initial_channel": 512,
    },
    "dropout": 0.0,
    "hidden_dim": 512,
    "max_dur": 4,
    "n_layer": 1,
    "n_mels": 8,
    "n_token": 178,
    "style_dim": 128,
    "text_encoder_kernel_size": 3,
    "plbert": {
        "hidden_size": 16,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "max_position_embeddings": 512,
        "num_hidden_layers": 1,
    },
    "vocab": {phoneme: number for number, phoneme in enumerate(PHONEMES, start=1)},
}


def tiny_kokoro(folder: Path) -> Any:
    """The network in memory. `folder`: for its files, which are nearly empty."""
    kokoro: Any = importlib.import_module("kokoro")  # optional: type checkers may not find it
    torch.manual_seed(0)
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    torch.save({}, folder / "empty.pth")
    return kokoro.KModel(repo_id="local", config=str(folder / "config.json"), model=str(folder / "empty.pth")).eval()


def write_voice(path: Path, seed: int = 0) -> Path:
    """A voice of random styles."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(torch.randn(510, 1, 256, generator=torch.Generator().manual_seed(seed)), path)
    return path
