"""How `talk bench` times the networks at their real size with random weights, and the passes of the transformer.

How long a network takes does not depend on the values of its weights, so none need be there. Weights and inputs are
normal random numbers, never zeros, on which GPUs run faster. A pass is one call of the transformer; everything is
warmed up and repeated, on a GPU timed by its own events, and told as median and range. Memory is the peak of torch's
allocator, weights included.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, Literal

import torch
from torch import Tensor, nn

from infinitalk_cli.memory.block_stages import StreamedStage
from infinitalk_cli.memory.offload import BlockOffloader
from infinitalk_cli.memory.quant import QuantizedLinear, quantize_rows
from infinitalk_cli.models.attention import Kernel, use_kernel
from infinitalk_cli.models.config import DiTConfig
from infinitalk_cli.models.dit import DiT
from infinitalk_cli.models.fused import plain_forms

REAL_DIT = DiTConfig(dim=5120, ffn_dim=13824, freq_dim=256, num_heads=40, num_layers=40)
TINY_DIT = DiTConfig(dim=64, ffn_dim=128, freq_dim=32, num_heads=2, num_layers=3, text_dim=32, text_len=16)

Weights = Literal["bf16", "fp8", "int8"]
ATTENTIONS: dict[str, Kernel] = {"attention8": "cudnn-fp8", "qk8": "int8", "qkv8": "int8-fp8"}
"""8-bit attentions by the names that settings have for them."""
EIGHT_BIT = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}


@dataclass(frozen=True)
class PassSetting:
    """One way to run the transformer.

    `streamed`: no block stays on the GPU. `plain`: without fused operations. `attention`: the name of an 8-bit one.
    """

    weights: Weights
    streamed: bool = False
    plain: bool = False
    attention: str = ""
    num_speakers: int = 1

    @property
    def name(self) -> str:
        """Such as "fp8-streamed"."""
        speakers = "-two-speakers" if self.num_speakers == 2 else ""
        return (
            self.weights
            + "-streamed" * self.streamed
            + "-plain" * self.plain
            + (f"-{self.attention}" if self.attention else "")
            + speakers
        )


@dataclass(frozen=True)
class Workload:
    """What is generated: pictures of this size, so many frames in a chunk."""

    height: int
    width: int
    num_frames: int = 81
    is_tiny: bool = False

    @property
    def latent_size(self) -> tuple[int, int, int]:
        """Latent frames, rows, columns."""
        return (self.num_frames - 1) // 4 + 1, self.height // 8, self.width // 8

    @property
    def num_tokens(self) -> int:
        """Tokens of a pass."""
        frames, rows, columns = self.latent_size
        return frames * (rows // 2) * (columns // 2)


@dataclass(frozen=True)
class Measured:
    """Times of something in seconds, memory in bytes. `tflop`: work in it. `checksum`: of the result, to compare."""

    name: str
    times_s: tuple[float, ...]
    allocated_bytes: int = 0
    reserved_bytes: int = 0
    tflop: float = 0.0
    checksum: float | None = None
    note: str = ""

    @property
    def median_s(self) -> float:
        return median(self.times_s)

    @property
    def tflop_per_s(self) -> float:
        return self.tflop / self.median_s


@dataclass
class Stopwatch:
    """Times calls on a device."""

    device: torch.device
    repeats: int = 5
    warm_up: int = 2

    def measure(self, name: str, call: Callable[[], object], *, tflop: float = 0.0, note: str = "") -> Measured:
        """Call `warm_up + repeats` times."""
        for _ in range(self.warm_up):
            call()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        times = tuple(self._once(call) for _ in range(self.repeats))
        return Measured(name, times, *self._peaks(), tflop=tflop, note=note)

    def _once(self, call: Callable[[], object]) -> float:
        if self.device.type != "cuda":
            start = time.perf_counter()
            call()
            return time.perf_counter() - start
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000

    def _peaks(self) -> tuple[int, int]:
        if self.device.type != "cuda":
            return 0, 0
        return torch.cuda.max_memory_allocated(self.device), torch.cuda.max_memory_reserved(self.device)


@torch.no_grad()
def measure_pass(setting: PassSetting, work: Workload, watch: Stopwatch) -> Measured:
    """Time one call of the transformer."""
    with ready_dit(setting, watch.device, is_tiny=work.is_tiny) as (dit, note):
        found, last = time_pass(dit, pass_inputs(dit, work, setting.num_speakers), watch, setting.name)
        tflop = pass_tflop(dit.config, work)
    return replace(found, tflop=tflop, note=note, checksum=last.double().abs().sum().item())


@contextmanager
def ready_dit(setting: PassSetting, device: torch.device, *, is_tiny: bool) -> Generator[tuple[DiT, str]]:
    """A transformer with random weights, the same ones each time, run as the setting says inside the `with`.

    The second value is what to know about it.
    """
    dit = random_dit(TINY_DIT if is_tiny else REAL_DIT, setting, device)
    stage: AbstractContextManager[None] = nullcontext()
    note = ""
    if setting.streamed:
        offloader = BlockOffloader(list(dit.blocks), device)
        note = "" if offloader.is_pinned else "RAM is not locked"
        stage = StreamedStage(dit, offloader).running()
    kernel = use_kernel(ATTENTIONS[setting.attention] if setting.attention else None)
    with stage, kernel, plain_forms() if setting.plain else nullcontext():
        yield dit, note


def time_pass(dit: DiT, given: Mapping[str, Any], watch: Stopwatch, name: str) -> tuple[Measured, Tensor]:
    """Time `dit(**given)`; also the last of its results."""
    last: list[Tensor] = []

    def call() -> None:
        last[:] = [dit(**given)]

    return watch.measure(name, call), last[0]


def random_dit(config: DiTConfig, setting: PassSetting, device: torch.device) -> DiT:
    """A transformer with weights of the size that training starts from; blocks to be streamed are in RAM."""
    with torch.device("meta"):
        dit = DiT(config)
    draw = torch.Generator(device).manual_seed(0)
    for name, part in [*((f"blocks.{i}", block) for i, block in enumerate(dit.blocks)), ("", dit)]:
        _fill(part, name, device, draw)
        if name and setting.weights in EIGHT_BIT:
            _round_linears(part, EIGHT_BIT[setting.weights])
        if name and setting.streamed:
            part.to("cpu")
    return dit.eval()


def _fill(module: nn.Module, prefix: str, device: torch.device, draw: torch.Generator) -> None:
    """Give values to the parameters that have none yet."""
    for name, parameter in list(module.named_parameters()):
        if not parameter.is_meta:
            continue
        dtype = torch.float32 if DiT.keeps_float32(f"{prefix}.{name}".lstrip(".")) else torch.bfloat16
        spread = parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.02
        values = torch.randn(parameter.shape, generator=draw, device=device, dtype=dtype).mul_(spread)
        if parameter.dim() == 1 and name.endswith("weight"):
            values += 1
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, nn.Parameter(values, requires_grad=False))


def _round_linears(module: nn.Module, dtype: torch.dtype) -> None:
    """Replace the linear layers by 8-bit ones."""
    for name, linear in [(name, part) for name, part in module.named_modules() if isinstance(part, nn.Linear)]:
        with torch.device("meta"):
            made = QuantizedLinear(linear.in_features, linear.out_features, data_dtype=dtype)
        data, scale = quantize_rows(linear.weight, dtype)
        made.data, made.scale = (nn.Parameter(tensor, requires_grad=False) for tensor in (data, scale))
        made.bias = linear.bias
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, made)


def pass_inputs(dit: DiT, work: Workload, num_speakers: int) -> dict[str, Any]:
    """Arguments of a pass."""
    config, device = dit.config, dit.device
    draw = torch.Generator(device).manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, device=device)

    _, rows, columns = work.latent_size
    masks = torch.zeros(3, rows, columns, device=device)
    masks[0, :, : columns // 3], masks[1, :, columns // 2 :], masks[2, :, columns // 3 : columns // 2] = 1, 1, 1
    windows = normal(num_speakers, work.num_frames, config.audio_window, config.audio_layers, config.audio_dim)
    return {
        "latents": normal(1, 16, *work.latent_size),
        "condition": normal(1, 20, *work.latent_size),
        "t": torch.tensor(500.0, device=device),
        "context": dit.embed_context(normal(config.text_len // 8, config.text_dim), normal(1, 257, config.image_dim)),
        "audio_tokens": dit.embed_audio(windows),
        "speaker_masks": masks,
    }


def pass_tflop(config: DiTConfig, work: Workload) -> float:
    """Work of a pass with one speaker: matrix products in the blocks, a multiplication with its sum counted as 2."""
    n, d, context = work.num_tokens, config.dim, config.text_len + 257
    audio_tokens = work.latent_size[0] * config.audio_tokens
    per_block = (
        8 * n * d**2 + 4 * n**2 * d  # self-attention
        + 4 * n * d**2 + 4 * context * d**2 + 4 * n * context * d  # text and image
        + 4 * n * d**2 + 4 * audio_tokens * config.audio_token_dim * d + 4 * n * config.audio_tokens * d
        + 4 * n * d * config.ffn_dim
    )  # fmt: skip
    return config.num_layers * per_block / 1e12
