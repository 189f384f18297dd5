"""Colour correction: every frame takes over the reference picture's mean and spread of colour.

Generated frames drift in colour from chunk to chunk, as each chunk starts from frames of the one before. So the mean
and the standard deviation of each channel of CIE Lab (D65, sRGB) are moved to those of the reference. All in float32
on the frames' device, a few frames at a time to bound the temporaries; on a GPU this takes milliseconds a chunk, where
the original needs tenths of a second a frame.

Source: InfiniteTalk's correction of decoded chunks (Apache-2.0), same conversions and statistics. One difference: a
frame of one colour has a deviation that is rounding noise, which the original scales up to the reference's; here it
simply becomes the reference's mean.
"""

from __future__ import annotations

import torch
from torch import Tensor

XYZ_FROM_RGB = (
    (0.412453, 0.357580, 0.180423),
    (0.212671, 0.715160, 0.072169),
    (0.019334, 0.119193, 0.950227),
)
WHITE_XYZ = (0.95047, 1.0, 1.08883)  # D65, 2 degrees

SRGB_LINEAR_BELOW = 0.04045  # of the encoded value; 0.0031308 of the linear one
LINEAR_SRGB_BELOW = 0.0031308
LAB_LINEAR_BELOW = 0.008856
LAB_INVERSE_LINEAR_BELOW = 0.2068966

FLAT_STD = 1e-3
"""A deviation below this, in Lab units (L runs to 100), is invisible: float32 noise on one colour is about 1e-5."""

PIXELS_AT_ONCE = 1 << 22
"""Pixels converted together: about 50 MB for each of a handful of temporaries."""


def match_color(frames: Tensor, reference: Tensor, strength: float = 1.0) -> Tensor:
    """Move each frame's Lab mean and deviation to the reference's and blend with the original.

    Args: frames: `(1, 3, T, H, W)` in [-1, 1]. reference: `(1, 3, 1, H', W')` in [-1, 1]. strength: 0 (off) to 1.
    Returns: `(1, 3, T, H, W)` float32, on the device of `frames`; `frames` itself if `strength` is 0.
    """
    if strength == 0:
        return frames
    reference_lab = rgb_to_lab(_to_unit(reference[0].to(frames.device)))
    reference_std, reference_mean = torch.std_mean(reference_lab, dim=(1, 2, 3), correction=0, keepdim=True)
    num_at_once = max(1, PIXELS_AT_ONCE // (frames.shape[3] * frames.shape[4]))
    matched = torch.empty_like(frames, dtype=torch.float32)
    for start in range(0, frames.shape[2], num_at_once):
        window = slice(start, start + num_at_once)
        rgb = _to_unit(frames[0, :, window])
        lab = rgb_to_lab(rgb)
        std, mean = torch.std_mean(lab, dim=(2, 3), correction=0, keepdim=True)
        gain = torch.where(std < FLAT_STD, torch.zeros_like(std), reference_std / std.clamp(min=FLAT_STD))
        corrected = lab_to_rgb((lab - mean) * gain + reference_mean)
        matched[0, :, window] = torch.lerp(rgb, corrected, strength) * 2 - 1
    return matched


def rgb_to_lab(rgb: Tensor) -> Tensor:
    """sRGB in [0, 1] to CIE Lab. `(3, ...)` -> `(3, ...)`, float32."""
    linear = torch.where(rgb > SRGB_LINEAR_BELOW, ((rgb + 0.055) / 1.055).clamp(min=0) ** 2.4, rgb / 12.92)
    xyz = _mix(linear, _matrix(rgb.device)) / _white(linear)
    f = torch.where(xyz > LAB_LINEAR_BELOW, xyz.clamp(min=LAB_LINEAR_BELOW) ** (1 / 3), 7.787 * xyz + 16 / 116)
    fx, fy, fz = f
    return torch.stack((116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)))


def lab_to_rgb(lab: Tensor) -> Tensor:
    """CIE Lab to sRGB, clipped to [0, 1]. `(3, ...)` -> `(3, ...)`, float32."""
    lightness, a, b = lab
    fy = (lightness + 16) / 116
    f = torch.stack((fy + a / 500, fy, (fy - b / 200).clamp(min=0)))
    xyz = torch.where(f > LAB_INVERSE_LINEAR_BELOW, f**3, (f - 16 / 116) / 7.787) * _white(f)
    linear = _mix(xyz, torch.linalg.inv(_matrix(lab.device)))
    encoded = torch.where(
        linear > LINEAR_SRGB_BELOW, 1.055 * linear.clamp(min=LINEAR_SRGB_BELOW) ** (1 / 2.4) - 0.055, 12.92 * linear
    )
    return encoded.clamp(0, 1)


def _to_unit(frames: Tensor) -> Tensor:
    """[-1, 1] to [0, 1], float32, in the plain contiguous layout."""
    return (frames.float() + 1) / 2


def _matrix(device: torch.device) -> Tensor:
    return torch.tensor(XYZ_FROM_RGB, dtype=torch.float64).to(device, torch.float32)


def _white(like: Tensor) -> Tensor:
    return torch.tensor(WHITE_XYZ, device=like.device).view(3, *[1] * (like.dim() - 1))


def _mix(channels: Tensor, matrix: Tensor) -> Tensor:
    """Multiply the first axis by a 3 x 3 matrix, exactly in float32 whatever the matmul setting (TF32)."""
    red, green, blue = channels
    column = matrix.view(3, 3, *[1] * (channels.dim() - 1))
    return column[:, 0] * red + column[:, 1] * green + column[:, 2] * blue
