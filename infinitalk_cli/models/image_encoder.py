"""CLIP's vision tower (ViT-H/14): a picture to 257 tokens.

The tokens are those after the last but one layer, so the last layer, the final norm and the text tower are never
built. The network is `transformers`' class, imported when the first encoder is built; from version 5.9 on it has lost
its inner `vision_model`, so `model` is the inner module on every version and the parameter names are the same on all.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from infinitalk_cli.models.encoder_config import ImageEncoderConfig

# Statistics of the pictures that CLIP was trained on, for values in [0, 1].
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)


class ImageEncoder(nn.Module):
    """CLIP's vision tower without its last layer. `model` is the library's vision transformer."""

    def __init__(self, config: ImageEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.model = build_clip_vision(config)
        self.reset_buffers()
        self.eval()

    def reset_buffers(self) -> None:
        """Make the position numbers, on the CPU: no file holds them, and a module built on `meta` has them empty."""
        embeddings = self.model.embeddings
        numbers = torch.arange(embeddings.position_embedding.num_embeddings, device="cpu")
        embeddings.register_buffer("position_ids", numbers[None], persistent=False)

    @torch.no_grad()
    def encode(self, frame: Tensor) -> Tensor:
        """Encode a frame `(1, 3, H, W)` in [-1, 1]: `(1, 257, dim)` in the dtype of the weights."""
        weight = self.model.embeddings.patch_embedding.weight
        pixels = prepare_pixels(frame, self.config.image_size).to(weight.device, weight.dtype)
        return self.model(pixels).last_hidden_state


def prepare_pixels(frame: Tensor, size: int) -> Tensor:
    """Squeeze a frame to a square and normalise it as CLIP expects.

    The aspect ratio is ignored and nothing is smoothed or clamped, because the transformer was trained on features
    made so.

    Args: frame: `(B, 3, H, W)` in [-1, 1]. Returns: `(B, 3, size, size)`, float32.
    """
    square = functional.interpolate(frame.float(), size=(size, size), mode="bicubic", align_corners=False)
    mean, std = torch.tensor([PIXEL_MEAN, PIXEL_STD], device=frame.device)[:, :, None, None]
    return (square * 0.5 + 0.5 - mean) / std


def build_clip_vision(config: ImageEncoderConfig) -> Any:
    """Build the library's vision transformer on the current default device (`meta` leaves it empty)."""
    from transformers.models.clip.configuration_clip import CLIPVisionConfig
    from transformers.models.clip.modeling_clip import CLIPVisionModel

    outer: Any = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=config.dim,
            intermediate_size=config.ffn_dim,
            num_hidden_layers=config.num_layers - 1,
            num_attention_heads=config.num_heads,
            image_size=config.image_size,
            patch_size=config.patch_size,
            hidden_act="gelu",
            layer_norm_eps=config.eps,
        )
    )
    model = getattr(outer, "vision_model", outer)
    model.post_layernorm = nn.Identity()  # only the pooled output, which nobody reads, goes through it
    return model
