"""Audio tokens against the original program: which vectors feed a latent frame, and what they become."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from einops import rearrange

from infinitalk_cli.models.audio_attention import group_windows
from tests.parity.conftest import TinyTree
from tests.parity.reference import Case, cases, expect_close, tensor, value
from tests.parity.test_dit import load_dit

RADIUS, VIDEO_FRAMES_PER_LATENT = 2, 4


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:  # pyright: ignore[reportUnusedFunction]
    with torch.no_grad():
        yield


def labelled_windows(num_frames: int) -> torch.Tensor:
    """Windows whose vectors are their own (frame, offset)."""
    offsets = range(-RADIUS, RADIUS + 1)
    labels = torch.tensor([[[frame, offset] for offset in offsets] for frame in range(num_frames)])
    return rearrange(labels, "frames window label -> 1 frames window 1 label")


@pytest.mark.parametrize("case", cases("audio_grouping", lambda case: "first_frame" in case.expected), ids=repr)
def test_latent_frames_take_the_vectors_of_the_reference(case: Case) -> None:
    first, later = group_windows(labelled_windows(case.settings["frames"]), VIDEO_FRAMES_PER_LATENT)
    expect_close(first[0, :, :, 0], case.expected["first_frame"], case.tolerance, "first frame")
    expect_close(later[0, :, :, 0], case.expected["later_frames"], case.tolerance, "later frames")


@pytest.mark.parametrize("case", cases("audio_grouping", lambda case: "tokens" in case.expected), ids=repr)
def test_tokens_equal_the_reference(case: Case, tiny_tree: TinyTree) -> None:
    dit, windows = load_dit(tiny_tree, case.weights["dit"]), tensor(case.inputs["audio"])
    expected = value(case.expected["tokens"])
    expect_close(dit.audio_proj(windows), expected, case.tolerance, "tokens per speaker")
    joined = rearrange(expected, "speakers frames tokens width -> 1 frames (speakers tokens) width")
    expect_close(dit.embed_audio(windows), joined, case.tolerance, "tokens per latent frame")


def test_every_case_of_the_group_is_run() -> None:
    assert all({"first_frame", "tokens"} & set(case.expected) for case in cases("audio_grouping"))
