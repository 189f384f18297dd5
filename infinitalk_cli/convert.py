"""Compact files made from the published ones: read once, tensor by tensor, and written as the loader likes it.

    transformer   base shards + adapter (+ LoRAs) -> one file; bf16, or the linear layers in fp8 or int8 with one scale
                  per row, the rest bf16. The path of the time, the modulation tables and the head stay float32.
    text encoder  -> bf16, or the linear layers of its blocks in fp8 or int8
    CLIP          -> its vision tower alone, fp16

Names and suffixes are the published ones (8-bit layers as optimum-quanto spells them), so that every reader of those
files reads these. All sums are done in float32 on the values of the sources and rounded once; layers that a source
holds in the wanted 8-bit form already are copied as they are. Wide tensors pass in slices of `SLICE_ELEMENTS`.

Nothing is computed until `Conversion.run`: plans know their lengths from headers alone.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor, nn

from infinitalk_cli import compact
from infinitalk_cli.compact import Form, Source, describe_source, header_metadata
from infinitalk_cli.errors import DoesNotFitError
from infinitalk_cli.memory.keymaps import transformer_tensors
from infinitalk_cli.memory.loading import check_fit
from infinitalk_cli.memory.lora import Lora, LoraPlan, LoraReport, plan_loras
from infinitalk_cli.memory.quant import quantize_rows, swap_quantized_linears
from infinitalk_cli.memory.tensor_files import TensorRef, merge_tensors, open_tensors
from infinitalk_cli.memory.writing import SafetensorsWriter, TensorToWrite
from infinitalk_cli.models.config import DiTConfig
from infinitalk_cli.models.dit import DiT
from infinitalk_cli.models.encoder_config import ImageEncoderConfig, TextEncoderConfig
from infinitalk_cli.networks import read_json, read_sizes, shapes_of
from infinitalk_cli.part_file import disk_error
from infinitalk_cli.weights import BASE, IMAGE_ENCODER, PLAIN_TEXT_ENCODER, Engine, plain_transformer

SLICE_ELEMENTS = 2**24
"""64 MB in float32."""

SPARE_BYTES = 100 * 2**20
"""Left free on the disk."""

EIGHT_BIT_DTYPE = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}
EIGHT_BIT_LAYERS = ("blocks.", "text_embedding.", "audio_proj.")
"""Where the published 8-bit transformers have 8-bit layers."""

TEXT_LINEAR = re.compile(r"blocks\.\d+\.(attn\.[qkvo]|ffn\.(gate\.0|fc1|fc2))\.weight")

OnBytes = Callable[[int], None]


@dataclass(frozen=True)
class Recipe:
    """What to make, of the files of which folder. `form`: of the transformer and of the text encoder."""

    weights_dir: Path
    form: Form
    num_speakers: int
    engine: Engine
    loras: Sequence[Lora] = ()


@dataclass(frozen=True)
class Conversion:
    """One file to make. `strengths`: of LoRAs, by path; `reports`: what they will do to it."""

    path: Path
    sources: tuple[Source, ...]
    strengths: Mapping[str, float]
    writer: SafetensorsWriter
    reports: tuple[LoraReport, ...] = ()

    @property
    def num_bytes(self) -> int:
        """Length of the file."""
        return self.writer.num_bytes

    def run(self, on_bytes: OnBytes = lambda count: None) -> str:
        """Make the file; the SHA-256 of what was written.

        Raises: WeightsError: a source is damaged. DoesNotFitError: the disk is full; what was written is kept.
        """
        try:
            return self.writer.write(on_bytes)
        except OSError as error:
            raise disk_error(error, self.path) from error


def refuse_full_disk(conversions: Sequence[Conversion]) -> None:
    """Raises: DoesNotFitError: if the disk has no room for what is to be written."""
    if not conversions:
        return
    needed = sum(conversion.num_bytes - conversion.writer.have_bytes for conversion in conversions) + SPARE_BYTES
    folder = conversions[0].path.parent
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise DoesNotFitError(
            f"compact weights need {needed / 1e9:.1f} GB more in {folder}; {free / 1e9:.1f} GB are free",
            hint="make room: `talk weights ls` shows what takes how much, `talk weights rm` frees it",
        )


def plan_transformer(recipe: Recipe, sha256_of: Callable[[Path], str]) -> Conversion | None:
    """Base, adapter and LoRAs in one file; None where the plain files are not all there.

    Args: sha256_of: the digest of a file, "" if nobody knows it.
    Raises: WeightsError: the files don't fit together, or a LoRA has no effect.
    """
    shards, adapter = plain_transformer(recipe.weights_dir, num_speakers=recipe.num_speakers, engine=recipe.engine)
    config_path = recipe.weights_dir / BASE / "config.json"
    if not all(path.is_file() for path in (*shards, adapter, config_path)):
        return None
    tensors = merge_tensors(transformer_tensors(open_tensors(shards)), transformer_tensors(open_tensors(adapter)))
    with torch.device("meta"):
        dit = DiT(read_sizes(DiTConfig.from_json, read_json(config_path), [config_path]))
    plan = plan_loras(dit, recipe.loras)
    named = swap_quantized_linears(dit, tensors)
    check_fit(dit, named, what="the video transformer")
    place = compact.transformer_place(recipe.engine, recipe.num_speakers, recipe.form, has_loras=bool(recipe.loras))
    written = list(_transformer_tensors(dit, named, recipe.form, plan))
    paths = (*shards, adapter, *(lora.path for lora in recipe.loras))
    return _conversion(recipe, place, paths, written, sha256_of, plan)


def plan_text_encoder(recipe: Recipe, sha256_of: Callable[[Path], str]) -> Conversion | None:
    """The text encoder; None where the plain file is not there."""
    path = recipe.weights_dir / PLAIN_TEXT_ENCODER
    if not path.is_file():
        return None
    tensors = open_tensors(path)
    read_sizes(TextEncoderConfig.from_shapes, shapes_of(tensors), [path])
    written = [
        part
        for name, ref in tensors.items()
        for part in (
            _in_8_bits(name, _Weight(ref), EIGHT_BIT_DTYPE[recipe.form])
            if recipe.form != "bf16" and TEXT_LINEAR.fullmatch(name)
            else [_plain(name, _Weight(ref), torch.bfloat16)]
        )
    ]
    return _conversion(recipe, compact.text_encoder_place(recipe.form), [path], written, sha256_of)


def plan_image_encoder(recipe: Recipe, sha256_of: Callable[[Path], str]) -> Conversion | None:
    """CLIP's vision tower, in fp16 whatever the form of the others; None where the published file is not there."""
    path = recipe.weights_dir / IMAGE_ENCODER
    if not path.is_file():
        return None
    tensors = {name: ref for name, ref in open_tensors(path).items() if name.startswith("visual.")}
    read_sizes(ImageEncoderConfig.from_shapes, shapes_of(tensors), [path])
    written = [_plain(name, _Weight(ref), torch.float16) for name, ref in tensors.items()]
    return _conversion(recipe, compact.IMAGE_ENCODER, [path], written, sha256_of)


