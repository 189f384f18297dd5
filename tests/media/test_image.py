from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from infinitalk_cli.errors import InputError
from infinitalk_cli.media.image import (
    BUCKETS,
    CropPlan,
    bucket_table,
    choose_bucket,
    fit,
    plan_crop,
    plan_pad,
    read_image,
    to_frames,
)
from infinitalk_cli.media.reference import open_reference
from tests.media.made import noise, write_video, write_wav

ORIENTATION_TAG = 0x0112


def corner_colors(image: Image.Image) -> list[tuple[int, ...]]:
    """The colours of the corners, clockwise from the top left."""
    right, bottom = image.width - 1, image.height - 1
    return [image.getpixel(at) for at in ((0, 0), (right, 0), (right, bottom), (0, bottom))]  # pyright: ignore[reportReturnType]


def four_corners() -> Image.Image:
    """40 x 20 with red, green, blue and white quarters, clockwise from the top left."""
    image = Image.new("RGB", (40, 20), (255, 0, 0))
    image.paste((0, 255, 0), (20, 0, 40, 10))
    image.paste((0, 0, 255), (20, 10, 40, 20))
    image.paste((255, 255, 255), (0, 10, 20, 20))
    return image


@pytest.mark.parametrize("orientation, upright_turns", [(1, 0), (6, 1), (3, 2), (8, 3)])
def test_orientation_tags_are_honoured(tmp_path: Path, orientation: int, upright_turns: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    upright = four_corners()
    lying = upright.rotate(90 * upright_turns, expand=True)  # the viewer turns it back, clockwise
    lying.save(tmp_path / "photo.png", exif=exif)
    image = read_image(tmp_path / "photo.png")
    assert image.size == (40, 20)
    assert corner_colors(image) == corner_colors(upright)


def test_transparent_parts_show_the_background(tmp_path: Path) -> None:
    image = Image.new("RGBA", (4, 4), (200, 0, 0, 255))
    image.putpixel((0, 0), (0, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 0, 128))
    image.save(tmp_path / "cut.png")
    assert read_image(tmp_path / "cut.png").getpixel((0, 0)) == (255, 255, 255)
    half = read_image(tmp_path / "cut.png", background=(0, 100, 200)).getpixel((1, 0))
    assert half == (0, 50, 100)
    assert read_image(tmp_path / "cut.png", background=None).getpixel((0, 0)) == (0, 0, 0)
    assert read_image(tmp_path / "cut.png").getpixel((3, 3)) == (200, 0, 0)


def test_a_transparent_palette_entry_shows_the_background(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "palette.png", transparency=0)
    read = read_image(tmp_path / "palette.png", background=(1, 2, 3))
    assert [read.getpixel((x, 0)) for x in (0, 1)] == [(1, 2, 3), (200, 100, 50)]


@pytest.mark.parametrize("mode, value", [("L", 120), ("1", 1), ("LA", (120, 255)), ("CMYK", (0, 255, 255, 0))])
def test_other_modes_become_rgb(tmp_path: Path, mode: str, value: int | tuple[int, ...]) -> None:
    suffix = "tif" if mode == "CMYK" else "png"
    Image.new(mode, (3, 2), value).save(tmp_path / f"picture.{suffix}")  # pyright: ignore[reportArgumentType]
    image = read_image(tmp_path / f"picture.{suffix}")
    wanted = {"L": (120,) * 3, "1": (255,) * 3, "LA": (120,) * 3, "CMYK": (255, 0, 0)}[mode]
    assert image.mode == "RGB"
    assert image.getpixel((1, 1)) == wanted


def test_16_bit_greys_are_scaled_not_clipped(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 257 * 100, 65535]], np.uint16)).save(tmp_path / "deep.png")
    assert np.asarray(read_image(tmp_path / "deep.png"))[0, :, 0].tolist() == [0, 100, 255]


def test_float_greys_lie_between_zero_and_one(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32)).save(tmp_path / "float.tif")
    assert np.asarray(read_image(tmp_path / "float.tif"))[0, :, 0].tolist() == [0, 128, 255]


def test_the_name_does_not_matter(tmp_path: Path) -> None:
    four_corners().save(tmp_path / "portrait.mp4", format="PNG")
    assert read_image(tmp_path / "portrait.mp4").size == (40, 20)


def test_missing_empty_damaged_and_foreign_files_are_told_apart(tmp_path: Path) -> None:
    Image.effect_noise((200, 200), 50).save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:9000])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("not a picture")
    for name, message in {
        "missing.png": "does not exist",
        "empty.png": "0 bytes",
        "text.png": "not a picture that can be read",
        "half.png": "is damaged",
    }.items():
        with pytest.raises(InputError, match=message) as caught:
            read_image(tmp_path / name)
        assert name in caught.value.message
        assert caught.value.hint


