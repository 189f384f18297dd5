"""Which numbers the networks of a run compute with, by the device; those of the video VAE are in `run_vae`."""

from __future__ import annotations

import torch

from infinitalk_cli.request import GenerateRequest


def half_on_gpu(device: torch.device) -> torch.dtype:
    """float16 on a GPU, float32 on a CPU."""
    return torch.float16 if device.type == "cuda" else torch.float32


def compute_dtype(request: GenerateRequest, device: torch.device) -> torch.dtype:
    """The transformer's dtype: what the profile says, or what the device is good at."""
    if request.profile.dtype == "auto":
        return text_dtype(device)
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[request.profile.dtype]


def text_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 on a GPU; UMT5 overflows float16."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32
