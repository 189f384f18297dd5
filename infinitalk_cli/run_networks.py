"""The networks that make the video, built from their files and placed: on the GPU, or streamed to it.

How the GPU is shared out is a `Rung`, chosen by arithmetic (`footprint`) or known from a run that had to step down
(`rung_store`). A chunk for which the memory does not suffice is made again on the next one: the weights move, the
random numbers and the frames of the chunk before are the same, and so is the video.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from typing import cast

import torch
from torch import nn

from infinitalk_cli.errors import OutOfGpuMemoryError
from infinitalk_cli.footprint import (
    CONTEXT_BYTES,
    JobShape,
    Rung,
    Stage,
    decoding_bytes,
    first_rung,
    lower_rung,
    most_in_ram,
    vram_bytes,
    working_bytes,
)
from infinitalk_cli.media.color import match_color
from infinitalk_cli.memory.keys_values import kept_keys_values
from infinitalk_cli.memory.ladder import Ladder, release_gpu_memory
from infinitalk_cli.memory.lora import Lora, LoraPlan, LoraReport
from infinitalk_cli.memory.offload import BlockOffloader, StreamedStage
from infinitalk_cli.memory.residency import Residency
from infinitalk_cli.memory.tensor_files import TensorRef
from infinitalk_cli.models.config import DiTConfig
from infinitalk_cli.models.dit import DiT
from infinitalk_cli.models.dit_layers import Block
from infinitalk_cli.models.image_encoder import ImageEncoder
from infinitalk_cli.models.tokens import Portions
from infinitalk_cli.models.vae import VideoVAE
from infinitalk_cli.models.vae_tiling import Tiling
from infinitalk_cli.networks import build_dit, build_image_encoder, import_library, read_dit_sizes
from infinitalk_cli.profile_choice import shape_of
from infinitalk_cli.profiles import Profile
from infinitalk_cli.request import GenerateRequest
from infinitalk_cli.run_blocks import BlockSource, placement_notes, usable_ram_bytes
from infinitalk_cli.run_vae import load_vae, vae_dtype_of
from infinitalk_cli.rung_store import store_rung, stored_rung
from infinitalk_cli.sampling.stream import MadeChunk, Networks
from infinitalk_cli.weights import WeightFiles

OnNote = Callable[[str], None]


def load_networks(
    request: GenerateRequest,
    files: WeightFiles,
    loras: Sequence[Lora],
    device: torch.device,
    shape: JobShape,
    on_note: OnNote,
) -> Networks:
    """The networks of the video. A transformer that does not fit on the GPU is streamed to it block by block."""
    if device.type == "cuda":
        profile = replace(request.profile, num_persistent_param_in_dit=request.resident_parameters)
        ram_bytes = usable_ram_bytes() if request.num_gpus == 1 else None  # several would each count on all of it
        room = GpuRoom(device, profile, shape, read_dit_sizes(files), free_gpu_bytes(device), ram_bytes)
        return load_on_rung(request, files, loras, room, room.start(), on_note)
    if request.profile.vae_dtype not in ("auto", "float32"):
        on_note(f"note: --vae-dtype {request.profile.vae_dtype} has no effect on the CPU, which computes in float32")
    placed = build_networks(request, files, loras, device, on_note, vae_dtype=torch.float32)
    return Networks(
        dit=placed.transformer.dit,
        vae=placed.vae,
        image_encoder=placed.image_encoder,
        match_color=match_color,
        device=device,
        on_stage=Residency(device).on_stage,
    )


def load_on_rung(
    request: GenerateRequest, files: WeightFiles, loras: Sequence[Lora], room: GpuRoom, rung: Rung, on_note: OnNote
) -> Networks:
    """The networks on a GPU, placed as the rung says; where that fails, at once or in a chunk, on a lower one."""
    num_blocks, placed = room.sizes.num_layers, None
    while placed is None:
        with suppress(torch.cuda.OutOfMemoryError):
            vae_dtype = vae_dtype_of(request.profile, rung)
            placed = build_networks(
                request,
                files,
                loras,
                room.device,
                on_note,
                vae_dtype=vae_dtype,
                num_resident=rung.num_resident,
                most_in_ram=room.most_in_ram(rung),
            )
        if placed is None:
            release_gpu_memory()
            too_many = "the whole transformer" if rung.num_resident == num_blocks else f"{rung.num_resident} blocks"
            lower = lower_rung(rung, num_blocks, "other")
            if lower is None:
                raise room.refuse("what is never streamed of the transformer finds no room")
            rung = lower
            on_note(f"the GPU has no room for {too_many}; {rung.describe(num_blocks)}")
    return with_ladder(placed, room, rung, on_note)


def with_ladder(placed: PlacedNetworks, room: GpuRoom, rung: Rung, on_note: OnNote) -> Networks:
    """Networks that stand no lower than the rung, put on it; where a chunk fails, they step down."""
    num_blocks = room.sizes.num_layers
    placed.transformer.spare_bytes = room.spare_bytes
    placed.take(rung)
    if placed.transformer.offloader is not None:
        for note in placement_notes(placed.transformer.offloader, num_blocks):
            on_note(note)
    ladder = Ladder(
        rung=rung,
        lower=lambda rung: lower_rung(rung, num_blocks, placed.stage),
        take=placed.take,
        on_step=lambda rung: on_note(f"the GPU ran out of memory; this chunk again, with {rung.describe(num_blocks)}"),
        on_found=room.remember,
        last_failed=room.refuse,
    )

    def attempt(make: Callable[[], MadeChunk]) -> MadeChunk:
        return ladder.attempt(make)

    return Networks(
        dit=placed.transformer.dit,
        vae=placed.vae,
        image_encoder=placed.image_encoder,
        match_color=match_color,
        device=room.device,
        on_stage=placed.on_stage,
        attempt=attempt,
    )


@dataclass(frozen=True)
class GpuRoom:
    """A GPU with its free memory, and what is to be done in it. `ram_bytes`: beside it, None for all that is needed."""

    device: torch.device
    profile: Profile
    shape: JobShape
    sizes: DiTConfig
    free_bytes: int
    ram_bytes: int | None = None

    def start(self) -> Rung:
        """The rung to start on: by arithmetic, or below, where a run like this one ended."""
        rung = first_rung(self.profile, self.shape, self.free_bytes, self.sizes)
        known = stored_rung(self._gpu, self.shape, self.profile, self.free_bytes)
        return rung if known is None else rung.and_not_above(known)

    def remember(self, rung: Rung) -> None:
        """Start here the next time."""
        store_rung(self._gpu, self.shape, self.profile, rung, self.free_bytes)

    def refuse(self, said: str) -> OutOfGpuMemoryError:
        """What to tell the user when the last rung has failed. `said`: by the library."""
        lowest = Rung(0)
        while (lower := lower_rung(lowest, self.sizes.num_layers, "transformer")) is not None:
            lowest = lower
        while (lower := lower_rung(lowest, self.sizes.num_layers, "vae")) is not None:
            lowest = lower
        need = vram_bytes(self.shape, self.profile, lowest, self.sizes) / 1e9
        size = f"{self.shape.width}x{self.shape.height}, {self.profile.chunk_frames} frames at a time"
        return OutOfGpuMemoryError(
            f"the GPU has too little memory: {said}",
            hint=f"{size} take about {need:.1f} GB at the least, {self.free_bytes / 1e9:.1f} GB were free at the start"
            "; what takes less: --quant fp8 or int8, --size 480, fewer --frames; or close other GPU programs",
        )

    def most_in_ram(self, rung: Rung) -> int | None:
        """How many streamed blocks RAM has room for, None for all."""
        return (
            None if self.ram_bytes is None else most_in_ram(self.profile, rung.num_resident, self.ram_bytes, self.sizes)
        )

    def spare_bytes(self, rung: Rung) -> int:
        """What passes may take beyond what they need: decoding will take as much afterwards."""
        return decoding_bytes(self.shape, rung) - working_bytes(self.shape, self.profile, rung, self.sizes)

    @property
    def _gpu(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"


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


@dataclass
class PlacedNetworks:
    """The networks, and where they are. `stage`: the last that began."""

    transformer: PlacedTransformer
    vae: VideoVAE
    image_encoder: ImageEncoder
    device: torch.device
    stage: Stage = "other"

    def take(self, rung: Rung) -> None:
        """Share out the GPU as the rung says."""
        self.vae.tiling = None if rung.vae_tile is None else Tiling.of(rung.vae_tile)
        self.transformer.take(rung)
        if self.transformer.offloader is not None:
            for network in (self.vae, self.image_encoder):
                network.to("cpu")

    @contextmanager
    def on_stage(self, module: nn.Module) -> Generator[None]:
        """Have a network on the device inside the `with`."""
        is_dit = module is self.transformer.dit
        self.stage = "transformer" if is_dit else "vae" if module is self.vae else "other"
        stays = self.transformer.offloader is None
        with self.transformer.on_stage() if is_dit else Residency(self.device, keep=stays).on_stage(module):
            yield


def load_transformer(
    request: GenerateRequest, files: WeightFiles, loras: Sequence[Lora], device: torch.device
) -> PlacedTransformer:
    """The video transformer alone, placed for the largest picture of the request's size."""
    dtype = compute_dtype(request, device)
    beside = request.profile.lora_mode == "beside"
    if device.type != "cuda":
        return place_transformer(files, loras, device, dtype, beside=beside)
    profile = replace(request.profile, num_persistent_param_in_dit=request.resident_parameters)
    rung = GpuRoom(device, profile, shape_of(profile), read_dit_sizes(files), free_gpu_bytes(device)).start()
    placed = place_transformer(files, loras, device, dtype, beside=beside, num_resident=rung.num_resident)
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


