"""The five networks of a run, each built from its files: sizes, names and 8-bit forms come from what is on the disk.

A network is built on the `meta` device and then filled, so no random numbers are drawn for weights that are replaced
anyway and RAM holds each weight once. This is the only place where models and the loader meet.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from math import prod
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from tokenizers import Tokenizer

from infinitalk_cli.errors import WeightsError
from infinitalk_cli.memory.keymaps import (
    audio_encoder_tensors,
    image_encoder_tensors,
    text_encoder_tensors,
    transformer_tensors,
)
from infinitalk_cli.memory.loading import load_into
from infinitalk_cli.memory.lora import Lora, LoraPlan, LoraReport, merge_loras, plan_loras
from infinitalk_cli.memory.lora_beside import put_beside
from infinitalk_cli.memory.quant import keep_exact, quantize_on_load, swap_quantized_linears
from infinitalk_cli.memory.repackaged import published_image_encoder, published_text_encoder, published_vae
from infinitalk_cli.memory.tensor_files import TensorRef, merge_tensors, open_tensors
from infinitalk_cli.models.audio_encoder import AudioEncoder
from infinitalk_cli.models.config import DiTConfig
from infinitalk_cli.models.dit import DiT
from infinitalk_cli.models.encoder_config import AudioEncoderConfig, ImageEncoderConfig, TextEncoderConfig, VAEConfig
from infinitalk_cli.models.image_encoder import ImageEncoder
from infinitalk_cli.models.text_encoder import TextEncoder
from infinitalk_cli.models.vae import VideoVAE
from infinitalk_cli.weights import WeightFiles

EIGHT_BITS = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}

Device = torch.device | str
Config = TypeVar("Config")
NO_LORAS = LoraPlan()

PlaceDit = Callable[[DiT, Mapping[str, TensorRef], LoraPlan], Collection[str]]
"""Gives some tensors of a transformer memory before they are read, or has them left: see `load_into`. It is told of the
LoRAs that are to be merged, too: what is left does not get them."""


def wholly_on_device(dit: DiT, refs: Mapping[str, TensorRef], loras: LoraPlan) -> Collection[str]:
    """The default: everything is read to one device."""
    del dit, refs, loras
    return ()


def build_dit(
    files: WeightFiles,
    *,
    dtype: torch.dtype,
    device: Device = "cpu",
    loras: Sequence[Lora] = (),
    beside: bool = False,
    only_reference_keys: bool = False,
    on_lora: Callable[[LoraReport], None] | None = None,
    place: PlaceDit = wholly_on_device,
) -> DiT:
    """The video transformer: base, then adapter, then LoRAs in their order; rounded where `files.round_to` says so.

    Args: dtype: of all that is neither in 8 bits nor kept in float32 (`DiT.keeps_float32`). place: see `PlaceDit`.
        beside: keep LoRAs beside the weights (`lora_beside.py`) where they are not merged into float32.
        only_reference_keys: see `plan_loras`. on_lora: told what each LoRA file did.
    Raises: WeightsError: if files are damaged or don't fit together, or a LoRA has no effect.
    """
    base = transformer_tensors(open_tensors(files.dit_shards))
    adapter = transformer_tensors(open_tensors(files.adapter)) if files.adapter else {}
    sizes = read_dit_sizes(files)
    plan = NO_LORAS
    if loras:
        with torch.device("meta"):
            plan = plan_loras(DiT(sizes), loras, only_reference_keys=only_reference_keys)
    dit = make_dit(
        sizes,
        merge_tensors(base, adapter),
        dtype=dtype,
        device=device,
        loras=plan,
        beside=beside,
        quantize_to=EIGHT_BITS.get(files.round_to),
        place=place,
    )
    if on_lora is not None:
        for report in plan.reports:
            on_lora(report)
    return dit


def read_dit_sizes(files: WeightFiles) -> DiTConfig:
    """The sizes of the video transformer. Raises: WeightsError: if its config says none."""
    return read_sizes(DiTConfig.from_json, read_json(files.dit_config), [files.dit_config])


def text_encoder_size_bytes(files: WeightFiles, dtype: torch.dtype) -> int:
    """The same of the text encoder."""
    return size_bytes(open_tensors(files.text_encoder), dtype)


def size_bytes(tensors: Mapping[str, TensorRef], dtype: torch.dtype) -> int:
    """Bytes of tensors of which none is wider than `dtype`."""
    return sum(prod(ref.shape) * min(ref.dtype.itemsize, dtype.itemsize) for ref in tensors.values())


def make_dit(
    config: DiTConfig,
    tensors: Mapping[str, TensorRef],
    *,
    dtype: torch.dtype,
    device: Device,
    loras: LoraPlan = NO_LORAS,
    beside: bool = False,
    quantize_to: torch.dtype | None = None,
    place: PlaceDit = wholly_on_device,
) -> DiT:
    """The video transformer of these sizes, filled from tensors under its own names, 8-bit forms included.

    Args: as of `build_dit`. quantize_to: int8 or a float8, for the blocks' linear layers that files hold in full.
    """
    with torch.device("meta"):
        dit = DiT(config)
    named = swap_quantized_linears(dit, tensors)
    if quantize_to is not None:
        named = quantize_on_load(dit, named, quantize_to, where=lambda layer: layer.startswith("blocks."))
    if beside:
        named, loras = put_beside(dit, named, loras, where=lambda layer: not DiT.keeps_float32(f"{layer}.weight"))
    load_into(
        dit,
        named,
        what="the video transformer",
        dtype_of=lambda name, stored: torch.float32 if DiT.keeps_float32(name) else dtype,
        device=device,
        place=lambda _, refs: place(dit, refs, loras),
    )
    merge_loras(dit, loras, device=device)
    keep_exact(dit, lambda layer: not layer.startswith("blocks."))
    return dit.eval()


def import_library() -> None:
    """Import what the encoders are built from; if that fails, the one who needs it will say so."""
    for name in ("clip", "wav2vec2"):
        with suppress(Exception):
            import_module(f"transformers.models.{name}.modeling_{name}")


def build_text_encoder(files: WeightFiles, *, dtype: torch.dtype, device: Device = "cpu") -> TextEncoder:
    """UMT5 with its tokenizer, plain or in 8 bits. Not for float16, which it overflows."""
    return make_text_encoder(
        open_tensors(files.text_encoder), _read_tokenizer(files.tokenizer), dtype=dtype, device=device
    )


def make_text_encoder(
    tensors: Mapping[str, TensorRef], tokenizer: Tokenizer, *, dtype: torch.dtype, device: Device
) -> TextEncoder:
    """UMT5 from tensors under any known names; its sizes are read off their shapes."""
    tensors = published_text_encoder(tensors)
    config = read_sizes(TextEncoderConfig.from_shapes, shapes_of(tensors), _paths(tensors))
    with torch.device("meta"):
        encoder = TextEncoder(config, tokenizer)
    named = text_encoder_tensors(tensors, encoder.state_dict())
    load_into(
        encoder,
        swap_quantized_linears(encoder, named),
        what="the text encoder",
        dtype_of=lambda name, stored: dtype,
        device=device,
    )
    keep_exact(encoder, lambda layer: True)  # a prompt takes milliseconds, and its states have outliers
    return encoder


def build_image_encoder(files: WeightFiles, *, dtype: torch.dtype, device: Device = "cpu") -> ImageEncoder:
    """CLIP's vision tower."""
    return make_image_encoder(open_tensors(files.image_encoder), dtype=dtype, device=device)


