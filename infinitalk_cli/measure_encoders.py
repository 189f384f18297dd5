"""What `talk bench` times of a run beside the transformer's passes: the encoders, reading weights, the first pass.

The encoders are those of a run, at their real sizes with random weights, each where a run has it: text and picture on
the GPU, speech on the CPU. Reading is timed on a file of its own, written before and so in the system's file cache: it
tells what this program can do, not what the disk can. The first pass is a call of a transformer that was just built, in
a process that has not made one yet, with whatever kernels have to be compiled and chosen.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import nn

from infinitalk_cli.measure import Measured, PassSetting, Stopwatch, Workload, measure_pass
from infinitalk_cli.memory.loading import load_into
from infinitalk_cli.memory.tensor_files import TensorRef, open_tensors
from infinitalk_cli.models.audio_encoder import AudioEncoder
from infinitalk_cli.models.encoder_config import AudioEncoderConfig, ImageEncoderConfig, TextEncoderConfig
from infinitalk_cli.models.image_encoder import ImageEncoder
from infinitalk_cli.models.text_encoder import TextEncoder

REAL_TEXT = TextEncoderConfig(vocab_size=256_384, dim=4096, ffn_dim=10_240, num_heads=64, head_dim=64, num_layers=24)
TINY_TEXT = TextEncoderConfig(vocab_size=320, dim=16, ffn_dim=32, num_heads=2, head_dim=8, num_layers=2)
REAL_IMAGE = ImageEncoderConfig(dim=1280, ffn_dim=5120, num_layers=32, patch_size=14, image_size=224)
TINY_IMAGE = ImageEncoderConfig(dim=32, ffn_dim=48, num_layers=3, patch_size=14, image_size=56, num_heads=4)
REAL_AUDIO = AudioEncoderConfig(
    dim=768, ffn_dim=3072, num_layers=12, num_heads=12, conv_dim=(512,) * 7, position_kernel=128, position_groups=16
)
TINY_AUDIO = replace(REAL_AUDIO, dim=24, ffn_dim=48, num_layers=3, num_heads=2, conv_dim=(8,) * 7, position_groups=4)

PROMPT_TOKENS = 64
"""Of a prompt of some sentences."""
SAMPLES_PER_S = 16_000
FILE_BYTES = 4 * 2**30
TINY_FILE_BYTES = 2**20
TENSORS_IN_FILE = 64

Network = TypeVar("Network", bound=nn.Module)


@torch.no_grad()
def measure_text(work: Workload, watch: Stopwatch) -> Measured:
    """Time the reading of a prompt by a text encoder that is on the device."""
    config = TINY_TEXT if work.is_tiny else REAL_TEXT
    dtype = torch.bfloat16 if watch.device.type == "cuda" else torch.float32
    encoder = random_network(lambda: TextEncoder(config, Tokenizer(WordLevel())), dtype, watch.device)
    ids = list(range(1, PROMPT_TOKENS + 1))
    return watch.measure("text", lambda: encoder.encode_ids(ids), note=f"{PROMPT_TOKENS} tokens")


@torch.no_grad()
def measure_image(work: Workload, watch: Stopwatch) -> Measured:
    """Time the reading of the reference picture."""
    config = TINY_IMAGE if work.is_tiny else REAL_IMAGE
    dtype = torch.float16 if watch.device.type == "cuda" else torch.float32
    encoder = random_network(lambda: ImageEncoder(config), dtype, watch.device)
    picture = torch.rand(1, 3, work.height, work.width, device=watch.device) * 2 - 1
    return watch.measure("image", lambda: encoder.encode(picture))


@torch.no_grad()
def measure_audio(work: Workload, watch: Stopwatch) -> Measured:
    """Time the hearing of a chunk's speech, on the CPU as in a run."""
    cpu = torch.device("cpu")
    config = TINY_AUDIO if work.is_tiny else REAL_AUDIO
    encoder = random_network(lambda: AudioEncoder(config, do_normalize=True), torch.float32, cpu)
    seconds = work.num_frames / 25
    waveform = torch.randn(int(seconds * SAMPLES_PER_S)) / 10
    on_cpu = Stopwatch(cpu, watch.repeats, watch.warm_up)
    return on_cpu.measure("audio", lambda: encoder.embed(waveform), note=f"{seconds:.2f} s of sound, on the CPU")


def measure_load(work: Workload, watch: Stopwatch) -> Measured:
    """Time the reading of weights to the device; `tflop` counts 10^12 bytes."""
    num_bytes = TINY_FILE_BYTES if work.is_tiny else FILE_BYTES
    length = num_bytes // TENSORS_IN_FILE // 2  # of 2 bytes
    with tempfile.TemporaryDirectory(prefix="talk-bench-") as folder:
        path = Path(folder) / "weights.safetensors"
        save_file({f"{n}.weight": torch.ones(1, length, dtype=torch.bfloat16) for n in range(TENSORS_IN_FILE)}, path)

        def load() -> None:
            with torch.device("meta"):
                module = nn.ModuleList(nn.Linear(length, 1, bias=False) for _ in range(TENSORS_IN_FILE))
            refs = open_tensors(path)
            load_into(module, refs, what="a file", dtype_of=lambda name, stored: stored, device=watch.device)

        note = f"{num_bytes / 1e9:.1f} GB from the file cache"
        return watch.measure("load", load, tflop=num_bytes / 1e12, note=note)


def measure_first_pass(work: Workload, watch: Stopwatch) -> Measured:
    """Time the very first call of an fp8 transformer, by the clock; the building of it is not counted."""
    once = Stopwatch(watch.device, repeats=1, warm_up=0)
    found = measure_pass(PassSetting("fp8"), work, once)
    return replace(found, name="first pass", note="fp8, kernels compiled and chosen in it")


def random_network(build: Callable[[], Network], dtype: torch.dtype, device: torch.device) -> Network:
    """A network with random weights, made without the library's slow drawing of them."""
    with torch.device("meta"):
        network = build()

    def ref(name: str, shape: torch.Size) -> TensorRef:
        spread = max(1, shape[1:].numel()) ** -0.5
        return TensorRef(name, tuple(shape), dtype, Path(), lambda: torch.randn(shape, device=device).mul_(spread))

    refs = {name: ref(name, tensor.shape) for name, tensor in network.state_dict().items()}
    load_into(network, refs, what="a network", dtype_of=lambda name, stored: dtype, device=device)
    return network.eval()
