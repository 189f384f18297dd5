"""Cleaning, token numbers and the text encoder against the outputs of the original."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer

from infinitalk_cli.memory.tensor_files import open_tensors
from infinitalk_cli.models.encoder_config import TextEncoderConfig
from infinitalk_cli.models.text_encoder import TextEncoder, clean_prompt
from infinitalk_cli.networks import make_text_encoder
from tests.parity.conftest import TinyTree
from tests.parity.reference import DEVICE, Case, cases, expect_close, reference_dir, value


def has_prompt(case: Case) -> bool:
    return "prompt" in case.inputs


@pytest.fixture(scope="module")
def encoder(tiny_tree: TinyTree) -> TextEncoder:
    (published,) = {name for case in cases("text", has_prompt) for name in case.weights.values()}
    tokenizer = Tokenizer.from_file(str(reference_dir() / "tokenizer" / "tokenizer.json"))
    tensors = open_tensors(tiny_tree.need_matching(f"*/{published}"))
    return make_text_encoder(tensors, tokenizer, dtype=torch.float32, device=DEVICE)


@pytest.mark.parametrize("case", cases("text", has_prompt), ids=str)
def test_prompt_is_cleaned_tokenised_and_encoded(case: Case, encoder: TextEncoder) -> None:
    prompt = case.inputs["prompt"]
    assert clean_prompt(prompt) == case.expected["cleaned"]
    assert encoder.tokenize(prompt) == value(case.expected["ids"]).tolist()
    embedding = encoder.encode(prompt)
    assert len(embedding) == case.expected["num_tokens"]
    rows = embedding if case.settings["rows"] == "all" else embedding[case.settings["rows"]]
    expect_close(rows, value(case.expected["embedding_rows"]), case.tolerance, "rows")


@pytest.mark.parametrize("case", cases("text", lambda case: "buckets" in case.expected), ids=str)
def test_relative_positions_fall_into_the_buckets(case: Case) -> None:
    """A bias table that holds each bucket's number makes the network itself tell which bucket it takes."""
    first, last = case.inputs["range"]
    tokenizer = Tokenizer.from_file(str(reference_dir() / "tokenizer" / "tokenizer.json"))
    encoder = TextEncoder(TextEncoderConfig(320, 8, 8, 1, 8, 1), tokenizer)
    attention = encoder.model.encoder.block[0].layer[0].SelfAttention
    with torch.no_grad():
        table = attention.relative_attention_bias.weight
        table.copy_(torch.arange(len(table))[:, None])
        length = max(-first, last) + 1
        bias = attention.compute_bias(length, length)[0, 0]  # (query, key)
    below = bias[-1, length - 1 + first : -1]
    buckets = torch.cat([below, bias[0, : last + 1]]).to(torch.int32)
    expect_close(buckets, value(case.expected["buckets"]), case.tolerance, "buckets")


def test_every_case_of_the_family_is_run() -> None:
    assert all(has_prompt(case) or "buckets" in case.expected for case in cases("text"))
