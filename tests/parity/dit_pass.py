"""One pass of a transformer loaded from the files of a case, as the runner would load it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from infinitalk_cli.memory.lora import Lora, LoraReport
from infinitalk_cli.models.dit import DiT
from infinitalk_cli.networks import build_dit
from infinitalk_cli.weights import WeightFiles
from tests.lone_transformer import lone_transformer
from tests.parity.conftest import TinyTree
from tests.parity.reference import DEVICE, Case, manifest, tensor


def load_dit(
    tree: TinyTree,
    case: Case,
    *,
    dtype: torch.dtype = torch.float32,
    loras: Sequence[Lora] = (),
    beside: bool = False,
    only_reference_keys: bool = False,
    reports: list[LoraReport] | None = None,
) -> DiT:
    """The transformer of a case; `reports` is filled with what the LoRAs did."""
    return build_dit(
        dit_files(tree, case),
        dtype=dtype,
        device=DEVICE,
        loras=loras,
        beside=beside,
        only_reference_keys=only_reference_keys,
        on_lora=None if reports is None else reports.append,
    )


def dit_files(tree: TinyTree, case: Case) -> WeightFiles:
    """The transformer's files of a case: base and adapter, or the one 8-bit file. The other networks' are not there."""
    names = [case.weights["quantised"]] if "quantised" in case.weights else _shards(case.weights["base"])
    adapter = case.weights.get("adapter")
    return lone_transformer(
        *tree.need(*names),
        quant=case.settings.get("quant", "none"),
        config=tree.need(_dit_config())[0],
        adapter=tree.need(adapter)[0] if adapter else None,
    )


def _shards(folder: str) -> list[str]:
    return [name for name in manifest()["files"] if name.startswith(folder) and name.endswith(".safetensors")]


def _dit_config() -> str:
    """The one json file that describes a transformer."""
    return next(name for name, content in manifest()["json_files"].items() if "ffn_dim" in content)


@torch.no_grad()
def velocity(dit: DiT, case: Case) -> Tensor:
    """The output for the inputs of a case, `(16, T, h, w)`."""
    given = {name: tensor(form) for name, form in case.inputs.items()}
    return dit(
        given["x"][None],
        given["y"],
        torch.tensor(case.settings["t"]),
        dit.embed_context(given["context"], given["clip_fea"]),
        dit.embed_audio(given["audio"]),
        speaker_masks=given["ref_target_masks"],
    )[0]
