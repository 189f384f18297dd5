"""The words that options take: one enumeration for each, as Typer shows and checks them."""

from enum import Enum


class AudioType(str, Enum):
    """Two voices at the same time, or one after the other."""

    para = "para"
    add = "add"


class Size(str, Enum):
    """Sets of picture sizes."""

    small = "480"
    large = "720"


class Quant(str, Enum):
    """Forms of the transformer's weights."""

    none = "none"
    fp8 = "fp8"
    int8 = "int8"


class Engine(str, Enum):
    """Which model's loop runs."""

    infinitetalk = "infinitetalk"
    multitalk = "multitalk"


class PresetName(str, Enum):
    """Speed against quality."""

    quality = "quality"
    balanced = "balanced"
    fast = "fast"


class Attention(str, Enum):
    """Kernels of the transformer's attention."""

    auto = "auto"
    sdpa = "sdpa"
    flash = "flash"
    cudnn = "cudnn"
    eight_bit = "8bit"
    int8 = "int8"
    fp8 = "fp8"
    sage = "sage"


class VaeTiling(str, Enum):
    """Whether pictures are decoded in tiles."""

    auto = "auto"
    on = "on"
    off = "off"


class TextEncoderPlace(str, Enum):
    """Where the prompt is read."""

    auto = "auto"
    gpu = "gpu"
    stream = "stream"
    cpu = "cpu"


class VaeDtype(str, Enum):
    """Numbers that the video VAE computes with."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class LoraMode(str, Enum):
    """Whether LoRAs are added to the weights or kept beside them."""

    merge = "merge"
    beside = "beside"
