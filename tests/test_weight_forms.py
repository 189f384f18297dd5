"""Every form in which other programs publish these weights leads to the same transformer, within the form's rounding.

Each form is made here from the plain tensors of the reference set, in the names and dtypes that its files have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from infinitalk_cli.errors import WeightsError
from infinitalk_cli.memory.quant import QuantizedLinear, quantize_rows
from infinitalk_cli.models.dit import DiT
from infinitalk_cli.networks import build_dit
from infinitalk_cli.weights import WeightFiles
from tests.test_networks import files, root  # pyright: ignore[reportUnusedImport]  # noqa: F401  fixtures

Tensors = dict[str, Tensor]

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
HALF_STEP = {E4M3: 2**-4, E5M2: 2**-3}
"""Relative: half of the distance between two numbers of a float8."""

OTHER_8_BIT = ".audio_cross_attn."


@dataclass(frozen=True)
class Published:
    """The published files and their tensors; `plain`: the transformer in float32 from them. `folder`: for others."""

    files: WeightFiles
    folder: Path
    plain: DiT
    base: Tensors
    adapter: Tensors


@pytest.fixture
def given(files: WeightFiles, tmp_path: Path) -> Published:  # noqa: F811
    assert files.adapter is not None
    base = {name: tensor for shard in files.dit_shards for name, tensor in load_file(shard).items()}
    return Published(files, tmp_path, build_dit(files, dtype=torch.float32), base, load_file(files.adapter))


def is_linear(name: str, tensor: Tensor, where: str = "") -> bool:
    return name.endswith(".weight") and tensor.dim() == 2 and where in name


def rows(tensors: Tensors, dtype: torch.dtype, data: str, scale: str, where: str = "") -> Tensors:
    """Linear weights in 8 bits with a scale per row, under suffixes that follow the layer's name."""
    made = dict(tensors)
    for name in [name for name, tensor in tensors.items() if is_linear(name, tensor, where)]:
        layer, (values, scales) = name.removesuffix(".weight"), quantize_rows(made.pop(name), dtype)
        made |= {layer + data: values, layer + scale: scales}
    return made


def quanto(tensors: Tensors, dtype: torch.dtype, where: str = "") -> Tensors:
    made = rows(tensors, dtype, ".weight._data", ".weight._scale", where)
    layers = [name.removesuffix(".weight._data") for name in made if name.endswith("._data")]
    return made | {f"{layer}.{end}": torch.ones(()) for layer in layers for end in ("input_scale", "output_scale")}


def scaled(tensors: Tensors, dtype: torch.dtype, *, newer: bool = False, shape: tuple[int, ...] = ()) -> Tensors:
    """ComfyUI's float8 with one scale per matrix; the rest in 16 bits."""
    made = {name: tensor.to(torch.float16) for name, tensor in tensors.items()}
    for name in [name for name, tensor in tensors.items() if is_linear(name, tensor)]:
        layer, scale = name.removesuffix(".weight"), tensors[name].abs().amax() / torch.finfo(dtype).max
        made[name] = (tensors[name] / scale).to(dtype)
        made[f"{layer}.{'weight_scale' if newer else 'scale_weight'}"] = scale.reshape(shape)
        if newer:
            made[f"{layer}.comfy_quant"] = torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
    return made if newer else made | {"scaled_fp8": torch.empty(2, dtype=dtype)}


def cast(tensors: Tensors, dtype: torch.dtype, where: str = "") -> Tensors:
    return {name: tensor.to(dtype) if is_linear(name, tensor, where) else tensor for name, tensor in tensors.items()}


def prefixed(tensors: Tensors, prefix: str) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


