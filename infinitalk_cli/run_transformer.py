"""The video transformer of a run: read to where it is to be, and moved when the GPU is shared out otherwise.

Streamed blocks go to their place in RAM, or stay in their files (`run_blocks`); all else goes to the device.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import cast

import torch
from torch import nn

from infinitalk_cli.footprint import JobShape, Rung
from infinitalk_cli.gpu_room import GpuRoom, free_gpu_bytes
from infinitalk_cli.memory.block_stages import StreamedStage
from infinitalk_cli.memory.keys_values import kept_keys_values
from infinitalk_cli.memory.lora import Lora, LoraPlan, LoraReport
from infinitalk_cli.memory.offload import BlockOffloader
from infinitalk_cli.memory.residency import Residency
from infinitalk_cli.memory.tensor_files import TensorRef
from infinitalk_cli.models.dit import DiT
from infinitalk_cli.models.dit_layers import Block
from infinitalk_cli.models.tokens import Portions
from infinitalk_cli.networks import build_dit, read_dit_sizes
from infinitalk_cli.profile_choice import shape_of
from infinitalk_cli.progress import OnNote
from infinitalk_cli.request import GenerateRequest
from infinitalk_cli.run_blocks import BlockSource
from infinitalk_cli.run_dtypes import compute_dtype
from infinitalk_cli.weights import WeightFiles


@dataclass
class PlacedTransformer:
    """The video transformer, and where it is. `offloader`: if blocks are streamed, perhaps from the first on.

    `source`: where blocks are found that leave the GPU. `spare_bytes`: for what need not be made again in every step,
    by the rung. Nothing by default.
    """

    dit: DiT
    device: torch.device
    source: BlockSource
    spare_bytes: Callable[[Rung], int] = lambda _: 0
    offloader: BlockOffloader | None = None
    _steady_bytes: int = field(default=0, init=False)

    def take(self, rung: Rung) -> None:
        """Share out the GPU as the rung says. Weights leave it where they have to; none come back, none are read."""
        self.dit.portions = Portions(rung.ffn_tokens, rung.attention_tokens)
        self._steady_bytes = self.spare_bytes(rung)
        if self.offloader is not None:
            self.offloader.keep(rung.num_resident)
        elif rung.num_resident < len(self.dit.blocks):
            self.offloader = self.source.offloader(rung.num_resident)

    @contextmanager
    def on_stage(self) -> Generator[None]:
        """Have it on the device inside the `with`, its streamed blocks on their way."""
        if self.offloader is None:
            stage = Residency(self.device, keep=True).on_stage(self.dit)
        else:
            stage = StreamedStage(self.dit, self.offloader).running()
        steady = steady_keys_values(self.dit)
        with stage, kept_keys_values(steady, self._steady_bytes) if self._steady_bytes > 0 else nullcontext():
            yield


@dataclass(frozen=True)
class NetworkSources:
    """What the networks of a run are made of, and the device that is to compute with them."""

    request: GenerateRequest
    files: WeightFiles
    loras: Sequence[Lora]
    device: torch.device

    def gpu_room(self, shape: JobShape, ram_bytes: int | None = None) -> GpuRoom:
        """The GPU, for a job of this shape. `ram_bytes`: beside it, None for all that is needed."""
        profile = replace(self.request.profile, num_persistent_param_in_dit=self.request.resident_parameters)
        return GpuRoom(self.device, profile, shape, read_dit_sizes(self.files), free_gpu_bytes(self.device), ram_bytes)

    def place_transformer(
        self,
        *,
        num_resident: int | None = None,
        most_in_ram: int | None = None,
        on_note: OnNote = lambda _: None,
    ) -> PlacedTransformer:
        """The video transformer, as the function of that name places it."""
        return place_transformer(
            self.files,
            self.loras,
            self.device,
            compute_dtype(self.request, self.device),
            beside=self.request.profile.lora_mode == "beside",
            num_resident=num_resident,
            most_in_ram=most_in_ram,
            on_note=on_note,
        )


def load_transformer(sources: NetworkSources) -> PlacedTransformer:
    """The video transformer alone, placed for the largest picture of the request's size."""
    if sources.device.type != "cuda":
        return sources.place_transformer()
    rung = sources.gpu_room(shape_of(sources.request.profile)).start()
    placed = sources.place_transformer(num_resident=rung.num_resident)
    placed.take(rung)
    return placed


def place_transformer(
    files: WeightFiles,
    loras: Sequence[Lora],
    device: torch.device,
    dtype: torch.dtype,
    *,
    beside: bool = False,
    num_resident: int | None = None,
    most_in_ram: int | None = None,
    on_note: OnNote = lambda _: None,
) -> PlacedTransformer:
    """The video transformer, read to where it is to be: streamed blocks to their place in RAM, all else to the device.

    Args: beside: keep LoRAs beside the weights. num_resident: blocks that stay on the device, None for all of them.
        most_in_ram: of the others those that RAM has room for, None for all; what is beyond stays in its files, if
        that can be.
    """
    if beside and not loras:
        on_note("note: this run adds no LoRA to the weights, so --lora-mode beside has no effect")
    sources, offloaders = list[BlockSource](), list[BlockOffloader]()

    def stream(dit: DiT, refs: Mapping[str, TensorRef], plan: LoraPlan) -> Collection[str]:
        source = BlockSource.of(dit, device, refs, plan, most_in_ram)
        sources.append(source)
        if num_resident is None or num_resident >= len(source.dit.blocks):
            return ()
        offloaders.append(source.offloader(num_resident))
        return source.left_in_files(offloaders[0])

    dit = build_dit(
        files,
        dtype=dtype,
        device=device,
        loras=loras,
        beside=beside,
        on_lora=lambda found: on_note(lora_note(found, beside=beside)),
        place=stream,
    )
    return PlacedTransformer(dit, device, sources[0], offloader=next(iter(offloaders), None))


def steady_keys_values(dit: DiT) -> list[tuple[nn.Module, str]]:
    """The methods that make a block's keys and values of text, picture and speech."""
    blocks = cast("list[Block]", list(dit.blocks))
    return [
        method
        for block in blocks
        for method in (
            (block.cross_attn, "text_keys_values"),
            (block.cross_attn, "image_keys_values"),
            (block.audio_cross_attn, "keys_values"),
        )
    ]


def lora_note(report: LoraReport, *, beside: bool = False) -> str:
    """What a LoRA did, in a line."""
    where = " beside the weights" if beside else ""
    skipped = f", {len(report.skipped)} tensors had no place" if report.skipped else ""
    return f"LoRA {report.path.name}: {report.num_matched} tensors applied{where}{skipped}"
