"""Puts the trained networks into the package: the layout and the tensor names of the published weights, in 16 bits.

`python -m training.demo.export --data DIR --run DIR --out infinitalk_cli/demo_weights` writes the folder anew. One file
holds the transformer's audio parts for one speaker and for two, and for MultiTalk's loop. What is published as a pickle
(VAE, CLIP, text encoder) becomes safetensors in `repackaged/`, where `talk` looks for these networks next.

The text encoder is the random one whose features the transformer was trained on; in bfloat16, in which it was drawn, so
that it gives the same ones.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from infinitalk_cli.demo_package import ADAPTER
from infinitalk_cli.memory.keymaps import IMAGE_LAYER, IMAGE_OUTER
from infinitalk_cli.repackaged import FOLDER as REPACKAGED
from infinitalk_cli.weights import BASE, PLAIN_TEXT_ENCODER, SPEECH
from training.demo.networks import AUDIO, AUDIO_FILE, DIT, DIT_FILE, IMAGE, IMAGE_FILE, VAE_FILE
from training.random_tree import ensure_random_weights

MOST_BYTES = 16_000_000
"""Of the whole folder."""

TOKENIZER = f"{BASE}/google/umt5-xxl/tokenizer.json"
LICENCE = "Apache-2.0"
PROVENANCE = "trained by infinitalk-cli's training/demo on invented people and synthetic speech alone"

ABOUT = """\
The demo's weights
==================

Licence: Apache-2.0, as the rest of infinitalk-cli.

Where they come from: everything is synthetic and ours. The networks were built at random in the project's own classes
and trained by the scripts in `training/demo` of its repository. All they have ever seen are pictures of invented
people, drawn by the ray marcher in `examples`; all they have ever heard is speech of the program eSpeak NG, and tones
and noise made by the same scripts. No photograph, no recording of a voice and no tensor of published weights went into
them. The text encoder and CLIP are not trained: their numbers are random.

