"""What the machine can do at most, for `talk bench` to hold passes of the transformer against."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F

from infinitalk_cli.measure import EIGHT_BIT, REAL_DIT, Measured, Stopwatch, Workload
from infinitalk_cli.memory.quant import quantize_rows
from infinitalk_cli.memory.quant_matmul import best_product, quantize_activations
from infinitalk_cli.models.attention import attention
from infinitalk_cli.models.config import DiTConfig


@dataclass
class Ceilings:
    """The most that the device does, on the shapes of a pass."""

    work: Workload
    watch: Stopwatch
    config: DiTConfig = field(default=REAL_DIT)

    @torch.no_grad()
    def measure(self) -> Iterator[Measured]:
        """Products in bfloat16 and 8 bits, attention, and copies: `tflop` of a copy counts 10^12 bytes."""
        n, d = self.work.num_tokens, self.config.dim
        device = self.watch.device
        x, w = (torch.randn(rows, d, device=device, dtype=torch.bfloat16) for rows in (n, d))
        tflop = 2 * n * d * d / 1e12
        yield self.watch.measure("bf16 linear", lambda: F.linear(x, w), tflop=tflop)
        for name, dtype in EIGHT_BIT.items():
            product = best_product(device, dtype, torch.bfloat16)
            if product is not None:
                given = (*quantize_activations(x, dtype), *quantize_rows(w, dtype), None, torch.bfloat16)
                yield self.watch.measure(f"{name} linear", partial(product, *given), tflop=tflop)
        q = torch.randn(1, n, self.config.num_heads, self.config.head_dim, device=device, dtype=torch.bfloat16)
        yield self.watch.measure("attention", lambda: attention(q, q, q), tflop=4 * n * n * d / 1e12)
        copy = torch.empty_like(x)
        yield self.watch.measure("device copy, read and write", lambda: copy.copy_(x), tflop=2 * x.nbytes / 1e12)
        locked = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
        yield self.watch.measure(
            "locked RAM to device", lambda: copy.copy_(locked, non_blocking=True), tflop=x.nbytes / 1e12
        )