def test_a_video_or_a_sound_is_not_a_picture(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a picture"):
        read_image(write_video(tmp_path / "clip.mp4", [0.0]))
    with pytest.raises(InputError, match="not a picture"):
        read_image(write_wav(tmp_path / "voice.wav", noise(100), 16_000))


def test_an_implausibly_large_picture_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    four_corners().save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(InputError, match="too many pixels"):
        read_image(tmp_path / "large.png")


# spec, checks 4: width, height -> target, resized, offset, all height first
CHECKS = {
    "480": {
        (1920, 1080): ((448, 896), (504, 896), (28, 0)),
        (1080, 1920): ((832, 448), (832, 468), (0, 10)),
        (1024, 1024): ((640, 640), (640, 640), (0, 0)),
        (768, 1024): ((704, 576), (768, 576), (32, 0)),
        (4032, 3024): ((576, 704), (576, 768), (0, 32)),
        (641, 640): ((640, 640), (640, 641), (0, 0)),
    },
    "720": {
        (1920, 1080): ((704, 1280), (720, 1280), (8, 0)),
        (1080, 1920): ((1280, 704), (1280, 720), (0, 8)),
        (1024, 1024): ((960, 960), (960, 960), (0, 0)),
        (768, 1024): ((1088, 832), (1110, 832), (11, 0)),
        (4032, 3024): ((832, 1088), (832, 1110), (0, 11)),
        (641, 640): ((960, 960), (960, 962), (0, 1)),
    },
}


@pytest.mark.parametrize("table", CHECKS)
def test_known_sizes_get_known_crops(table: str) -> None:
    for (width, height), (target, resized, offset) in CHECKS[table].items():
        bucket = choose_bucket(height, width, BUCKETS[table])
        assert plan_crop(height, width, bucket.height, bucket.width) == CropPlan(*target, *resized, *offset)


@pytest.mark.parametrize("size", [(2001, 100), (4, 20_000)])
def test_a_strip_is_refused_before_it_is_scaled(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size).save(tmp_path / "strip.png")
    with pytest.raises(InputError, match=rf"strip\.png is too thin .*{size[0]} x {size[1]}"):
        open_reference(tmp_path / "strip.png", BUCKETS["demo"], is_video=False)


def test_a_thin_picture_is_still_taken(tmp_path: Path) -> None:
    Image.new("RGB", (2000, 100)).save(tmp_path / "thin.png")
    assert open_reference(tmp_path / "thin.png", BUCKETS["demo"], is_video=False).crop.height == 96


@pytest.mark.parametrize(
    ("size", "target", "expected"),
    [
        ((100, 200), (64, 64), CropPlan(64, 64, 32, 64, -16, 0)),
        ((201, 100), (64, 64), CropPlan(64, 64, 64, 32, 0, -16)),
        ((50, 50), (64, 64), CropPlan(64, 64, 64, 64, 0, 0)),
        ((1, 1000), (64, 64), CropPlan(64, 64, 1, 64, -31, 0)),
    ],
)
def test_a_padded_picture_lies_whole_in_the_middle(
    size: tuple[int, int], target: tuple[int, int], expected: CropPlan
) -> None:
    assert plan_pad(*size, *target) == expected


def test_the_room_around_a_padded_picture_has_its_border_colours() -> None:
    image = Image.new("RGB", (40, 20), (200, 40, 40))
    image.paste((40, 40, 200), (0, 10, 40, 20))
    padded = np.asarray(fit(image, plan_pad(20, 40, 32, 32)))
    assert padded.shape == (32, 32, 3)
    assert np.abs(padded[0].astype(int) - (200, 40, 40)).max() < 8
    assert np.abs(padded[-1].astype(int) - (40, 40, 200)).max() < 8
    assert (padded[8:12] == (200, 40, 40)).all()


def test_the_first_bucket_wins_a_tie() -> None:
    table = bucket_table({"0.50": (32, 64), "1.50": (96, 64)})
    assert choose_bucket(100, 100, table).height == 32


def test_demo_sizes_are_small_and_fit_the_networks() -> None:
    for bucket in BUCKETS["demo"]:
        assert bucket.height % 16 == bucket.width % 16 == 0
        assert bucket.aspect == pytest.approx(bucket.height / bucket.width, abs=0.01)
        assert bucket.height * bucket.width <= 640 * 640 // 20


def test_frames_are_the_fitted_picture_between_minus_one_and_one() -> None:
    image = four_corners()
    plan = plan_crop(20, 40, 16, 16)
    frames = to_frames(image, plan)
    assert frames.shape == (1, 3, 1, 16, 16)
    assert frames.dtype == torch.float32
    assert frames.min() == -1
    assert frames.max() == 1
    pixels = np.asarray(fit(image, plan)).transpose(2, 0, 1)
    assert np.array_equal(((frames[0, :, 0] + 1) * 127.5).round().numpy(), pixels)


def test_a_large_photo_is_read_without_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above Pillow's limit, but below twice that: panoramas of phones lie there."""
    Image.new("RGB", (30, 20)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    assert read_image(tmp_path / "large.png").size == (30, 20)
