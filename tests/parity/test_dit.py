"""The transformer against the outputs of the original program: velocities, and what block 0 does on the way."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from infinitalk_cli.memory.tensor_files import open_tensors
from infinitalk_cli.models.audio_attention import EmptyMask, SpeakerMasks
from infinitalk_cli.models.config import DiTConfig
from infinitalk_cli.models.dit import DiT
from infinitalk_cli.networks import make_dit
from tests.parity.conftest import TinyTree
from tests.parity.reference import DEVICE, Case, cases, expect_close, full_manifest, manifest, tensor, value

CONTEXT_ROWS = "context_rows_0_256_257_end"
MAP = "block0_reference_map"
MASKS = "ref_target_masks"


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:  # pyright: ignore[reportUnusedFunction]
    with torch.no_grad():
        yield


def load_dit(tree: TinyTree, patterns: list[str]) -> DiT:
    """The transformer of a case: every file in the order of the data, later ones win."""
    paths = [path for pattern in patterns for path in tree.need_matching(pattern)]
    stored = next(entry for entry in manifest()["json_files"].values() if "num_layers" in entry and "ffn_dim" in entry)
    return make_dit(DiTConfig.from_json(stored), open_tensors(paths), dtype=torch.float32, device=DEVICE)


def is_empty_on_tokens(case: Case) -> bool:
    """Whether a mask of a two-speaker pass has no token; there the reference program divides by zero."""
    masks = torch.from_numpy(value(case.inputs[MASKS]))
    members = SpeakerMasks.from_latent_grid(masks, (1, 2, 2), "zero").members
    return value(case.inputs["audio"]).shape[0] == 2 and bool((members.sum(dim=0) == 0).any())


def run(dit: DiT, case: Case, empty_mask: EmptyMask) -> dict[str, Tensor]:
    """One pass with the inputs of a case: the velocity and what block 0 saw and gave, by the names of the data."""
    given = {name: tensor(form) for name, form in case.inputs.items()}
    t = torch.tensor(case.settings["t"])
    context, audio_tokens = dit.embed_context(given["context"], given["clip_fea"]), dit.embed_audio(given["audio"])
    seen = {"audio_tokens": audio_tokens, "time_e0": dit.embed_time(t)[1]}
    rows = torch.cat((context.image, context.text), dim=1)[0]
    last = 256 + given["context"].shape[0]  # of the text; padding follows
    seen[CONTEXT_ROWS] = rows[[0, 256, 257, last, min(last + 1, len(rows) - 1), -1]]
    with Recorder(dit, seen):
        seen["output"] = dit(
            given["x"][None],
            given["y"],
            t,
            context,
            audio_tokens,
            speaker_masks=given[MASKS],
            empty_mask=empty_mask,
        )[0]
    return seen


class Recorder:
    """Notes what enters and leaves block 0 and its attentions."""

    def __init__(self, dit: DiT, seen: dict[str, Tensor]) -> None:
        self.block = dit.get_submodule("blocks.0")
        self.seen = seen

    def __enter__(self) -> None:
        names = {"cross_attn": "block0_text_image_attn", "audio_cross_attn": "block0_audio_attn"}
        self.handles = [self.block.register_forward_hook(self._note_block)]
        self.handles.append(self.block.get_submodule("self_attn").register_forward_hook(self._note_self_attention))
        for part, name in names.items():
            note = self._note(name)
            self.handles.append(self.block.get_submodule(part).register_forward_hook(note))

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _note_block(self, _: Any, args: tuple[Any, ...], output: Tensor) -> None:
        self.seen.update(block0_input=args[0], block0_output=output)

    def _note_self_attention(self, _: Any, __: Any, output: tuple[Tensor, Tensor | None]) -> None:
        self.seen["block0_self_attn"] = output[0]
        if output[1] is not None:
            self.seen[MAP] = output[1]

    def _note(self, name: str) -> Any:
        def note(_: Any, __: Any, output: Tensor) -> None:
            self.seen[name] = output

        return note


def stored_arrays(case: Case) -> Mapping[str, Any]:
    return {name: form for name, form in case.expected.items() if isinstance(form, dict)}


@pytest.mark.parametrize("case", cases("dit"), ids=repr)
def test_pass_equals_the_reference(case: Case, tiny_tree: TinyTree) -> None:
    dit = load_dit(tiny_tree, case.weights["dit"])
    seen = run(dit, case, "nan" if is_empty_on_tokens(case) else "zero")
    if MAP in case.expected and MAP not in seen:  # one zero-audio speaker: the original maps all the same, and drops it
        seen[MAP] = map_with_two_speakers(dit, case)
    for name, form in stored_arrays(case).items():
        expected, actual = value(form), seen[name].cpu().numpy()
        # A mask without a token makes its map NaN in the original; the places must agree.
        assert np.array_equal(np.isnan(actual), np.isnan(expected)), name
        expect_close(np.nan_to_num(actual), np.nan_to_num(expected), case.tolerance, name)


def map_with_two_speakers(dit: DiT, case: Case) -> Tensor:
    """Block 0's map does not hear the audio, so the same speaker twice shows it."""
    audio = value(case.inputs["audio"])
    twice = {**case.inputs, "audio": {"zeros": [2, *audio.shape[1:]]}}
    return run(dit, Case(case.id, case.family, {**case.data, "inputs": twice}), "zero")[MAP]


@pytest.mark.parametrize("case", cases("dit", is_empty_on_tokens), ids=repr)
def test_mask_without_a_token_has_a_map_of_zero_by_default(case: Case, tiny_tree: TinyTree) -> None:
    # The original's NaN wins the argmax and every token of the picture becomes background: both speakers go unheard.
    seen = run(load_dit(tiny_tree, case.weights["dit"]), case, "zero")
    expected = np.nan_to_num(value(case.expected[MAP]), nan=0.0)
    expect_close(seen[MAP], expected, case.tolerance, MAP)
    assert torch.isfinite(seen["output"]).all()
    difference = np.abs(seen["output"].cpu().numpy() - value(case.expected["output"])).max()
    assert difference > 10 * case.tolerance["atol"], "the speakers are still unheard"


def test_some_case_reaches_every_part_of_the_block() -> None:
    named = {name for case in cases("dit") for name in stored_arrays(case)}
    assert {"output", "block0_output", "block0_self_attn", "audio_tokens", CONTEXT_ROWS, MAP} <= named


def published_tensors(file: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a published file, with `{a..b}` written out."""
    written: dict[str, tuple[int, ...]] = {}
    for name, (_, shape) in full_manifest()["files"][file]["tensors"].items():
        span = re.search(r"\{(\d+)\.\.(\d+)\}", name)
        indices = range(int(span[1]), int(span[2]) + 1) if span else [0]
        for index in indices:
            written[re.sub(r"\{.*\}", str(index), name)] = tuple(shape)
    return written


ADAPTERS = [
    file
    for file, entry in full_manifest()["files"].items()
    if any("audio_proj" in name for name in entry["tensors"]) and "patch_embedding.weight" not in entry["tensors"]
]


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_base_and_adapter_are_exactly_the_tensors_of_the_model(adapter: str) -> None:
    files = full_manifest()["files"]
    base = next(file for file, entry in files.items() if "patch_embedding.weight" in entry["tensors"] and "{" in file)
    config = next(entry for entry in full_manifest()["configs"].values() if "ffn_dim" in entry)
    with torch.device("meta"):
        ours = {name: tuple(t.shape) for name, t in DiT(DiTConfig.from_json(config)).state_dict().items()}
    assert ours == published_tensors(base) | published_tensors(adapter)
