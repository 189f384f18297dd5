"""A LoRA in 8-bit weights, merged and beside them, against the truth: weights in full with the LoRA added in float32.

    python -m benchmarks.lora_beside                     # real size, random weights, rank 64
    python -m benchmarks.lora_beside --tiny --device cpu
    python -m benchmarks.lora_beside --layer --device cpu    # one layer of 5120 x 5120, LoRAs of several strengths

A line of JSON per form: seconds of a pass (median) and what it takes of the GPU at most; `off`, the difference of the
pass to the truth (norm over norm); `share_of_effect`, how much of what the LoRA does to the pass is there (1 is all of
it); `share_in_weights`, how much of it is in one merged weight. `--strength` is the norm of what the LoRA adds over the
norm of the weight. Streamed passes must equal the resident ones bit for bit.
"""

from __future__ import annotations

import argparse
import gc
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from infinitalk_cli.bench import TINY
from infinitalk_cli.measure import (
    REAL_DIT,
    TINY_DIT,
    PassSetting,
    Stopwatch,
    Workload,
    pass_inputs,
    random_dit,
    time_pass,
)
from infinitalk_cli.memory.allocator import use_growing_segments
from infinitalk_cli.memory.block_stages import StreamedStage
from infinitalk_cli.memory.lora import Lora, LoraPlan, plan_loras
from infinitalk_cli.memory.offload import BlockOffloader
from infinitalk_cli.memory.quant import QuantizedLinear, quantize_rows
from infinitalk_cli.memory.tensor_files import TensorRef
from infinitalk_cli.models.config import DiTConfig
from infinitalk_cli.models.dit import DiT
from infinitalk_cli.networks import NO_LORAS, make_dit

NOWHERE = Path("random")
EIGHT_BIT = {"bf16": None, "fp8": torch.float8_e4m3fn, "int8": torch.int8}
STRENGTHS = (0.003, 0.01, 0.03, 0.1)
LAYER = "blocks.1.self_attn.q"
Mode = Literal["without", "merged", "beside"]


@dataclass(frozen=True)
class Form:
    """One way to have the LoRA."""

    weights: str
    mode: Mode
    streamed: bool = False

    @property
    def name(self) -> str:
        """Such as "fp8, LoRA beside, streamed"."""
        return f"{self.weights}, LoRA {self.mode}" + ", streamed" * self.streamed


def refs_of(tensors: Mapping[str, Tensor]) -> dict[str, TensorRef]:
    """Tensors in memory as if they were in a file."""
    return {name: ref(name, tuple(tensor.shape), tensor.dtype, tensor.clone) for name, tensor in tensors.items()}


def ref(name: str, shape: tuple[int, ...], dtype: torch.dtype, read: Callable[[], Tensor]) -> TensorRef:
    """A tensor that is made when it is read."""
    return TensorRef(name, shape, dtype, NOWHERE, read)


def random_lora(config: DiTConfig, rank: int, strength: float, device: torch.device) -> Lora:
    """Normal numbers for every linear layer of the blocks; weights are of 1 over the root of their inputs."""
    with torch.device("meta"):
        dit = DiT(config)
    found: dict[str, TensorRef] = {}

    def draw(seed: int, spread: float, *shape: int) -> Tensor:
        generator = torch.Generator(device).manual_seed(seed)
        return (torch.randn(shape, generator=generator, device=device) * spread).to(torch.bfloat16)

    layers = [(name, part) for name, part in dit.blocks.named_modules() if isinstance(part, nn.Linear)]
    for seed, (name, layer) in enumerate(layers):
        down, up = (rank, layer.in_features), (layer.out_features, rank)
        for role, shape, spread in (("down", down, down[1] ** -0.5), ("up", up, strength * rank**-0.5)):
            key = f"diffusion_model.blocks.{name}.lora_{role}.weight"
            number = 2 * seed + (role == "up")

            def read(number: int = number, spread: float = spread, shape: tuple[int, ...] = shape) -> Tensor:
                return draw(number, spread, *shape)

            found[key] = ref(key, shape, torch.bfloat16, read)
    return Lora(NOWHERE, 1.0, found)


def plan_of(config: DiTConfig, lora: Lora) -> LoraPlan:
    """What the LoRA adds."""
    with torch.device("meta"):
        return plan_loras(DiT(config), [lora])


