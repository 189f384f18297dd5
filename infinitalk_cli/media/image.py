"""Pictures: read upright and opaque, fitted to the nearest of a fixed set of sizes, turned into frames.

The networks were trained on a handful of sizes of about the same area. The source's aspect ratio picks one
(`choose_bucket`), the picture is scaled to cover it and the overhang cut off evenly (`plan_crop`). Tables, rounding and
filter are the original's to the pixel; orientation tags and alpha, which it ignores, are honoured here. On demand all
of the picture stays instead (`plan_pad`), and its border colours, blurred, fill what it leaves: plain bars would be
copied as such, and an enlarged copy of the picture would show its face twice.

Source: the bucket tables and the resizing of InfiniteTalk and MultiTalk (Apache-2.0), same numbers and arithmetic.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageFilter, ImageOps, UnidentifiedImageError

from infinitalk_cli.errors import InputError
from infinitalk_cli.media.container import check_file

if TYPE_CHECKING:
    import torch

WHITE = (255, 255, 255)
"""What shows through transparent parts: skin and hair meet it more kindly than black or mid-grey."""

BLUR_OF_SIDE = 32
"""The ground beside a padded picture is blurred with a radius of the longer side over this."""

MODES_WITH_ALPHA = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})


@dataclass(frozen=True)
class Bucket:
    """A size that a network was trained on. `aspect`: its label, height / width to two decimals."""

    aspect: float
    height: int
    width: int


@dataclass(frozen=True)
class CropPlan:
    """How a picture becomes `height` x `width`: resize, then cut from (`top`, `left`). In pixels.

    A negative `top` or `left` puts it that far inside, with room around it that is filled.
    """

    height: int
    width: int
    resized_height: int
    resized_width: int
    top: int
    left: int


def bucket_table(sizes: Mapping[str, tuple[int, int]]) -> tuple[Bucket, ...]:
    """A table from labels to (height, width); its order decides ties."""
    return tuple(Bucket(float(label), height, width) for label, (height, width) in sizes.items())


# fmt: off
BUCKETS: Mapping[str, tuple[Bucket, ...]] = {
    "480": bucket_table({
        "0.26": (320, 1216), "0.38": (384, 1024), "0.50": (448, 896), "0.67": (512, 768), "0.82": (576, 704),
        "1.00": (640, 640), "1.22": (704, 576), "1.50": (768, 512), "1.86": (832, 448), "2.00": (896, 448),
        "2.50": (960, 384), "2.83": (1088, 384), "3.60": (1152, 320), "3.80": (1216, 320), "4.00": (1280, 320),
    }),
    "720": bucket_table({
        "0.22": (448, 2048), "0.29": (512, 1792), "0.36": (576, 1600), "0.45": (640, 1408), "0.55": (704, 1280),
        "0.63": (768, 1216), "0.76": (832, 1088), "0.88": (896, 1024), "1.00": (960, 960), "1.14": (1024, 896),
        "1.31": (1088, 832), "1.50": (1152, 768), "1.58": (1216, 768), "1.82": (1280, 704), "1.91": (1344, 704),
        "2.20": (1408, 640), "2.30": (1472, 640), "2.67": (1536, 576), "2.89": (1664, 576), "3.62": (1856, 512),
        "3.75": (1920, 512),
    }),
    # Ours, which the demo's small weights were trained on: multiples of 16, a twentieth of the pixels of "480".
    "demo": bucket_table({
        "0.60": (96, 160), "0.78": (112, 144), "1.00": (128, 128), "1.29": (144, 112), "1.67": (160, 96),
    }),
}
# fmt: on
"""The tables by name, each with its sizes as trained."""


def read_image(path: Path, background: tuple[int, int, int] | None = WHITE) -> Image.Image:
    """Read a picture as 8-bit RGB, turned upright after its orientation tag.

    Palettes, greys, 16 bits a channel, CMYK and alpha are understood; of an animation the first frame is taken.

    Args: background: the colour behind transparent parts; None drops alpha without compositing, as the original does.
    Raises: InputError: if the file is missing, not a picture, damaged or implausibly large.
    """
    check_file(path, "a picture")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # Pillow refuses at twice that size
            image = Image.open(path)
        with image:
            image.load()
            return to_rgb(ImageOps.exif_transpose(image), background)
    except Image.DecompressionBombError as error:
        raise InputError(f"{path} has too many pixels: {error}", hint="scale it down; 4000 a side is plenty") from error
    except UnidentifiedImageError as error:
        raise InputError(
            f"{path} is not a picture that can be read", hint="save it as PNG or JPEG; a video goes in as a video"
        ) from error
    except PermissionError as error:
        raise InputError(f"{path} may not be read: permission denied", hint="change the file's permissions") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(
            f"the picture {path} is damaged: {error}", hint="open it in a viewer and save it anew"
        ) from error


def to_rgb(image: Image.Image, background: tuple[int, int, int] | None = WHITE) -> Image.Image:
    """Any kind of picture as 8-bit RGB. `background` as for `read_image`."""
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        return _deep_grey_to_8_bit(image).convert("RGB")
    if background is None or not (image.mode in MODES_WITH_ALPHA or "transparency" in image.info):
        return image.convert("RGB")
    foreground = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (*background, 255)), foreground).convert("RGB")


def choose_bucket(height: int, width: int, table: tuple[Bucket, ...]) -> Bucket:
    """The size whose label is nearest to height / width; the first one on a tie."""
    return min(table, key=lambda bucket: abs(bucket.aspect - height / width))


def plan_crop(height: int, width: int, target_height: int, target_width: int) -> CropPlan:
    """Scale so that the target is covered, rounding sizes up, and cut out the centre, halves going to even."""
    scale = max(target_height / height, target_width / width)
    resized_height, resized_width = math.ceil(scale * height), math.ceil(scale * width)
    return CropPlan(
        height=target_height,
        width=target_width,
        resized_height=resized_height,
        resized_width=resized_width,
        top=round((resized_height - target_height) / 2),
        left=round((resized_width - target_width) / 2),
    )


def plan_pad(height: int, width: int, target_height: int, target_width: int) -> CropPlan:
    """Scale so that all of it lies within the target, in the middle."""
    scale = min(target_height / height, target_width / width)
    resized_height, resized_width = max(1, round(scale * height)), max(1, round(scale * width))
    return CropPlan(
        height=target_height,
        width=target_width,
        resized_height=resized_height,
        resized_width=resized_width,
        top=-((target_height - resized_height) // 2),
        left=-((target_width - resized_width) // 2),
    )


def fit(image: Image.Image, plan: CropPlan) -> Image.Image:
    """Resize (antialiased bilinear) and crop or pad an RGB picture as planned."""
    resized = image.resize((plan.resized_width, plan.resized_height), Image.Resampling.BILINEAR)
    if plan.resized_height < plan.height or plan.resized_width < plan.width:
        return _padded(resized, plan)
    return resized.crop((plan.left, plan.top, plan.left + plan.width, plan.top + plan.height))


def to_frames(image: Image.Image, plan: CropPlan) -> torch.Tensor:
    """The picture as one frame: `(1, 3, 1, H, W)` float32 in [-1, 1]."""
    import torch  # here, so that a preview does without

    pixels = torch.from_numpy(np.array(fit(image, plan), dtype=np.uint8))
    return ((pixels.float() / 255 - 0.5) * 2).permute(2, 0, 1)[None, :, None].contiguous()


def _padded(resized: Image.Image, plan: CropPlan) -> Image.Image:
    """The picture on a ground of its border colours, blurred."""
    below, beside = plan.height - plan.resized_height, plan.width - plan.resized_width
    around = ((-plan.top, below + plan.top), (-plan.left, beside + plan.left), (0, 0))
    ground = Image.fromarray(np.pad(np.asarray(resized), around, mode="edge"))
    ground = ground.filter(ImageFilter.GaussianBlur(max(plan.height, plan.width) / BLUR_OF_SIDE))
    ground.paste(resized, (-plan.left, -plan.top))
    return ground


def _deep_grey_to_8_bit(image: Image.Image) -> Image.Image:
    """Greys of 16 or 32 bits, whose range Pillow would clip at 255. Floats are taken to lie in [0, 1]."""
    values = np.asarray(image, dtype=np.float64)
    full_scale = 1.0 if image.mode == "F" else 65535.0
    if values.max(initial=0.0) <= 255.0 and image.mode == "I":
        full_scale = 255.0  # 8-bit values in a wide type
    return Image.fromarray((values / full_scale * 255).round().clip(0, 255).astype(np.uint8))
