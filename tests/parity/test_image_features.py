"""CLIP's pixels and tokens against the outputs of the original."""

from __future__ import annotations

import pytest
import torch

from infinitalk_cli.memory.tensor_files import open_tensors
from infinitalk_cli.models.image_encoder import ImageEncoder, prepare_pixels
from infinitalk_cli.networks import make_image_encoder
from tests.parity.conftest import TinyTree
from tests.parity.reference import DEVICE, Case, cases, expect_close, tensor, value

SAMPLE_STEP = 16  # the data holds every 16th row and column of CLIP's input


def has_features(case: Case) -> bool:
    return "feature_rows" in case.expected


@pytest.fixture(scope="module")
def encoder(tiny_tree: TinyTree) -> ImageEncoder:
    (published,) = {name for case in cases("image", has_features) for name in case.weights.values()}
    tensors = open_tensors(tiny_tree.need_matching(f"*/{published}"))
    return make_image_encoder(tensors, dtype=torch.float32, device=DEVICE)


@pytest.mark.parametrize("case", cases("image", has_features), ids=str)
def test_cropped_frame_gives_the_tokens(case: Case, encoder: ImageEncoder) -> None:
    """Starts from the cropped pixels of the data; how a file becomes these is tested with the pictures."""
    frame = (tensor(case.expected["pixels_uint8"])[None].float() / 255 - 0.5) * 2
    tolerance = case.tolerance["features"]
    sample = prepare_pixels(frame, encoder.config.image_size)[0, :, ::SAMPLE_STEP, ::SAMPLE_STEP]
    expect_close(sample, value(case.expected["clip_input_sample"]), tolerance, "input")
    tokens = encoder.encode(frame)[0]
    rows = tokens[case.settings["feature_rows"]]
    expect_close(rows, value(case.expected["feature_rows"]), tolerance, "rows")
    expect_close(tokens.mean(dim=1), value(case.expected["feature_mean_per_token"]), tolerance, "means")
    expect_close(tokens.std(dim=1), value(case.expected["feature_std_per_token"]), tolerance, "deviations")
