"""Where each speaker is: boxes, mask images, halves, and everything else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infinitalk_cli.errors import InputError
from infinitalk_cli.job import Box, Job, Speaker
from infinitalk_cli.places import Area, read_mask, speaker_areas

HEIGHT, WIDTH = 64, 128
VOICE = Path("a.wav")


def job(*speakers: Speaker) -> Job:
    return Job(reference=Path("two.png"), prompt="", speakers=speakers)


def paint(path: Path, left: int, right: int, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Path:
    """A mask, white between two columns."""
    image = Image.new("L", size)
    image.paste(255, (left, 0, right, size[1]))
    image.save(path)
    return path


def columns(area: Area) -> tuple[int, int]:
    found = np.nonzero(area.any(axis=0))[0]
    return int(found[0]), int(found[-1]) + 1


def refusal(*speakers: Speaker) -> InputError:
    with pytest.raises(InputError) as caught:
        speaker_areas(job(*speakers), HEIGHT, WIDTH)
    assert caught.value.hint
    return caught.value


def test_two_speakers_without_places_have_the_halves_and_one_has_everything() -> None:
    left, right = speaker_areas(job(Speaker(VOICE), Speaker(VOICE)), HEIGHT, WIDTH)
    assert (columns(left), columns(right)) == ((3, 60), (67, 124))
    assert speaker_areas(job(Speaker(VOICE)), HEIGHT, WIDTH) == ()


def test_a_mask_is_scaled_to_the_picture_by_nearest_neighbour(tmp_path: Path) -> None:
    small = paint(tmp_path / "small.png", 2, 8, size=(16, 8))
    large = paint(tmp_path / "large.png", 512, 1024, size=(1024, 512))
    left, right = speaker_areas(job(Speaker(VOICE, mask=small), Speaker(VOICE, mask=large)), HEIGHT, WIDTH)
    assert (columns(left), columns(right)) == ((16, 64), (64, 128))


def test_transparent_parts_of_a_mask_are_not_the_speaker(tmp_path: Path) -> None:
    image = Image.new("RGBA", (WIDTH, HEIGHT), (255, 255, 255, 0))
    image.paste((255, 255, 255, 255), (0, 0, 32, HEIGHT))
    image.save(tmp_path / "mask.png")
    assert columns(read_mask(tmp_path / "mask.png", 1, HEIGHT, WIDTH)) == (0, 32)


def test_everyone_else_is_all_that_the_chosen_face_is_not() -> None:
    chosen, rest = speaker_areas(job(Speaker(VOICE, Box(0, 0, 32, 64)), Speaker(None, everywhere_else=True)), 64, 128)
    assert np.array_equal(rest, ~chosen)


@pytest.mark.parametrize(
    ("box", "told"),
    [
        (Box(64, 0, 129, 64), "the box of speaker 2, left 64, top 0, right 129, bottom 64, is not a rectangle within"),
        (Box(30, 10, 80, 20), "the boxes of speakers 1 and 2 overlap: both hold 30, 10, 64, 20"),
    ],
)
def test_boxes_that_leave_the_picture_or_overlap_are_refused(box: Box, told: str) -> None:
    assert told in refusal(Speaker(VOICE, Box(0, 0, 64, 64)), Speaker(VOICE, box)).message


def test_masks_that_can_t_be_meant_are_refused(tmp_path: Path) -> None:
    other = Speaker(VOICE, mask=paint(tmp_path / "right.png", 64, 128))
    for name, size, told in (
        ("square", (64, 64), "square.png, is 64 x 64; the picture is 128 x 64, which is another shape"),
        ("black", (WIDTH, HEIGHT), "black.png, holds nothing white"),
    ):
        mask = paint(tmp_path / f"{name}.png", 0, 0, size=size)
        assert told in refusal(Speaker(VOICE, mask=mask), other).message
    wide = replace(other, mask=paint(tmp_path / "wide.png", 0, 80))
    assert "the places of speakers 1 and 2 overlap: 25% of the smaller one" in refusal(wide, other).message
    touching = replace(other, mask=paint(tmp_path / "touching.png", 0, 64))
    assert len(speaker_areas(job(touching, other), HEIGHT, WIDTH)) == 2


def test_a_chosen_face_that_is_the_whole_picture_leaves_nobody_else() -> None:
    error = refusal(Speaker(VOICE, Box(0, 0, WIDTH, HEIGHT)), Speaker(None, everywhere_else=True))
    assert "is the whole picture" in error.message


def test_a_mask_that_is_no_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "mask.png").write_bytes(b"not a picture")
    assert "mask.png is not a picture" in refusal(Speaker(VOICE, mask=tmp_path / "mask.png"), Speaker(VOICE)).message