DIFFUSERS = (
    ("time_embedding.0", "condition_embedder.time_embedder.linear_1"),
    ("time_embedding.2", "condition_embedder.time_embedder.linear_2"),
    ("text_embedding.0", "condition_embedder.text_embedder.linear_1"),
    ("text_embedding.2", "condition_embedder.text_embedder.linear_2"),
    ("time_projection.1", "condition_embedder.time_proj"),
    ("head.modulation", "scale_shift_table"),
    ("head.head", "proj_out"),
    ("img_emb.proj.0", "condition_embedder.image_embedder.norm1"),
    ("img_emb.proj.1", "condition_embedder.image_embedder.ff.net.0.proj"),
    ("img_emb.proj.3", "condition_embedder.image_embedder.ff.net.2"),
    ("img_emb.proj.4", "condition_embedder.image_embedder.norm2"),
    (".modulation", ".scale_shift_table"),
    (".ffn.0", ".ffn.net.0.proj"),
    (".ffn.2", ".ffn.net.2"),
    (".norm3", ".norm2"),
    (".norm_k_img", ".norm_added_k"),
    (".k_img", ".add_k_proj"),
    (".v_img", ".add_v_proj"),
    ("_attn.q", "_attn.to_q"),
    ("_attn.k.", "_attn.to_k."),
    ("_attn.v.", "_attn.to_v."),
    ("_attn.o.", "_attn.to_out.0."),
    (".self_attn.", ".attn1."),
    (".cross_attn.", ".attn2."),
)


def in_diffusers_names(tensors: Tensors) -> Tensors:
    def renamed(name: str) -> str:
        for ours, theirs in DIFFUSERS:
            name = name.replace(ours, theirs)
        return name

    return {renamed(name): tensor for name, tensor in tensors.items()}


def built(given: Published, base: Tensors, adapter: Tensors | None) -> DiT:
    """The transformer from files in another form; without an adapter the base holds everything."""
    folder = given.folder
    save_file({name: tensor.contiguous() for name, tensor in base.items()}, folder / "base.safetensors")
    changed = replace(given.files, dit_shards=(folder / "base.safetensors",), adapter=None)
    if adapter is not None:
        save_file({name: tensor.contiguous() for name, tensor in adapter.items()}, folder / "adapter.safetensors")
        changed = replace(changed, adapter=folder / "adapter.safetensors")
    return build_dit(changed, dtype=torch.float32)


def weights(dit: DiT) -> Iterator[tuple[str, Tensor, QuantizedLinear | None]]:
    """Every parameter in float32 under the plain name, and the layer if it is in 8 bits."""
    layers = {name: part for name, part in dit.named_modules() if isinstance(part, QuantizedLinear)}
    for name, layer in layers.items():
        yield f"{name}.weight", layer.dequantized(), layer
    for name, parameter in dit.named_parameters():
        layer, _, leaf = name.rpartition(".")
        if layer not in layers or leaf == "bias":
            yield name, parameter.detach().float(), None


def expect_same(dit: DiT, plain: DiT) -> int:
    """Assert that all parameters are those of `plain` within the rounding of their form; the number in 8 bits."""
    wanted, num_layers = dict(plain.named_parameters()), 0
    for name, found, layer in weights(dit):
        want = wanted.pop(name).detach()
        if layer is None:
            assert torch.allclose(found, want, rtol=2**-10, atol=1e-6), name
            continue
        num_layers += 1
        largest = want.abs().amax(dim=1, keepdim=True) if layer.scale.unique().numel() > 1 else want.abs().amax()
        dtype = layer.data.dtype
        step = largest / 127 / 2 if dtype == torch.int8 else want.abs() * HALF_STEP[dtype] + largest * 2**-14
        assert ((found - want).abs() <= step * 1.01 + 1e-7).all(), name
    assert not wanted
    return num_layers


def num_linears(*tables: Mapping[str, Tensor], where: str = "") -> int:
    return sum(is_linear(name, tensor, where) for table in tables for name, tensor in table.items())


