"""Networks loaded from 8-bit files against the outputs of the original program."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer

from infinitalk_cli.memory.quant import QuantizedLinear, quantize_rows
from infinitalk_cli.memory.tensor_files import open_tensors
from infinitalk_cli.networks import make_text_encoder
from tests.parity.conftest import TinyTree
from tests.parity.dit_pass import load_dit, velocity
from tests.parity.reference import DEVICE, Case, cases, expect_close, manifest, value
from training.random_tree import rule_tensor

DEQUANTISED_ROWS = "dequantised_first_rows_of_"
DTYPES = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}


def quantised_layers(module: torch.nn.Module) -> set[str]:
    return {name for name, part in module.named_modules() if isinstance(part, QuantizedLinear)}


def layers_of_file(case: Case) -> set[str]:
    """The layers that the case's file holds in 8 bits."""
    tensors = manifest()["derived_files"][case.weights["quantised"]]["tensors"]
    return {name.removesuffix(".weight._data") for name in tensors if name.endswith("._data")}


@pytest.mark.parametrize("case", cases("quant", lambda case: "output" in case.expected), ids=repr)
def test_transformer_in_8_bits_equals_the_reference(case: Case, tiny_tree: TinyTree) -> None:
    dit = load_dit(tiny_tree, case)
    assert quantised_layers(dit) == layers_of_file(case)
    expect_close(velocity(dit, case), value(case.expected["output"]), case.tolerance, "velocity")


@pytest.mark.parametrize("case", cases("quant", lambda case: "output" in case.expected), ids=repr)
def test_dequantised_weights_equal_the_reference_bit_for_bit(case: Case, tiny_tree: TinyTree) -> None:
    dit = load_dit(tiny_tree, case)
    probed = {key: form for key, form in case.expected.items() if key.startswith(DEQUANTISED_ROWS)}
    assert probed
    for key, form in probed.items():
        layer = dit.get_submodule(key.removeprefix(DEQUANTISED_ROWS))
        assert isinstance(layer, QuantizedLinear)
        rows = value(form)
        expect_close(layer.dequantized()[: len(rows)], rows, "exact", key)


@pytest.mark.parametrize("case", cases("quant", lambda case: "output" in case.expected), ids=repr)
def test_quantising_the_plain_weights_gives_the_rows_of_the_reference(case: Case) -> None:
    for key, form in case.expected.items():
        if not key.startswith(DEQUANTISED_ROWS):
            continue
        name = key.removeprefix(DEQUANTISED_ROWS) + ".weight"
        entry = next(entry for entry in manifest()["files"].values() if name in entry["tensors"])
        data, scale = quantize_rows(
            rule_tensor(name, entry["seed"], entry["tensors"][name]), DTYPES[case.settings["quant"]]
        )
        rows = value(form)
        expect_close((scale * data.float())[: len(rows)], rows, "exact", name)


@pytest.mark.parametrize("case", cases("quant", lambda case: "embedding" in case.expected), ids=repr)
def test_text_encoder_in_8_bits_equals_the_reference(case: Case, tiny_tree: TinyTree) -> None:
    folder = next(name for name in manifest()["copied_dirs"] if "umt5" in name)
    tokenizer = Tokenizer.from_file(str(tiny_tree.need(folder)[0] / "tokenizer.json"))
    tensors = open_tensors(tiny_tree.need(case.weights["quantised"]))
    encoder = make_text_encoder(tensors, tokenizer, dtype=torch.float32, device=DEVICE)
    assert len(quantised_layers(encoder)) == len(layers_of_file(case))
    expect_close(encoder.encode(case.inputs["prompt"]), value(case.expected["embedding"]), case.tolerance, "embedding")
