"""Weights in the forms of other programs (ComfyUI, its Wan wrapper, Wan2GP): what a file is, and which one to take.

They lie in one folder of the tree, `repackaged/`, under the names that they came with; `talk weights import` puts them
there. A file with a well-known name is what that name says. Any other is recognised by the names and shapes of its
tensors, which its header lists; no values are read. Only base transformers need a known name: a 720P base, or one that
was distilled, looks the same from outside and is another model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal, get_args

from infinitalk_cli.file_headers import read_safetensors_header

Kind = Literal[
    "base_none",
    "base_fp8",
    "base_int8",
    "adapter_single",
    "adapter_multi",
    "text_none",
    "text_fp8",
    "text_int8",
    "image",
    "vae",
    "audio",
]
"""What a file is for, and in which form; "none": in 16 or 32 bits."""

Header = Mapping[str, tuple[str, tuple[int, ...]]]

FOLDER = "repackaged"

KNOWN_NAMES: dict[Kind, tuple[str, ...]] = {
    "base_none": (
        "wan2.1_i2v_480p_14B_bf16.safetensors",
        "wan2.1_i2v_480p_14B_fp16.safetensors",
        "wan2.1_image2video_480p_14B_mbf16.safetensors",
        "wan2.1_image2video_480p_14B_bf16.safetensors",
    ),
    "base_fp8": (
        "Wan2_1-I2V-14B-480p_fp8_e4m3fn_scaled_KJ.safetensors",
        "wan2.1_i2v_480p_14B_fp8_scaled.safetensors",
        "Wan2_1-I2V-14B-480p_fp8_e5m2_scaled_KJ.safetensors",
        "Wan2_1-I2V-14B-480P_fp8_e4m3fn.safetensors",
        "wan2.1_i2v_480p_14B_fp8_e4m3fn.safetensors",
    ),
    "base_int8": (
        "wan2.1_image2video_480p_14B_quanto_mbf16_int8.safetensors",
        "wan2.1_image2video_480p_14B_quanto_int8.safetensors",
    ),
    "adapter_single": (
        "Wan2_1-InfiniTetalk-Single_fp16.safetensors",
        "wan2.1_infiniteTalk_single_fp16.safetensors",
        "wan2.1_infinitetalk_single_14B_mbf16.safetensors",
        "wan2.1_infinitetalk_single_14B_quanto_mbf16_int8.safetensors",
        "Wan2_1-InfiniteTalk-Single_fp8_e4m3fn_scaled_KJ.safetensors",
        "Wan2_1-InfiniteTalk-Single_fp8_e5m2_scaled_KJ.safetensors",
    ),
    "adapter_multi": (
        "Wan2_1-InfiniteTalk-Multi_fp16.safetensors",
        "wan2.1_infiniteTalk_multi_fp16.safetensors",
        "wan2.1_infinitetalk_multi_14B_mbf16.safetensors",
        "wan2.1_infinitetalk_multi_14B_quanto_mbf16_int8.safetensors",
        "Wan2_1-InfiniteTalk-Multi_fp8_e4m3fn_scaled_KJ.safetensors",
        "Wan2_1-InfiniteTalk-Multi_fp8_e5m2_scaled_KJ.safetensors",
    ),
    "text_none": (
        "umt5-xxl-enc-bf16.safetensors",
        "models_t5_umt5-xxl-enc-bf16.safetensors",
        "umt5_xxl_fp16.safetensors",
    ),
    "text_fp8": ("umt5_xxl_fp8_e4m3fn_scaled.safetensors", "umt5-xxl-enc-fp8_e4m3fn.safetensors"),
    "text_int8": ("models_t5_umt5-xxl-enc-quanto_int8.safetensors",),
    "image": (
        "clip_vision_h.safetensors",
        "open-clip-xlm-roberta-large-vit-huge-14_visual_fp16.safetensors",
        "open-clip-xlm-roberta-large-vit-huge-14_visual_fp32.safetensors",
        "models_clip_open-clip-xlm-roberta-large-vit-huge-14-bf16.safetensors",
    ),
    "vae": (
        "Wan2_1_VAE_fp32.safetensors",
        "Wan2.1_VAE.safetensors",
        "wan_2.1_vae.safetensors",
        "Wan2_1_VAE_bf16.safetensors",
    ),
    "audio": ("wav2vec2-chinese-base_fp16.safetensors",),
}
"""Of each kind, the names under which it is published, the best form first."""

PUBLISHED_SHAPES: dict[str, tuple[tuple[str, tuple[int, ...]], ...]] = {
    "base": (("patch_embedding.weight", (5120, 36, 1, 2, 2)),),
    "adapter": (("audio_proj.norm.weight", (768,)),),
    "text": (("shared.weight", (256384, 4096)), ("token_embedding.weight", (256384, 4096))),
    "image": (("embeddings.patch_embedding.weight", (1280, 3, 14, 14)), ("patch_embedding.weight", (1280, 3, 14, 14))),
    "vae": (("encoder.conv1.weight", (96, 3, 3, 3, 3)), ("decoder.head.2.weight", (3, 96, 3, 3, 3))),
}
"""Shapes that tell the published networks from others with the same names, by the kind's first word."""

