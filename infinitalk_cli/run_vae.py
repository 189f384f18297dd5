"""The video VAE of a run: which numbers it computes with, and what to do when they are too small for it.

float32 is what the published programs use; on a GPU its convolutions round to 10 bits of mantissa (TF32), as torch does
if nobody says otherwise. float16 has as many, in half the memory and 45 % of the time: written to 8 bits its frames
differ from float32's by a level at most (benchmarks), and so it is what a GPU computes with. But it ends at 65,504, and
what the layers of the published weights reach has not been measured here. So every result is looked at, and where one
is no number, the VAE is read from its file once more, into wider numbers: float32 if there is room, else bfloat16, with
float32's range and 7 bits. What failed is done again, and the VAE stays as it is then.

GPUs have faster convolutions for weights with channels fastest, in float32, too: 10 % less time, a sixth less memory.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from infinitalk_cli.memory.ladder import release_gpu_memory
from infinitalk_cli.models.vae import BeyondFloat16, VideoVAE
from infinitalk_cli.networks import build_vae
from infinitalk_cli.profiles import VaeDtype
from infinitalk_cli.weights import WeightFiles

GPU_DTYPES: dict[VaeDtype, torch.dtype] = {
    "auto": torch.float16,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
}
"""What a wish means on a GPU; a CPU computes in float32."""


def load_vae(files: WeightFiles, device: torch.device, home: torch.device, dtype: torch.dtype) -> VideoVAE:
    """The VAE for a device, put in `home`, in the layout that is fast there."""
    vae = build_vae(files, dtype=dtype, device=home)
    if device.type == "cuda":
        vae.use_channels_last()
    return vae


def numbers_of(vae: VideoVAE) -> str:
    """What it computes with, such as "float16"."""
    return str(vae.conv1.weight.dtype).removeprefix("torch.")


@dataclass(frozen=True)
class WiderWhereNeeded:
    """Encodes or decodes once more, in wider numbers, what goes beyond float16.

    `load`: the VAE anew, of a dtype, in a home. `wide`: the dtype there is room for. `on_note`: told of the change.
    """

    vae: VideoVAE
    load: Callable[[torch.device, torch.dtype], VideoVAE]
    wide: Callable[[], torch.dtype]
    on_note: Callable[[str], None]

    def attempt(self, use: Callable[[], Tensor]) -> Tensor:
        """What `use` gives; it takes the VAE to the device and leaves it where it was."""
        with suppress(BeyondFloat16):
            return use()
        self._widen()  # out of the `with`, whose error holds on to the tensors of the attempt
        return use()

    def _widen(self) -> None:
        """Give the VAE the parts of a new one: all of them or, where memory runs out, none."""
        release_gpu_memory()
        new = self.load(self.vae.conv1.weight.device, self.wide())
        for name, part in new.named_children():
            setattr(self.vae, name, part)
        self.on_note(f"note: the video VAE goes beyond float16 here; it computes in {numbers_of(new)} from now on")