def build_networks(
    request: GenerateRequest,
    files: WeightFiles,
    loras: Sequence[Lora],
    device: torch.device,
    on_note: OnNote,
    *,
    vae_dtype: torch.dtype,
    num_resident: int | None = None,
    most_in_ram: int | None = None,
) -> PlacedNetworks:
    """The networks from their files, for a device to compute with.

    Args: vae_dtype: of the video VAE. num_resident: blocks of the transformer that stay on the device; None for all of
        them. Unless all do, the other networks are put in RAM. most_in_ram: see `place_transformer`.
    """
    is_whole = num_resident is None or num_resident >= read_dit_sizes(files).num_layers
    home, dtype = device if is_whole else torch.device("cpu"), compute_dtype(request, device)
    with ThreadPoolExecutor(1) as aside:  # seconds of Python, while that of the transformer waits for files
        others = aside.submit(build_others, files, device, home, vae_dtype)
        transformer = place_transformer(
            files,
            loras,
            device,
            dtype,
            beside=request.profile.lora_mode == "beside",
            num_resident=num_resident,
            most_in_ram=most_in_ram,
            on_note=on_note,
        )
    vae, image_encoder = others.result()
    return PlacedNetworks(transformer, vae, image_encoder, device)


def build_others(
    files: WeightFiles, device: torch.device, home: torch.device, vae_dtype: torch.dtype
) -> tuple[VideoVAE, ImageEncoder]:
    """The video VAE and the image encoder for a device, put in `home`; what the audio encoder is made of, imported."""
    import_library()
    return load_vae(files, device, home, vae_dtype), build_image_encoder(files, dtype=half_on_gpu(device), device=home)


def free_gpu_bytes(device: torch.device) -> int:
    """What is free on the GPU, this program's own share included: what was free before it came."""
    release_gpu_memory()
    free_bytes, _ = torch.cuda.mem_get_info(device)
    return free_bytes + torch.cuda.memory_reserved(device) + CONTEXT_BYTES


def half_on_gpu(device: torch.device) -> torch.dtype:
    """float16 on a GPU, float32 on a CPU."""
    return torch.float16 if device.type == "cuda" else torch.float32


def compute_dtype(request: GenerateRequest, device: torch.device) -> torch.dtype:
    """The transformer's dtype: what the profile says, or what the device is good at."""
    if request.profile.dtype == "auto":
        return text_dtype(device)
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[request.profile.dtype]


def text_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 on a GPU; UMT5 overflows float16."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def lora_note(report: LoraReport, *, beside: bool = False) -> str:
    """What a LoRA did, in a line."""
    where = " beside the weights" if beside else ""
    skipped = f", {len(report.skipped)} tensors had no place" if report.skipped else ""
    return f"LoRA {report.path.name}: {report.num_matched} tensors applied{where}{skipped}"