OTHER_MODELS = ("qwen", "wan2.2", "wan22", "wan_2.2", "wan2_2")
"""In file names: models that took over a network's form and filled it with other values."""

PREFIXES = ("model.diffusion_model.", "diffusion_model.", "vision_model.", "visual.", "model.")


def kind_of(path: Path) -> Kind | None:
    """What a file is: by its name if that is known, else by its header; None if it is none of these."""
    for kind, names in KNOWN_NAMES.items():
        if path.name in names:
            return kind
    kind = kind_by_content(path)
    return None if kind and kind.startswith("base") else kind


def kind_by_content(path: Path) -> Kind | None:
    """What a file is by the names of its tensors; a damaged or unreadable one is nothing."""
    if path.suffix != ".safetensors":
        return None
    try:
        found = path.stat()
        return _kind_of_content(path, found.st_size, found.st_mtime_ns)
    except (OSError, ValueError):
        return None


def has_published_shapes(path: Path) -> bool:
    """Whether a file holds the network in the published size. Raises: OSError, ValueError: if it can't be read."""
    header = _without_prefix(read_safetensors_header(path))
    part = (kind_by_content(path) or "").partition("_")[0]
    wanted = [(name, shape) for name, shape in PUBLISHED_SHAPES.get(part, ()) if name in header]
    return bool(wanted) and all(header[name][1] == shape for name, shape in wanted)


def is_other_model(name: str) -> bool:
    """Whether a file's name says that it is of another model, which its header does not tell."""
    return any(word in name.lower() for word in OTHER_MODELS)


def find_repackaged(weights_dir: Path, *kinds: Kind) -> Path | None:
    """The file of the first of these kinds that is there, of several the one with the better known name."""
    return next(_present(weights_dir, kinds), None)


def by_preference(kind: Kind, paths: Sequence[Path]) -> list[Path]:
    """Files of a kind, the best first: in the order of the known names, then by name."""
    known = {name: rank for rank, name in enumerate(KNOWN_NAMES[kind])}
    return sorted(paths, key=lambda path: (known.get(path.name, len(known)), path.name))


def _present(weights_dir: Path, kinds: Sequence[Kind]) -> Iterator[Path]:
    folder = weights_dir / FOLDER
    paths = [path for path in folder.glob("*.safetensors") if path.is_file()]
    found = {path: kind_of(path) for path in paths}
    for kind in kinds:
        yield from by_preference(kind, [path for path in paths if found[path] == kind])


@lru_cache(maxsize=256)
def _kind_of_content(path: Path, size: int, mtime_ns: int) -> Kind | None:
    """Args: size, mtime_ns: so that a file that was replaced is looked at again."""
    del size, mtime_ns
    header = _without_prefix(read_safetensors_header(path))
    part = _part(header)
    if part == "adapter":
        kind = f"adapter_{'multi' if 'multi' in path.name.lower() else 'single'}"
    elif part in ("text", "base"):
        kind = f"{part}_{_form(header)}"
    else:
        kind = part
    return next((known for known in get_args(Kind) if known == kind), None)


def _part(header: Header) -> str:
    """The network whose tensors these are, or nothing."""
    names = header.keys()
    if {"shared.weight", "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"} <= names or {
        "token_embedding.weight",
        "blocks.1.pos_embedding.embedding.weight",
    } <= names:
        return "" if any(name.startswith("decoder.") for name in names) else "text"
    if names & {"embeddings.class_embedding", "cls_embedding"}:
        return "image"
    if {"encoder.conv1.weight", "decoder.middle.0.residual.0.gamma"} <= names:
        return "" if "decoder.upsamples.0.upsamples.0.residual.2.weight" in names else "vae"  # that is Wan 2.2's
    has_adapter = "audio_proj.norm.weight" in names
    has_base = "patch_embedding.weight" in names
    if has_adapter != has_base and any(".cross_attn.k_img." in f".{name}" or has_adapter for name in names):
        return "adapter" if has_adapter else "base"
    return ""


def _form(header: Header) -> str:
    """The form of the linear layers: the narrowest that occurs."""
    dtypes = {dtype for dtype, shape in header.values() if len(shape) == 2}
    if dtypes & {"F8_E4M3", "F8_E5M2"}:
        return "fp8"
    return "int8" if "I8" in dtypes else "none"


def _without_prefix(header: Header) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Names without the word that other programs put before all, or nearly all, of them."""
    for prefix in PREFIXES:
        carrying = sum(name.startswith(prefix) for name in header)
        if 2 * carrying > len(header):
            return {name.removeprefix(prefix): said for name, said in header.items()}
    return dict(header)
