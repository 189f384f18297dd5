"""A stage of training against the clock: how far it is, its learning rate, its log, its averaged weights."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

WARM_UP = 200
"""Steps until the full learning rate."""


@dataclass(frozen=True)
class Crew:
    """The processes that train the same weights together, one per GPU, each on clips of its own.

    The environment tells (`RANK`, `WORLD_SIZE`, `MASTER_ADDR`, `MASTER_PORT`); without it a process is alone.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls, device: torch.device) -> Crew:
        """Meet the others."""
        crew = cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
        if crew.size > 1:
            distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
            crew.average(0.0, device)  # only this shows whether they can talk
        return crew

    def leave(self) -> None:
        """Go when all are done."""
        if self.size > 1:
            distributed.destroy_process_group()

    @property
    def leads(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def seed(self, seed: int) -> int:
        """A seed of this process's own."""
        return seed + 7919 * self.rank

    def average_gradients(self, module: nn.Module) -> None:
        """Give everybody the mean of all gradients."""
        if self.size > 1:
            gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            distributed.all_reduce(flat)
            parts = (flat / self.size).split([gradient.numel() for gradient in gradients])
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.copy_(part.view_as(gradient))

    def average(self, value: float, device: torch.device) -> float:
        """The mean of everybody's number."""
        if self.size == 1:
            return value
        shared = torch.tensor(value, device=device, dtype=torch.float64)
        distributed.all_reduce(shared)
        return float(shared) / self.size


ALONE = Crew()


@dataclass
class Pace:
    """A stage that ends after `minutes`. `steps`: an upper limit on top, for trials.

    `span`: the part of the learning rate's course that this run covers, if a stage is trained in several. All of a
    crew take the same number of steps.
    """

    minutes: float
    steps: int | None = None
    span: tuple[float, float] = (0.0, 1.0)
    crew: Crew = ALONE
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    step: int = 0
    progress: float = 0.0
    started: float = field(default_factory=time.monotonic)

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.started

    def __iter__(self) -> Iterator[int]:
        """The numbers of the steps; `progress` goes from 0 to 1 meanwhile."""
        while True:
            by_steps = self.step / self.steps if self.steps else 0.0
            own = max(by_steps, self.elapsed_s / (60 * self.minutes))
            self.progress = min(1.0, self.crew.average(own, self.device))
            if self.progress >= 1:
                return
            yield self.step
            self.step += 1

    def learning_rate(self, peak: float) -> float:
        """A short rise, then half a cosine down to a hundredth."""
        rise = min(1.0, (self.step + 1) / WARM_UP)
        place = self.span[0] + (self.span[1] - self.span[0]) * self.progress
        return peak * rise * (0.01 + 0.99 * (1 + math.cos(math.pi * place)) / 2)


@dataclass(frozen=True)
class Log:
    """Lines of JSON in a file, and on the screen."""

    path: Path
    stage: str
    crew: Crew = ALONE

    def write(self, **figures: Any) -> None:
        """One line; the first of a crew writes for all."""
        if not self.crew.leads:
            return
        rounded = {
            name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in figures.items()
        }
        line = json.dumps({"stage": self.stage, **rounded})
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")
        print(line, flush=True)


class Averaged:
    """The running average of a module's weights, which is what gets exported."""

    def __init__(self, module: nn.Module, keep: float) -> None:
        self.keep = keep
        self.names = [name for name, _ in module.named_parameters()]
        self.sources: list[Tensor] = [parameter for _, parameter in module.named_parameters()]
        self.values: list[Tensor] = [parameter.detach().clone() for parameter in self.sources]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Early steps count little, so that the start is soon forgotten."""
        keep = min(self.keep, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.values, self.sources, 1 - keep)  # type: ignore[reportPrivateUsage, reportPrivateImportUsage]

    def state(self) -> dict[str, Tensor]:
        return dict(zip(self.names, self.values, strict=True))


def optimizer_for(module: nn.Module, device: torch.device, peak: float) -> torch.optim.AdamW:
    """AdamW; matrices decay, vectors don't."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": 0.01},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98), fused=device.type == "cuda")


def take_step(
    optimizer: torch.optim.Optimizer,
    module: nn.Module,
    loss: Tensor,
    learning_rate: float,
    max_norm: float = 1.0,
    crew: Crew = ALONE,
) -> None:
    """Gradients, their limit, the step. A loss that is not finite changes nothing."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    crew.average_gradients(module)
    norm = torch.nn.utils.clip_grad_norm_(module.parameters(), max_norm)
    if bool(torch.isfinite(norm)):
        optimizer.step()


def pick_device(name: str, *, tries_kernels: bool = False) -> torch.device:
    """`auto`: a GPU if there is one. Matrix products may then use TF32.

    `tries_kernels`: convolutions of each new shape are timed, which pays where shapes stay the same. Of a crew, each
    process takes the GPU of its rank.
    """
    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("RANK", "0")))
        torch.cuda.set_device(device)
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = tries_kernels
        torch.backends.cuda.enable_cudnn_sdp(False)  # compiles a kernel for every new length
    return device
