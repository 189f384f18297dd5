"""LoRAs beside the weights: their narrow matrices multiply at run time, and no weight is changed.

    y = W x + bias + up (down x)        down `(rank, in)`, up `(out, rank)` with all scales in it

A weight in 8 bits is a coarse grid, and what a LoRA adds is mostly smaller than its steps: merged, it is rounded to the
grid a second time, and much of it is rounded away. Beside the weight it keeps its 16 bits. The price is two narrow
products in every call of a layer, and the room that they take. What is not of low rank (biases, norms, modulation,
whole differences, convolutions) is merged as ever.

Several LoRAs on one layer are one pair of matrices, side by side: their ranks add up. The matrices are parameters of
the layer, so a streamed block has them in the same piece of memory as its weights and computes the same bits as one
that stays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infinitalk_cli.memory.lora import LoraPlan
from infinitalk_cli.memory.lora_keys import LowRank
from infinitalk_cli.memory.quant import QuantizedLinear
from infinitalk_cli.memory.tensor_files import TensorRef

DOWN, UP = "side_down", "side_up"
"""The matrices' names in their layer."""


class LinearBeside(nn.Linear):
    """A linear layer with LoRAs beside its weight."""

    def __init__(self, layer: nn.Linear, rank: int) -> None:
        super().__init__(layer.in_features, layer.out_features, bias="bias" in dict(layer.named_parameters()))
        self.side_down, self.side_up = side_matrices(layer.in_features, layer.out_features, rank)

    def forward(self, input: Tensor) -> Tensor:
        """`(..., in)` to `(..., out)`."""
        return add_product(super().forward(input), input, self.side_down, self.side_up)


class QuantizedLinearBeside(QuantizedLinear):
    """An 8-bit layer with LoRAs beside its weight; these see the input before it is rounded."""

    def __init__(self, layer: QuantizedLinear, rank: int) -> None:
        super().__init__(
            layer.in_features,
            layer.out_features,
            bias=layer.bias is not None,
            data_dtype=layer.data.dtype,
            scale_dtype=layer.scale.dtype,
        )
        self.side_down, self.side_up = side_matrices(layer.in_features, layer.out_features, rank)

    def forward(self, x: Tensor) -> Tensor:
        """`(..., in)` to `(..., out)`, in the dtype of `x`."""
        return add_product(super().forward(x), x, self.side_down, self.side_up)

    def after_gelu(self, x: Tensor) -> Tensor:
        """`self(gelu(x))` with GELU in the tanh form, which both products need."""
        return self(F.gelu(x, approximate="tanh"))


def side_matrices(in_features: int, out_features: int, rank: int) -> tuple[nn.Parameter, nn.Parameter]:
    """Room for down `(rank, in)` and up `(out, rank)`."""
    down, up = torch.empty(rank, in_features), torch.empty(out_features, rank)
    return nn.Parameter(down, requires_grad=False), nn.Parameter(up, requires_grad=False)


def add_product(made: Tensor, x: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """`made + x @ down^T @ up^T`, in the place of `made`; summed in float32 and rounded once.

    Args: made: `(..., out)`. x: `(..., in)`. down: `(rank, in)`. up: `(out, rank)`.
    """
    narrow = F.linear(x, down.to(x.dtype)).flatten(0, -2)
    return made.flatten(0, -2).addmm_(narrow, up.to(x.dtype).t()).view(made.shape)


def put_beside(
    module: nn.Module, tensors: Mapping[str, TensorRef], plan: LoraPlan, where: Callable[[str], bool]
) -> tuple[dict[str, TensorRef], LoraPlan]:
    """Give the linear layers that the plan has products for room beside their weights.

    Args: module: on the `meta` device, changed in place. tensors: to load, under the module's names. where: told a
        layer's name; layers that it declines are left to be merged.
    Returns: the tensors to load, those of the LoRAs among them, and what of the plan is left to merge.
    """
    named, done = dict(tensors), list[str]()
    for name, layer in list(module.named_modules()):
        products = plan.products_for(f"{name}.weight")
        if not products or not isinstance(layer, (nn.Linear, QuantizedLinear)) or not where(name):
            continue
        rank = sum(product.rank for product in products)
        parent, _, leaf = name.rpartition(".")
        kind = QuantizedLinearBeside if isinstance(layer, QuantizedLinear) else LinearBeside
        with torch.device("meta"):
            setattr(module.get_submodule(parent), leaf, kind(layer, rank))  # pyright: ignore[reportArgumentType]
        named |= {f"{name}.{DOWN}": _all_down(products), f"{name}.{UP}": _all_up(products)}
        done.append(f"{name}.weight")
    return named, plan.without_products(done)


def _all_down(products: Sequence[LowRank]) -> TensorRef:
    """All down matrices in one, `(ranks, in)`."""
    first, rank = products[0].down, sum(product.rank for product in products)
    return replace(
        first,
        shape=(rank, first.shape[1]),
        dtype=torch.float32,
        read=lambda: torch.cat([product.down.load().float() for product in products]),
    )


def _all_up(products: Sequence[LowRank]) -> TensorRef:
    """All up matrices in one, `(out, ranks)`, with their strengths."""
    first, rank = products[0].up, sum(product.rank for product in products)
    return replace(
        first,
        shape=(first.shape[0], rank),
        dtype=torch.float32,
        read=lambda: torch.cat([product.strength() * product.up.load().float() for product in products], dim=1),
    )