def is_done(conversion: Conversion, weights_dir: Path) -> bool:
    """Whether the file is there, made of these very sources with these LoRAs, and they have not changed."""
    path = conversion.path
    if not compact.is_current(path, weights_dir):
        return False
    made_of = {source.place for source in compact.recorded_sources(path) or ()}
    same_loras = compact.recorded_loras(path) == conversion.strengths
    return same_loras and made_of == {source.place for source in conversion.sources}


def _conversion(
    recipe: Recipe,
    place: str,
    paths: Sequence[Path],
    written: Sequence[TensorToWrite],
    sha256_of: Callable[[Path], str],
    loras: LoraPlan | None = None,
) -> Conversion:
    path, strengths = recipe.weights_dir / place, {str(lora.path): lora.scale for lora in recipe.loras if loras}
    sources = tuple(describe_source(path, recipe.weights_dir, sha256_of(path)) for path in paths)
    writer = SafetensorsWriter(path, written, header_metadata(sources, strengths))
    return Conversion(path, sources, strengths, writer, loras.reports if loras else ())


def _transformer_tensors(
    dit: DiT, named: Mapping[str, TensorRef], form: Form, plan: LoraPlan
) -> Iterator[TensorToWrite]:
    """The transformer's tensors in the order of its modules, under their published names."""
    linears = {name for name, part in dit.named_modules() if isinstance(part, nn.Linear)}
    for name in dit.state_dict():
        layer, _, leaf = name.rpartition(".")
        if leaf == "scale" and f"{layer}.data" in named:
            continue
        published = f"{layer}.weight" if leaf == "data" else name
        weight = _Weight(named[name], named.get(f"{layer}.scale") if leaf == "data" else None, plan, published)
        is_linear = leaf == "data" or (leaf == "weight" and layer in linears)
        if form != "bf16" and is_linear and layer.startswith(EIGHT_BIT_LAYERS):
            yield from _in_8_bits(published, weight, EIGHT_BIT_DTYPE[form])
        else:
            yield _plain(published, weight, torch.float32 if DiT.keeps_float32(published) else torch.bfloat16)