def make_image_encoder(tensors: Mapping[str, TensorRef], *, dtype: torch.dtype, device: Device) -> ImageEncoder:
    """CLIP's vision tower from tensors under any known names; its sizes are read off their shapes."""
    tensors = published_image_encoder(tensors)
    config = read_sizes(ImageEncoderConfig.from_shapes, shapes_of(tensors), _paths(tensors))
    with torch.device("meta"):
        encoder = ImageEncoder(config)
    named = image_encoder_tensors(tensors, encoder.state_dict())
    load_into(encoder, named, what="the image encoder", dtype_of=lambda name, stored: dtype, device=device)
    return encoder


def build_vae(files: WeightFiles, *, dtype: torch.dtype = torch.float32, device: Device = "cpu") -> VideoVAE:
    """The video VAE."""
    return make_vae(open_tensors(files.vae), dtype=dtype, device=device)


def make_vae(tensors: Mapping[str, TensorRef], *, dtype: torch.dtype, device: Device) -> VideoVAE:
    """The video VAE from tensors under any known names; its sizes are read off their shapes."""
    tensors = published_vae(tensors)
    config = read_sizes(VAEConfig.from_shapes, shapes_of(tensors), _paths(tensors))
    with torch.device("meta"):
        vae = VideoVAE(config)
    load_into(vae, tensors, what="the video VAE", dtype_of=lambda name, stored: dtype, device=device)
    return vae.eval()


def build_audio_encoder(
    files: WeightFiles, *, dtype: torch.dtype = torch.float32, device: Device = "cpu"
) -> AudioEncoder:
    """wav2vec2, with the scaling of its input that `preprocessor_config.json` asks for."""
    config = read_sizes(
        AudioEncoderConfig.from_json, read_json(files.audio_encoder_config), [files.audio_encoder_config]
    )
    do_normalize = bool(read_json(files.audio_preprocessor_config).get("do_normalize", True))  # the library's default
    return make_audio_encoder(
        config, open_tensors(files.audio_encoder), do_normalize=do_normalize, dtype=dtype, device=device
    )


def make_audio_encoder(
    config: AudioEncoderConfig,
    tensors: Mapping[str, TensorRef],
    *,
    do_normalize: bool,
    dtype: torch.dtype,
    device: Device,
) -> AudioEncoder:
    """wav2vec2 of these sizes from tensors under their published names."""
    with torch.device("meta"):
        encoder = AudioEncoder(config, do_normalize=do_normalize)
    named = audio_encoder_tensors(tensors, encoder.state_dict())
    load_into(encoder, named, what="the audio encoder", dtype_of=lambda name, stored: dtype, device=device)
    return encoder


def shapes_of(tensors: Mapping[str, TensorRef]) -> dict[str, tuple[int, ...]]:
    """Shapes by name; the data of an 8-bit weight counts as the weight."""
    return {name.removesuffix("._data"): ref.shape for name, ref in tensors.items()}


def _paths(tensors: Mapping[str, TensorRef]) -> list[Path]:
    return sorted({ref.path for ref in tensors.values()})


def read_sizes(read: Callable[[Any], Config], source: object, paths: Iterable[Path]) -> Config:
    """A network's sizes from its config or its shapes, with the file's name in the complaint."""
    try:
        return read(source)
    except (ValueError, KeyError, TypeError) as error:
        where = ", ".join(map(str, paths))
        reason = f"no field {error}" if isinstance(error, KeyError) else str(error)
        hint = "The file is of another model, or damaged. Fetch the right one: talk download"
        raise WeightsError(f"{where}: {reason}", hint=hint) from error


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"cannot read {path}: {error}", hint="Fetch it again: talk download") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path} does not hold a table of fields", hint="Fetch it again: talk download")
    return cast("dict[str, Any]", content)


def _read_tokenizer(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exceptions
        raise WeightsError(f"cannot read the tokenizer {path}: {error}", hint="Fetch it: talk download") from error
