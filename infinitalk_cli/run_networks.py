"""The networks that make the video, built from their files and placed: on the GPU, or streamed to it.

How the GPU is shared out is a `Rung`, chosen by arithmetic (`rungs`) or known from a run that had to step down
(`rung_store`). A chunk for which the memory does not suffice is made again on the next one: the weights move, the
random numbers and the frames of the chunk before are the same, and so is the video.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from infinitalk_cli.footprint import JobShape, Rung
from infinitalk_cli.gpu_room import GpuRoom
from infinitalk_cli.media.color import match_color
from infinitalk_cli.memory.ladder import Ladder, release_gpu_memory
from infinitalk_cli.memory.residency import Residency
from infinitalk_cli.models.image_encoder import ImageEncoder
from infinitalk_cli.models.vae import VideoVAE
from infinitalk_cli.models.vae_tiling import Tiling
from infinitalk_cli.networks import build_image_encoder, import_library, read_dit_sizes
from infinitalk_cli.progress import OnNote
from infinitalk_cli.run_blocks import placement_notes, usable_ram_bytes
from infinitalk_cli.run_dtypes import half_on_gpu
from infinitalk_cli.run_transformer import NetworkSources, PlacedTransformer
from infinitalk_cli.run_vae import GPU_DTYPES, WiderWhereNeeded, load_vae
from infinitalk_cli.rungs import Stage, lower_rung
from infinitalk_cli.sampling.stream import MadeChunk, Networks
from infinitalk_cli.weights import WeightFiles


def load_networks(sources: NetworkSources, shape: JobShape, on_note: OnNote) -> Networks:
    """The networks of the video. A transformer that does not fit on the GPU is streamed to it block by block."""
    request, device = sources.request, sources.device
    if device.type == "cuda":
        ram_bytes = usable_ram_bytes() if request.num_gpus == 1 else None  # several would each count on all of it
        room = sources.gpu_room(shape, ram_bytes)
        return load_on_rung(sources, room, room.start(), on_note)
    if request.profile.vae_dtype not in ("auto", "float32"):
        on_note(f"note: --vae-dtype {request.profile.vae_dtype} has no effect on the CPU, which computes in float32")
    placed = build_networks(sources, on_note, vae_dtype=torch.float32)
    return Networks(
        dit=placed.transformer.dit,
        vae=placed.vae,
        image_encoder=placed.image_encoder,
        match_color=match_color,
        device=device,
        on_stage=Residency(device).on_stage,
    )


def load_on_rung(sources: NetworkSources, room: GpuRoom, rung: Rung, on_note: OnNote) -> Networks:
    """The networks on a GPU, placed as the rung says; where that fails, at once or in a chunk, on a lower one."""
    num_blocks, placed = room.sizes.num_layers, None
    while placed is None:
        with suppress(torch.cuda.OutOfMemoryError):
            placed = build_networks(
                sources,
                on_note,
                vae_dtype=GPU_DTYPES[sources.request.profile.vae_dtype],
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
    wider = WiderWhereNeeded(
        placed.vae,
        load=placed.load_vae,
        wide=lambda: torch.float32 if room.fits_exact_vae(ladder.rung) else torch.bfloat16,
        on_note=on_note,
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
        attempt_vae=wider.attempt,
    )


@dataclass
class PlacedNetworks:
    """The networks, and where they are. `load_vae`: a new one, in a home, of a dtype. `stage`: the last that began."""

    transformer: PlacedTransformer
    vae: VideoVAE
    image_encoder: ImageEncoder
    device: torch.device
    load_vae: Callable[[torch.device, torch.dtype], VideoVAE]
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


def build_networks(
    sources: NetworkSources,
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
    files, device = sources.files, sources.device
    is_whole = num_resident is None or num_resident >= read_dit_sizes(files).num_layers
    home = device if is_whole else torch.device("cpu")
    with ThreadPoolExecutor(1) as aside:  # seconds of Python, while that of the transformer waits for files
        others = aside.submit(build_others, files, device, home, vae_dtype)
        transformer = sources.place_transformer(num_resident=num_resident, most_in_ram=most_in_ram, on_note=on_note)
    vae, image_encoder = others.result()
    return PlacedNetworks(transformer, vae, image_encoder, device, partial(load_vae, files, device))


def build_others(
    files: WeightFiles, device: torch.device, home: torch.device, vae_dtype: torch.dtype
) -> tuple[VideoVAE, ImageEncoder]:
    """The video VAE and the image encoder for a device, put in `home`; what the audio encoder is made of, imported."""
    import_library()
    return load_vae(files, device, home, vae_dtype), build_image_encoder(files, dtype=half_on_gpu(device), device=home)