What they are for: showing every stage of the program on any computer, and measuring it. They animate drawn people like
the ones they know, at about 128 x 128 pixels. They are no small form of the published InfiniteTalk and MultiTalk
weights.
"""

ADAPTER_PARTS = ("audio_proj.", ".audio_cross_attn.", ".norm_x.")
"""What is published apart from the base, by parts of names."""

_IMAGE_OUTER = {theirs: ours for ours, theirs in IMAGE_OUTER.items()}
_IMAGE_LAYER = {theirs: ours for ours, theirs in IMAGE_LAYER.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Put trained networks into the package.")
    parser.add_argument("--data", type=Path, required=True, help="folder of clip.safetensors")
    parser.add_argument("--run", type=Path, required=True, help="folder of the trained networks")
    parser.add_argument("--out", type=Path, required=True)
    wish = parser.parse_args()
    export(wish.data, wish.run, wish.out)
    size = sum(path.stat().st_size for path in wish.out.rglob("*") if path.is_file())
    print(f"{wish.out}: {size / 1e6:.2f} MB")
    if size > MOST_BYTES:
        raise SystemExit(f"more than {MOST_BYTES / 1e6:.0f} MB")


def export(data: Path, run: Path, out: Path) -> None:
    """Write the whole folder; what was in it is gone."""
    made = ensure_random_weights()
    unfinished = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    dit = load_file(run / DIT_FILE)
    adapter = {name: tensor for name, tensor in dit.items() if any(part in name for part in ADAPTER_PARTS)}
    save(unfinished / ADAPTER, adapter)
    save(
        unfinished / BASE / "diffusion_pytorch_model.safetensors",
        {name: tensor for name, tensor in dit.items() if name not in adapter},
    )
    save(unfinished / SPEECH / "model.safetensors", load_file(run / AUDIO_FILE))
    save(unfinished / REPACKAGED / "vae.safetensors", load_file(run / VAE_FILE))
    save(unfinished / REPACKAGED / "image_encoder.safetensors", published_image_names(load_file(data / IMAGE_FILE)))
    text_encoder: Mapping[str, Tensor] = torch.load(made / PLAIN_TEXT_ENCODER, weights_only=True)
    save(unfinished / REPACKAGED / "text_encoder.safetensors", text_encoder, torch.bfloat16)
    (unfinished / TOKENIZER).parent.mkdir(parents=True)
    shutil.copyfile(made / TOKENIZER, unfinished / TOKENIZER)
    write_json(unfinished / BASE / "config.json", dit_config())
    write_json(unfinished / SPEECH / "config.json", audio_config())
    write_json(unfinished / SPEECH / "preprocessor_config.json", {"do_normalize": False, "sampling_rate": 16_000})
    (unfinished / "ABOUT.txt").write_text(ABOUT, encoding="utf-8")
    shutil.rmtree(out, ignore_errors=True)
    unfinished.rename(out)


def save(path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype = torch.float16) -> None:
    """Write tensors with where they come from in the header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = {name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}
    save_file(stored, path, metadata={"format": "pt", "licence": LICENCE, "provenance": PROVENANCE})


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def published_image_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an `ImageEncoder` as the published CLIP file names them.

    Like that, it has one layer more than is used; here the last one is zero.
    """
    named = {name.removeprefix("model."): tensor for name, tensor in state.items()}
    found: dict[str, Tensor] = {}
    for name, tensor in named.items():
        if not name.startswith("encoder.layers."):
            shape = (1, 1, IMAGE.dim) if name == "embeddings.class_embedding" else tensor.shape
            shape = (1, *shape) if name == "embeddings.position_embedding.weight" else shape
            found[_IMAGE_OUTER[name]] = tensor.reshape(shape)
    for layer in range(IMAGE.num_layers - 1):
        start = f"encoder.layers.{layer}."
        own = {name.removeprefix(start): tensor for name, tensor in named.items() if name.startswith(start)}
        found |= {f"visual.transformer.{layer}.{name}": tensor for name, tensor in _image_layer(own).items()}
    first, last = "visual.transformer.0.", f"visual.transformer.{IMAGE.num_layers - 1}."
    unread = {name: tensor for name, tensor in found.items() if name.startswith(first)}
    return found | {name.replace(first, last): torch.zeros_like(tensor) for name, tensor in unread.items()}


def _image_layer(own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One layer: query, key and value in one matrix."""
    found: dict[str, Tensor] = {}
    for kind in ("weight", "bias"):
        found[f"attn.to_qkv.{kind}"] = torch.cat([own[f"self_attn.{part}_proj.{kind}"] for part in "qkv"])
        found |= {f"{ours}.{kind}": own[f"{theirs}.{kind}"] for theirs, ours in _IMAGE_LAYER.items()}
    return found


def dit_config() -> dict[str, Any]:
    """The transformer's `config.json`, with the sizes that the published one leaves out."""
    sizes = {name: size for name, size in asdict(DIT).items() if name != "patch"}
    for ours, stored in (
        ("audio_hidden_dim", "intermediate_dim"),
        ("audio_token_dim", "output_dim"),
        ("audio_tokens", "context_tokens"),
    ):
        sizes[stored] = sizes.pop(ours)
    return {"_class_name": "WanModel", "model_type": "i2v", **sizes}


def audio_config() -> dict[str, Any]:
    """wav2vec2's `config.json`."""
    return {
        "architectures": ["Wav2Vec2ForPreTraining"],
        "model_type": "wav2vec2",
        "conv_bias": AUDIO.conv_bias,
        "conv_dim": AUDIO.conv_dim,
        "conv_kernel": AUDIO.conv_kernel,
        "conv_stride": AUDIO.conv_stride,
        "do_stable_layer_norm": False,
        "feat_extract_activation": "gelu",
        "feat_extract_norm": "group",
        "hidden_act": "gelu",
        "hidden_size": AUDIO.dim,
        "intermediate_size": AUDIO.ffn_dim,
        "layer_norm_eps": AUDIO.eps,
        "num_attention_heads": AUDIO.num_heads,
        "num_conv_pos_embedding_groups": AUDIO.position_groups,
        "num_conv_pos_embeddings": AUDIO.position_kernel,
        "num_feat_extract_layers": len(AUDIO.conv_dim),
        "num_hidden_layers": AUDIO.num_layers,
    }


if __name__ == "__main__":
    main()
