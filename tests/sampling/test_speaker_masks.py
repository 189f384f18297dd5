from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from infinitalk_cli.sampling.settings import InvalidInput
from infinitalk_cli.sampling.speaker_boxes import PixelBox, default_boxes
from infinitalk_cli.sampling.speaker_masks import speaker_masks


@dataclass(frozen=True)
class CropOf:
    """A resize and crop."""

    height: int
    width: int
    resized_height: int
    resized_width: int
    top: int = 0
    left: int = 0


WHOLE = CropOf(64, 128, 64, 128)


def test_default_boxes_leave_five_percent_of_each_half_free() -> None:
    assert default_boxes(1000, 1500) == (PixelBox(37, 50, 712, 950), PixelBox(787, 50, 1462, 950))


def test_margin_of_the_default_boxes_can_be_chosen() -> None:
    assert default_boxes(1000, 1500, margin=0.15) == (PixelBox(112, 150, 637, 850), PixelBox(862, 150, 1387, 850))


def test_box_covers_the_latents_whose_pixels_it_holds() -> None:
    left, right = PixelBox(0, 0, 32, 64), PixelBox(64, 16, 128, 48)
    masks = speaker_masks(64, 128, WHOLE, [left, right])
    assert masks.shape == (3, 8, 16)
    expected = torch.zeros(3, 8, 16)
    expected[0, :, :4] = 1
    expected[1, 2:6, 8:] = 1
    expected[2] = 1 - expected[0] - expected[1]
    assert torch.equal(masks, expected)


def test_first_speaker_is_the_left_one_by_default() -> None:
    masks = speaker_masks(64, 128, WHOLE)
    assert masks[0, :, 8:].sum() == 0
    assert masks[1, :, :8].sum() == 0
    assert masks[0].sum() > 0
    assert masks[1].sum() > 0


def test_masks_leave_the_room_around_a_padded_picture_to_nobody() -> None:
    # 64 x 64 pixels in the middle of 64 x 128
    crop = CropOf(64, 128, 64, 64, left=-32)
    boxes = speaker_masks(64, 64, crop, [PixelBox(0, 0, 32, 64), PixelBox(32, 0, 64, 64)])
    assert boxes[0].sum(0).tolist() == [0] * 4 + [8] * 4 + [0] * 8
    assert boxes[1].sum(0).tolist() == [0] * 8 + [8] * 4 + [0] * 4
    painted = torch.zeros(2, 64, 64, dtype=torch.bool)
    painted[0, :, :32] = painted[1, :, 32:] = True
    assert torch.equal(speaker_masks(64, 64, crop, list(painted)), boxes)


def test_masks_follow_the_picture_through_resize_and_crop() -> None:
    # 128 x 256 pixels, halved, and the middle 64 columns cut out: source columns 64 to 192
    crop = CropOf(64, 64, 64, 128, left=32)
    masks = speaker_masks(128, 256, crop, [PixelBox(64, 0, 96, 128), PixelBox(160, 0, 256, 128)])
    assert masks.shape == (3, 8, 8)
    assert masks[0].sum(0).tolist() == [8, 8, 0, 0, 0, 0, 0, 0]
    assert masks[1].sum(0).tolist() == [0, 0, 0, 0, 0, 0, 8, 8]


def test_masks_may_overlap_and_background_is_what_is_left() -> None:
    masks = speaker_masks(64, 128, WHOLE, [PixelBox(0, 0, 96, 64), PixelBox(32, 0, 128, 64)])
    assert masks[2].sum() == 0
    assert (masks[0] * masks[1]).sum() == 8 * 8


@pytest.mark.parametrize(
    "box",
    [
        PixelBox(64, 0, 129, 64),
        PixelBox(-1, 0, 64, 64),
        PixelBox(0, 0, 64, 65),
        PixelBox(500, 500, 600, 600),
        PixelBox(64, 0, 64, 64),
        PixelBox(0, 40, 64, 20),
    ],
)
def test_box_that_leaves_the_picture_is_refused_with_speaker_and_numbers(box: PixelBox) -> None:
    with pytest.raises(InvalidInput) as caught:
        speaker_masks(64, 128, WHOLE, [PixelBox(0, 0, 64, 64), box])
    assert "speaker 2" in caught.value.message
    assert f"left {box.left}, top {box.top}, right {box.right}, bottom {box.bottom}" in caught.value.message
    assert "128 x 64" in caught.value.message
    assert caught.value.hint


def test_box_that_the_crop_removes_is_refused() -> None:
    crop = CropOf(64, 64, 64, 128, left=32)
    with pytest.raises(InvalidInput, match=r"nothing of the box, left 0, top 0, right 60.*, of speaker 1"):
        speaker_masks(128, 256, crop, [PixelBox(0, 0, 60, 128), PixelBox(160, 0, 256, 128)])


def test_box_smaller_than_a_token_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"nothing of the box.* of speaker 1"):
        speaker_masks(64, 128, WHOLE, [PixelBox(8, 8, 15, 15), PixelBox(64, 0, 128, 64)])


def test_one_box_for_two_speakers_is_refused() -> None:
    with pytest.raises(InvalidInput, match="1 boxes for 2 speakers"):
        speaker_masks(64, 128, WHOLE, [PixelBox(0, 0, 64, 64)])


def test_a_mask_and_the_same_box_give_the_same() -> None:
    crop = CropOf(64, 64, 80, 160, top=8, left=40)
    left, right = PixelBox(33, 1, 61, 60), PixelBox(64, 16, 90, 48)
    painted = torch.zeros(2, 64, 128, dtype=torch.bool)
    for mask, box in zip(painted, (left, right), strict=True):
        mask[box.top : box.bottom, box.left : box.right] = True
    assert torch.equal(speaker_masks(64, 128, crop, list(painted)), speaker_masks(64, 128, crop, [left, right]))