@pytest.mark.parametrize("dtype", [E4M3, torch.int8])
def test_quanto_file_of_base_and_adapter(given: Published, dtype: torch.dtype) -> None:
    both = {**given.base, **given.adapter}
    assert expect_same(built(given, quanto(both, dtype), None), given.plain) == num_linears(both)


@pytest.mark.parametrize("dtype", [E4M3, torch.int8])
def test_lightx2v_base_with_its_adapter(given: Published, dtype: torch.dtype) -> None:
    ours = rows(given.base, dtype, ".weight", ".weight_scale")
    theirs = rows(given.adapter, dtype, ".weight", ".weight_scale", where=OTHER_8_BIT)
    dit = built(given, ours, theirs)
    assert expect_same(dit, given.plain) == num_linears(given.base) + num_linears(given.adapter, where=OTHER_8_BIT)


FORMS: dict[str, tuple[Callable[[Tensors], Tensors], Callable[[Tensors], Tensors]]] = {
    "scaled e4m3": (lambda t: scaled(t, E4M3), lambda t: scaled(t, E4M3, shape=(1,))),
    "scaled e5m2": (lambda t: scaled(t, E5M2), lambda t: scaled(t, E5M2, shape=(1,))),
    "newer spelling": (lambda t: scaled(t, E4M3, newer=True), lambda t: scaled(t, E4M3, newer=True, shape=(1,))),
    "scaled with a prefix": (lambda t: prefixed(scaled(t, E4M3), "model.diffusion_model."), dict),
    "scaled base, quanto adapter": (lambda t: scaled(t, E4M3), lambda t: quanto(t, torch.int8)),
    "plain base, quanto adapter": (dict, lambda t: quanto(t, torch.int8)),
    "diffusers base": (in_diffusers_names, dict),
    "diffusers base in lightx2v's form": (
        lambda t: in_diffusers_names(rows(t, E4M3, ".weight", ".weight_scale")),
        dict,
    ),
    "base with a prefix": (lambda t: prefixed(t, "diffusion_model."), dict),
    "both with a prefix": (
        lambda t: prefixed(t, "model.diffusion_model."),
        lambda t: prefixed(t, "diffusion_model."),
    ),
    "float16": (dict, lambda t: {name: x.half() if OTHER_8_BIT in name else x for name, x in t.items()}),
}


@pytest.mark.parametrize("form", FORMS)
def test_base_and_adapter_in_forms_of_other_programs(given: Published, form: str) -> None:
    of_base, of_adapter = FORMS[form]
    num_8_bit = expect_same(built(given, of_base(given.base), of_adapter(given.adapter)), given.plain)
    assert (num_8_bit > 0) == any(word in form for word in ("scaled", "newer", "quanto", "lightx2v"))


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
def test_float8_without_any_scale_is_a_plain_cast(given: Published, dtype: torch.dtype) -> None:
    dit = built(given, given.base, cast(given.adapter, dtype, where=OTHER_8_BIT))
    found = {name: tensor for name, tensor, layer in weights(dit) if layer is not None}
    assert len(found) == num_linears(given.adapter, where=OTHER_8_BIT)
    for name, tensor in found.items():
        assert torch.equal(tensor, given.plain.get_parameter(name).detach().to(dtype).float()), name


@pytest.mark.parametrize("prefix", ["", "diffusion_model.", "model.diffusion_model."])
def test_single_file_with_everything(given: Published, prefix: str) -> None:
    assert expect_same(built(given, prefixed({**given.base, **given.adapter}, prefix), None), given.plain) == 0


def test_scale_of_a_layer_that_is_not_in_8_bits_is_no_silent_loss(given: Published) -> None:
    layer = next(name for name in given.base if name.endswith("self_attn.q.weight")).removesuffix(".weight")
    with pytest.raises(WeightsError, match=r"unexpected: blocks\.\d+\.self_attn\.q\.weight_scale"):
        built(given, given.base | {f"{layer}.weight_scale": torch.ones(1)}, given.adapter)
