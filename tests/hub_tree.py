"""What the hub has for us, with the real names and small contents: an independent list, not made from our manifest.

Contents are valid in their format as far as a header tells, and differ from one another. Beside the files that some
run needs lie those that none must take: pickles, demo media, other programs' forms.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tests.hub_server import HubServer

WAN = "Wan-AI/Wan2.1-I2V-14B-480P"
WAV2VEC = "TencentGameMate/chinese-wav2vec2-base"
INFINITETALK = "MeiGen-AI/InfiniteTalk"
MULTITALK = "MeiGen-AI/MeiGen-MultiTalk"
KOKORO = "hexgrad/Kokoro-82M"
FUSIONX = "vrgamedevgirl84/Wan14BT2VFusioniX"
REPACKED = "Kijai/WanVideo_comfy"

UPSTREAM: dict[str, tuple[str, ...]] = {
    WAN: (
        "config.json",
        *(f"diffusion_pytorch_model-0000{number}-of-00007.safetensors" for number in range(1, 8)),
        "diffusion_pytorch_model.safetensors.index.json",
        "models_t5_umt5-xxl-enc-bf16.pth",
        "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth",
        "Wan2.1_VAE.pth",
        *(
            f"google/umt5-xxl/{name}"
            for name in ("spiece.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
        ),
        *(f"xlm-roberta-large/{name}" for name in ("sentencepiece.bpe.model", "tokenizer.json")),
        "README.md",
        "examples/i2v_input.JPG",
    ),
    WAV2VEC: (
        "config.json",
        "preprocessor_config.json",
        "pytorch_model.bin",
        "chinese-wav2vec2-base-fairseq-ckpt.pt",
        "README.md",
    ),
    INFINITETALK: (
        "single/infinitetalk.safetensors",
        "multi/infinitetalk.safetensors",
        "comfyui/infinitetalk_single.safetensors",
        "comfyui/infinitetalk_multi.safetensors",
        *(
            f"quant_models/infinitetalk_{kind}.{suffix}"
            for kind in (
                "single_fp8",
                "single_int8",
                "single_int8_lora",
                "multi_fp8",
                "multi_int8",
                "multi_fp8_lora",
                "multi_int8_lora",
            )
            for suffix in ("safetensors", "json")
        ),
        "quant_models/t5_fp8.safetensors",
        "quant_models/t5_map_fp8.json",
        "quant_models/quant.json",
        "README.md",
    ),
    MULTITALK: (
        "multitalk.safetensors",
        "diffusion_pytorch_model.safetensors.index.json",
        "quant_models/dit_model_int8.safetensors",
        "quant_models/dit_model_map_int8.json",
        "quant_models/quant_model_int8_FusionX.safetensors",
        "quant_models/quant_model_fp8_FusionX.safetensors",
        "quant_models/quantization_map_fp8_FusionX.json",
        *(f"quant_models/t5_{form}.safetensors" for form in ("int8", "fp8")),
        *(f"quant_models/t5_map_{form}.json" for form in ("int8", "fp8")),
    ),
    KOKORO: (
        "config.json",
        "kokoro-v1_0.pth",
        *(f"voices/{name}.pt" for name in ("af_heart", "am_adam", "am_michael", "bf_emma", "zf_xiaobei")),
        "samples/HEARME.wav",
    ),
    FUSIONX: ("FusionX_LoRa/Wan2.1_I2V_14B_FusionX_LoRA.safetensors", "Wan14Bi2vFusioniX.safetensors"),
    REPACKED: (
        "Lightx2v/lightx2v_I2V_14B_480p_cfg_step_distill_rank64_bf16.safetensors",
        "Lightx2v/lightx2v_I2V_14B_480p_cfg_step_distill_rank32_bf16.safetensors",
        "Wan21_T2V_14B_lightx2v_cfg_step_distill_lora_rank32.safetensors",
        "Wan2_1_VAE_bf16.safetensors",
    ),
}
"""The main branch of every repository. There is no `t5_int8` beside InfiniteTalk, nor a `single_fp8_lora`."""

COMMON = (
    "Wan2.1-I2V-14B-480P/config.json",
    "Wan2.1-I2V-14B-480P/google/umt5-xxl/special_tokens_map.json",
    "Wan2.1-I2V-14B-480P/google/umt5-xxl/spiece.model",
    "Wan2.1-I2V-14B-480P/google/umt5-xxl/tokenizer.json",
    "Wan2.1-I2V-14B-480P/google/umt5-xxl/tokenizer_config.json",
    "Wan2.1-I2V-14B-480P/models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth",
    "Wan2.1-I2V-14B-480P/Wan2.1_VAE.pth",
    "chinese-wav2vec2-base/config.json",
    "chinese-wav2vec2-base/preprocessor_config.json",
    "chinese-wav2vec2-base/model.safetensors",
)
SHARDS = tuple(
    f"Wan2.1-I2V-14B-480P/diffusion_pytorch_model-0000{number}-of-00007.safetensors" for number in range(1, 8)
)
PLAIN_TEXT = "Wan2.1-I2V-14B-480P/models_t5_umt5-xxl-enc-bf16.pth"
QUANT = "InfiniteTalk/quant_models"
FP8_TEXT = (f"{QUANT}/t5_fp8.safetensors", f"{QUANT}/t5_map_fp8.json")
VAE = "Wan2.1-I2V-14B-480P/Wan2.1_VAE.pth"
SINGLE = "InfiniteTalk/single/infinitetalk.safetensors"
SINGLE_FP8 = f"{QUANT}/infinitetalk_single_fp8.safetensors"
RTX_4090 = (*COMMON, SINGLE_FP8, f"{QUANT}/infinitetalk_single_fp8.json", *FP8_TEXT)
"""Places of the files of the minimal downloads, as the description of the published weights lists them."""


def content_of(name: str, size: int) -> bytes:
    """Bytes of about this length that only this name has."""
    noise = random.Random(name).randbytes(size)
    if name.endswith(".safetensors"):
        entry = {"dtype": "U8", "shape": [len(noise)], "data_offsets": [0, len(noise)]}
        header = json.dumps({"values": entry}).encode()
        return len(header).to_bytes(8, "little") + header + noise
    if name.endswith(".json"):
        return json.dumps({"name": name, "noise": noise.hex()}).encode()
    return noise


def fill(hub: HubServer, size: int = 3000) -> None:
    """Put everything on the hub. The speech encoder's safetensors file is on the pull request's branch alone."""
    for repository, paths in UPSTREAM.items():
        for path in paths:
            hub.add(repository, path, content_of(f"{repository}/{path}", size))
    for path in ("model.safetensors", "config.json", "pytorch_model.bin"):
        hub.add(WAV2VEC, path, content_of(f"pr/{path}", size), revision="refs/pr/1")


def content_at(hub: HubServer, place: str) -> bytes:
    """What has to lie at a place of our layout."""
    if place == "chinese-wav2vec2-base/model.safetensors":
        return hub.repositories[WAV2VEC]["refs/pr/1"]["model.safetensors"]
    folder, _, path = place.partition("/")
    repositories = [name for name in UPSTREAM if name.endswith(f"/{folder}")]
    return hub.repositories[repositories[0]]["main"][path]


def lay_tree(hub: HubServer, root: Path, places: tuple[str, ...]) -> Path:
    """Put the hub's files into a folder, as another program might have."""
    for place in places:
        path = root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content_at(hub, place))
    return root


def use_hub(hub: HubServer, cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the library in this process, which has read its environment long ago, talk to the server."""
    from huggingface_hub import constants

    for name, value in {"HF_HUB_CACHE": str(cache_dir), "HF_HUB_OFFLINE": False}.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(cache_dir / "no-token"))


def child_environment(hub: HubServer, folder: Path) -> dict[str, str]:
    """The environment of a `talk` of its own that talks to the server and keeps its cache in `folder`."""
    import os

    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TALK_"))}
    return {**kept, "HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "hf"), "TALK_WEIGHTS_DIR": str(folder / "weights")}