@dataclass(frozen=True)
class _Weight:
    """A tensor of the sources, perhaps in 8 bits with a scale `(out, 1)`, and what LoRAs add to it."""

    ref: TensorRef
    scale: TensorRef | None = None
    plan: LoraPlan | None = None
    parameter: str = ""

    @property
    def is_changed(self) -> bool:
        """Whether a LoRA adds to it."""
        return self.plan is not None and self.parameter in self.plan.parameters

    def slices(self) -> Iterator[Tensor]:
        """Its values along the first axis: as stored, or float32 where something was multiplied or added."""
        shape = self.ref.shape
        if not shape:
            yield self.ref.load()
            return
        additions = [] if self.plan is None else list(self.plan.additions_to(self.parameter, torch.device("cpu")))
        step = max(1, SLICE_ELEMENTS // max(1, prod(shape[1:])))
        for start in range(0, shape[0], step):
            stop = min(start + step, shape[0])
            part = self.ref.rows(start, stop).load()
            if self.scale is not None:
                part = part.to(torch.float32) * self.scale.rows(start, stop).load().to(torch.float32)
            for addition in additions:
                part = part.to(torch.float32) + addition[start:stop]
            yield part


def _plain(name: str, weight: _Weight, dtype: torch.dtype) -> TensorToWrite:
    return TensorToWrite(name, dtype, weight.ref.shape, lambda: (part.to(dtype) for part in weight.slices()))


def _in_8_bits(name: str, weight: _Weight, dtype: torch.dtype) -> Iterator[TensorToWrite]:
    """Data and scale of a linear layer's weight."""
    data, scale = f"{name}._data", f"{name}._scale"
    shape = weight.ref.shape
    if weight.scale is not None and weight.ref.dtype == dtype and not weight.is_changed:
        yield TensorToWrite(data, dtype, shape, _Weight(weight.ref).slices)
        yield TensorToWrite(scale, weight.scale.dtype, weight.scale.shape, _Weight(weight.scale).slices)
        return
    rounded = _Rounded(weight, dtype)
    yield TensorToWrite(data, dtype, shape, rounded.data)
    yield TensorToWrite(scale, torch.float32, (shape[0], 1), rounded.scales)


class _Rounded:
    """The 8-bit form of a weight. The scales are kept from making the data, and made by themselves after a restart."""

    def __init__(self, weight: _Weight, dtype: torch.dtype) -> None:
        self._weight, self._dtype = weight, dtype
        self._scales: list[Tensor] = []

    def data(self) -> Iterator[Tensor]:
        """Values `(rows, in)`."""
        scales: list[Tensor] = []
        for part in self._weight.slices():
            data, scale = quantize_rows(part, self._dtype)
            scales.append(scale)
            yield data
        self._scales = scales

    def scales(self) -> Iterator[Tensor]:
        """Scales `(rows, 1)`, float32."""
        scales, self._scales = self._scales, []
        return iter(scales) if scales else (quantize_rows(part, self._dtype)[1] for part in self._weight.slices())