@dataclass
class Bench:
    """The transformer with and without the LoRA, pass by pass. `weights`: in full."""

    work: Workload
    watch: Stopwatch
    config: DiTConfig
    weights: Mapping[str, TensorRef]
    plan: LoraPlan
    given: Mapping[str, Any]

    @torch.no_grad()
    def run(self, form: Form) -> tuple[dict[str, Any], Tensor, Tensor]:
        """Seconds and peak of a pass, its outcome, and one of the weights."""
        before_bytes = torch.cuda.memory_allocated() if self.watch.device.type == "cuda" else 0
        offloaders: list[BlockOffloader] = []

        def stream(dit: DiT, refs: Mapping[str, TensorRef], loras: LoraPlan) -> tuple[str, ...]:
            del refs, loras
            if form.streamed:
                offloaders.append(BlockOffloader(list(dit.blocks), self.watch.device))
            return ()

        dit = make_dit(
            self.config,
            self.weights,
            dtype=torch.bfloat16,
            device=self.watch.device,
            loras=NO_LORAS if form.mode == "without" else self.plan,
            beside=form.mode == "beside",
            quantize_to=EIGHT_BIT[form.weights],
            place=stream,
        )
        with ExitStack() as stage:
            for offloader in offloaders:
                stage.enter_context(StreamedStage(dit, offloader).running())
            found, made = time_pass(dit, self.given, self.watch, form.name)
        layer = dit.get_submodule(LAYER)
        weight = layer.dequantized() if isinstance(layer, QuantizedLinear) else layer.get_parameter("weight").float()
        memory_gb = (found.allocated_bytes - before_bytes) / 1e9
        return {"form": form.name, "pass_s": found.median_s, "gb": memory_gb}, made.double(), weight

    def rows(self, forms: Sequence[str]) -> Iterator[dict[str, Any]]:
        """The truth first; for each form of the weights without the LoRA, merged, beside, and that streamed."""
        row, truth, _ = self.run(Form("bf16", "merged"))
        yield row
        row, bare, _ = self.run(Form("bf16", "without"))
        effect = truth - bare
        yield row | {"effect_of_lora": off(truth, bare)}
        added = next(iter(self.plan.additions_to(f"{LAYER}.weight", self.watch.device)))
        for weights in forms:
            row, own_bare, own_weight = self.run(Form(weights, "without"))
            yield row | {"off_without_lora": off(own_bare, bare)}
            made = truth
            for mode in ("merged", "beside"):
                row, made, weight = self.run(Form(weights, mode))
                row |= {"off": off(made, truth), "share_of_effect": share(made - own_bare, effect)}
                if mode == "merged":
                    row["share_in_weights"] = share(weight - own_weight, added)
                yield row
            row, streamed, _ = self.run(Form(weights, "beside", streamed=True))
            yield row | {"equals_resident": torch.equal(streamed, made)}


def layer_rows(device: torch.device, rank: int) -> Iterator[dict[str, Any]]:
    """One layer's weight and its output for normal inputs, by the strength of what is added to it."""
    draw = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, device=device)

    width = REAL_DIT.dim
    weight, x = normal(width, width) * width**-0.5, normal(256, width)
    product = normal(width, rank) @ normal(rank, width)
    for strength in STRENGTHS:
        added = product * (strength * weight.norm() / product.norm())
        truth = x @ (weight + added).t()
        for form, dtype in EIGHT_BIT.items():
            if dtype is None:
                continue
            own = rounded(weight, dtype)
            merged = rounded(own + added, dtype)
            yield {
                "strength": strength,
                "form": form,
                "share_in_weights": share(merged - own, added),
                "off_merged": off(x @ merged.t(), truth),
                "off_beside": off(x @ own.t() + x @ added.t(), truth),
            }


def rounded(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A weight as its 8-bit form has it."""
    data, scale = quantize_rows(weight, dtype)
    return data.float() * scale


def off(made: Tensor, expected: Tensor) -> float:
    """Norm of the difference over norm."""
    return ((made - expected).norm() / expected.norm()).item()


def share(found: Tensor, whole: Tensor) -> float:
    """How much of `whole` is in `found`."""
    return ((found * whole).sum() / whole.square().sum()).item()


def main() -> None:
    """Print a line for each form."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("forms", nargs="*", default=["fp8", "int8"], help="fp8, int8, bf16")
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--strength", type=float, default=0.02)
    parser.add_argument("--size", default="448x896", help="height x width")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--layer", action="store_true", help="one layer in place of the transformer")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--device", default="cuda:0")
    options = parser.parse_args()
    use_growing_segments()
    device = torch.device(options.device)
    if options.layer:
        for row in layer_rows(device, options.rank):
            print(json.dumps({name: _short(value) for name, value in row.items()}), flush=True)
        return
    height, width = map(int, options.size.split("x"))
    work, config = (TINY, TINY_DIT) if options.tiny else (Workload(height, width), REAL_DIT)
    base = random_dit(config, PassSetting("bf16"), device)
    lora = random_lora(config, options.rank, options.strength, device)
    watch = Stopwatch(device, options.repeats, warm_up=1)
    bench = Bench(work, watch, config, refs_of(base.state_dict()), plan_of(config, lora), pass_inputs(base, work, 1))
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    about = {"gpu": gpu, "torch": torch.__version__, "tokens": work.num_tokens}
    print(json.dumps(about | {"rank": options.rank, "strength": options.strength}), flush=True)
    for row in bench.rows(options.forms):
        print(json.dumps({name: _short(value) for name, value in row.items()}), flush=True)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _short(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
