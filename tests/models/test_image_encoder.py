"""Pixels for CLIP, and the image encoder against the library's own class with all its layers."""

from __future__ import annotations

import torch
from transformers.models.clip.configuration_clip import CLIPVisionConfig
from transformers.models.clip.modeling_clip import CLIPVisionModel

from infinitalk_cli.models.encoder_config import ImageEncoderConfig
from infinitalk_cli.models.image_encoder import PIXEL_MEAN, PIXEL_STD, ImageEncoder, prepare_pixels
from tests.models.published import published_shapes

SMALL = ImageEncoderConfig(dim=32, ffn_dim=48, num_layers=3, patch_size=14, image_size=56, num_heads=4)


def make_encoder() -> ImageEncoder:
    torch.manual_seed(0)
    return ImageEncoder(SMALL)


def test_grey_frame_becomes_the_normalised_grey() -> None:
    pixels = prepare_pixels(torch.zeros(1, 3, 40, 60), 56)
    expected = (0.5 - torch.tensor(PIXEL_MEAN)) / torch.tensor(PIXEL_STD)
    torch.testing.assert_close(pixels, expected.view(1, 3, 1, 1).expand(1, 3, 56, 56))


def test_wide_frame_is_squeezed_not_cropped() -> None:
    frame = torch.full((1, 3, 28, 112), -1.0)
    frame[..., :56] = 1  # left half white
    white = prepare_pixels(frame, 56)[0, 0, 28] > 0
    assert white[:27].all()
    assert not white[29:].any()


def test_overshoot_at_a_sharp_edge_is_kept() -> None:
    frame = torch.full((1, 3, 20, 20), -1.0)
    frame[..., 10:] = 1
    brightest = (1 - torch.tensor(PIXEL_MEAN)) / torch.tensor(PIXEL_STD)
    assert (prepare_pixels(frame, 56).amax(dim=(0, 2, 3)) > brightest + 0.05).all()


def test_tokens_are_those_before_the_last_layer_of_the_whole_tower() -> None:
    encoder, frame = make_encoder(), torch.rand(1, 3, 30, 50) * 2 - 1
    library = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=56,
            patch_size=14,
            hidden_act="gelu",
        )
    ).eval()
    tower = getattr(library, "vision_model", library)
    missing, unexpected = tower.load_state_dict(encoder.model.state_dict(), strict=False)
    assert all(name.startswith(("encoder.layers.2.", "post_layernorm.")) for name in missing)
    assert not unexpected
    with torch.no_grad():
        states = library(prepare_pixels(frame, 56), output_hidden_states=True).hidden_states
    tokens = encoder.encode(frame)
    assert tokens.shape == (1, 17, 32)
    torch.testing.assert_close(tokens, states[-2], atol=1e-6, rtol=1e-5)


def test_encoder_built_without_memory_knows_its_positions() -> None:
    whole = make_encoder()
    with torch.device("meta"):
        encoder = ImageEncoder(SMALL)
    encoder.load_state_dict(whole.state_dict(), strict=True, assign=True)
    frame = torch.rand(1, 3, 30, 50)
    assert torch.equal(encoder.encode(frame), whole.encode(frame))


def test_tokens_have_the_dtype_of_the_weights() -> None:
    assert make_encoder().bfloat16().encode(torch.zeros(1, 3, 30, 50)).dtype == torch.bfloat16


def test_published_file_gives_the_published_sizes_without_the_last_layer() -> None:
    config = ImageEncoderConfig.from_shapes(published_shapes("models_clip"))
    assert config == ImageEncoderConfig(1280, 5120, 32, 14, 224, 16)
    with torch.device("meta"):
        encoder = ImageEncoder(config)
    layers = {name.split(".")[3] for name in encoder.state_dict() if ".layers." in name}
    assert layers == {str(number) for number in range(31)}
