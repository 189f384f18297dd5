"""LoRA files applied to the transformer, against the outputs of the original program.

The original drops parts of some files without a word: names other than lora_down, lora_up, diff and diff_b, keys
without the prefix, alpha. Whether a case needs the switch that does the same is decided by the names in its files.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from infinitalk_cli.memory.lora import Lora, LoraReport, read_lora
from tests.parity.conftest import TinyTree
from tests.parity.dit_pass import load_dit, velocity
from tests.parity.reference import Case, cases, expect_close, manifest, value

PREFIX = "diffusion_model."
APPLIED_BY_THE_ORIGINAL = (".lora_down.weight", ".lora_up.weight", ".diff", ".diff_b")
PROBE_TOLERANCE = {"atol": 1e-6, "rtol": 1e-6}  # one float32 sum


def lora_names(case: Case) -> list[str]:
    """The tensor names of all LoRA files of a case."""
    files = [entry["file"] for entry in case.settings.get("lora", ())]
    return [name for file in files for name in manifest()["files"][file]["tensors"]]


def holds_what_the_original_drops(case: Case) -> bool:
    return any(
        not name.startswith(PREFIX) or not name.endswith(APPLIED_BY_THE_ORIGINAL) or not partner_is_there(name, case)
        for name in lora_names(case)
    )


def partner_is_there(name: str, case: Case) -> bool:
    """Whether both halves of a pair are in the files; true for what is no pair."""
    swapped = {"lora_down": "lora_up", "lora_up": "lora_down", "lora_A": "lora_B", "lora_B": "lora_A"}
    return all(name.replace(half, other) in lora_names(case) for half, other in swapped.items() if half in name)


def loras_of(case: Case, tree: TinyTree) -> list[Lora]:
    return [read_lora(tree.need(entry["file"])[0], entry["scale"]) for entry in case.settings.get("lora", ())]


@pytest.mark.parametrize("case", cases("lora"), ids=repr)
def test_lora_equals_the_reference(case: Case, tiny_tree: TinyTree) -> None:
    drops = holds_what_the_original_drops(case)
    dit = load_dit(tiny_tree, case, loras=loras_of(case, tiny_tree), only_reference_keys=drops)
    for name, form in case.expected.get("probe_weights_first_row", {}).items():
        parameter = dit.get_parameter(name)
        row = parameter if parameter.ndim == 1 else parameter[0]
        expect_close(row, value(form), PROBE_TOLERANCE, name)
    expect_close(velocity(dit, case), value(case.expected["output"]), case.tolerance, "velocity")


@pytest.mark.parametrize("case", cases("lora"), ids=repr)
def test_lora_beside_the_weights_equals_the_reference(case: Case, tiny_tree: TinyTree) -> None:
    drops = holds_what_the_original_drops(case)
    dit = load_dit(tiny_tree, case, loras=loras_of(case, tiny_tree), beside=True, only_reference_keys=drops)
    expect_close(velocity(dit, case), value(case.expected["output"]), case.tolerance, "velocity")


@pytest.mark.parametrize("case", cases("lora", lambda case: not holds_what_the_original_drops(case)), ids=repr)
def test_every_tensor_of_a_usual_file_takes_effect(case: Case, tiny_tree: TinyTree) -> None:
    reports: list[LoraReport] = []
    load_dit(tiny_tree, case, loras=loras_of(case, tiny_tree), reports=reports)
    assert [report.skipped for report in reports] == [()] * len(reports)
    assert sum(report.num_matched for report in reports) == len(lora_names(case))


@pytest.mark.parametrize("case", cases("lora", holds_what_the_original_drops), ids=repr)
def test_what_the_original_drops_is_applied_by_default(case: Case, tiny_tree: TinyTree) -> None:
    plain = load_dit(tiny_tree, case)
    reports: list[LoraReport] = []
    dit = load_dit(tiny_tree, case, loras=loras_of(case, tiny_tree), reports=reports)
    expected = {name: parameter.clone() for name, parameter in plain.named_parameters()}
    for lora in loras_of(case, tiny_tree):
        add_by_hand(expected, lora)
    for name, parameter in dit.named_parameters():
        torch.testing.assert_close(parameter, expected[name], atol=1e-6, rtol=1e-6, msg=name)
    unpaired = {name for name in lora_names(case) if not partner_is_there(name, case)}
    assert {tensor.name for report in reports for tensor in report.skipped} == unpaired
    difference = velocity(dit, case).cpu() - torch.from_numpy(value(case.expected["output"]))
    assert difference.abs().max() > 10 * case.tolerance["atol"]


def add_by_hand(weights: dict[str, Tensor], lora: Lora) -> None:
    """The whole file, by its definition: weight += scale * alpha / rank * up @ down, and so on."""
    found = {name.removeprefix(PREFIX): ref.load().to(weights["head.modulation"]) for name, ref in lora.tensors.items()}
    for name, down in found.items():
        for half, other in (("lora_down", "lora_up"), ("lora_A", "lora_B")):
            up = found.get(name.replace(half, other))
            if name.endswith(f".{half}.weight") and up is not None:
                layer = name.removesuffix(f".{half}.weight")
                strength = found.get(f"{layer}.alpha", torch.tensor(float(len(down)))).item() / len(down)
                weights[f"{layer}.weight"] += lora.scale * strength * (up @ down)
        for ending, parameter in ((".diff_m", ".modulation"), (".diff_b", ".bias"), (".diff", ".weight")):
            if name.endswith(ending):
                weights[name.removesuffix(ending) + parameter] += lora.scale * down
