"""Bucket tables, bucket choice, crop geometry and the pixels of fitted pictures against the reference data."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from infinitalk_cli.media.image import BUCKETS, bucket_table, choose_bucket, fit, plan_crop, read_image
from tests.parity.reference import Array, Case, cases, expect_close, reference_dir, value

TABLE_OF_PROGRAM = {"infinitetalk-480": "480", "infinitetalk-720": "720"}


def fitted(case: Case, target: tuple[int, int]) -> Array:
    """The case's picture, alpha dropped as the original does, as (3, H, W) of 8 bits."""
    image = read_image(reference_dir() / case.inputs["file"], background=None)
    pixels = np.asarray(fit(image, plan_crop(image.height, image.width, *target)))
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


@pytest.mark.parametrize(
    "case", cases("image", lambda c: bool(c.expected.keys() & TABLE_OF_PROGRAM.keys()) and "sizes_hw" not in c.inputs)
)
def test_bucket_tables_are_the_published_ones(case: Case) -> None:
    for program, sizes in case.expected.items():
        assert bucket_table(sizes) == BUCKETS[TABLE_OF_PROGRAM[program]]


@pytest.mark.parametrize("case", cases("image", lambda c: "sizes_hw" in c.inputs))
def test_sizes_get_the_expected_buckets(case: Case) -> None:
    for program, targets in case.expected.items():
        chosen = [choose_bucket(h, w, BUCKETS[TABLE_OF_PROGRAM[program]]) for h, w in case.inputs["sizes_hw"]]
        assert [[bucket.height, bucket.width] for bucket in chosen] == targets


@pytest.mark.parametrize("case", cases("image", lambda c: "rows" in c.expected))
def test_resize_and_crop_geometry(case: Case) -> None:
    for h, w, target_h, target_w, *geometry in case.expected["rows"]:
        plan = plan_crop(h, w, target_h, target_w)
        assert [plan.resized_height, plan.resized_width, plan.top, plan.left] == geometry, (h, w)


@pytest.mark.parametrize("case", cases("image", lambda c: "pixels_uint8" in c.expected))
def test_fitted_pixels(case: Case) -> None:
    image = read_image(reference_dir() / case.inputs["file"], background=None)
    bucket = choose_bucket(image.height, image.width, bucket_table(case.settings["bucket_table"]))
    assert [bucket.height, bucket.width] == case.expected["target_hw"]
    pixels = fitted(case, (bucket.height, bucket.width))
    expect_close(pixels, value(case.expected["pixels_uint8"]), case.tolerance["pixels_uint8"], case.id)


@pytest.mark.parametrize("case", cases("image", lambda c: "sample_every_16" in c.expected))
def test_pixels_scaled_up_to_a_real_bucket(case: Case) -> None:
    pixels = fitted(case, case.settings["target_hw"])
    expect_close(pixels[:, ::16, ::16], value(case.expected["sample_every_16"]), case.tolerance, case.id)
    assert hashlib.sha256(pixels.tobytes()).hexdigest() == case.expected["sha256_of_CHW_uint8"]
