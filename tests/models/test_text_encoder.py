"""Cleaning of prompts, token numbers, and the text encoder against the library's own class with padding."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer
from transformers.models.umt5.configuration_umt5 import UMT5Config
from transformers.models.umt5.modeling_umt5 import UMT5EncoderModel

from infinitalk_cli.models.encoder_config import TextEncoderConfig
from infinitalk_cli.models.text_encoder import TextEncoder, clean_prompt
from tests.models.published import published_shapes
from tests.parity.reference import reference_dir

SMALL = TextEncoderConfig(
    vocab_size=320, dim=16, ffn_dim=24, num_heads=2, head_dim=8, num_layers=2, text_len=24, num_buckets=32
)
END = 1


def make_encoder() -> TextEncoder:
    torch.manual_seed(0)
    return TextEncoder(SMALL, Tokenizer.from_file(str(reference_dir() / "tokenizer" / "tokenizer.json")))


@pytest.mark.parametrize(
    "prompt, cleaned",
    [
        ("  a \t b\n\nc ", "a b c"),
        ("&amp;lt;tag&amp;gt; Tom &amp; Jerry", "<tag> Tom & Jerry"),
        ("“curly” it’s", '"curly" it\'s'),
        ("说话，好。", "说话,好。"),
        ("cafÃ©", "café"),
        ("Keeps CASE, and: punctuation!", "Keeps CASE, and: punctuation!"),
        ("", ""),
        (" \n ", ""),
    ],
)
def test_prompt_is_cleaned(prompt: str, cleaned: str) -> None:
    assert clean_prompt(prompt) == cleaned


def test_empty_prompt_is_the_end_token_alone() -> None:
    encoder = make_encoder()
    assert encoder.tokenize("") == [END]
    assert encoder.encode("").shape == (1, SMALL.dim)


def test_overlong_prompt_is_cut_and_keeps_its_end_token() -> None:
    encoder = make_encoder()
    ids = encoder.tokenize("the speaker smiles and keeps talking " * 9)
    assert len(ids) == SMALL.text_len
    assert ids[-1] == END
    assert END not in ids[:-1]


def test_rows_are_those_of_a_padded_and_masked_batch() -> None:
    encoder = make_encoder()
    ids = encoder.tokenize("a woman sings")
    padded = torch.zeros(1, SMALL.text_len, dtype=torch.long)
    padded[0, : len(ids)] = torch.tensor(ids)
    library = UMT5EncoderModel(
        UMT5Config(vocab_size=320, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, dropout_rate=0.0)
    ).eval()
    missing, unexpected = library.load_state_dict(encoder.model.state_dict(), strict=False)
    assert set(missing) <= {"encoder.embed_tokens.weight"}
    assert not unexpected
    library.encoder.embed_tokens = library.shared
    with torch.no_grad():
        expected = library(input_ids=padded, attention_mask=(padded != 0).long()).last_hidden_state[0, : len(ids)]
    torch.testing.assert_close(encoder.encode("a woman sings"), expected, atol=1e-5, rtol=1e-5)


def test_encoding_repeats_exactly() -> None:
    encoder = make_encoder()
    assert torch.equal(encoder.encode("a man talks"), encoder.encode("a man talks"))


def test_published_file_gives_the_published_sizes() -> None:
    config = TextEncoderConfig.from_shapes(published_shapes("models_t5"))
    assert config == TextEncoderConfig(256384, 4096, 10240, 64, 64, 24)


def test_published_sizes_build_without_memory_and_with_one_token_table() -> None:
    tokenizer = Tokenizer.from_file(str(reference_dir() / "tokenizer" / "tokenizer.json"))
    with torch.device("meta"):
        encoder = TextEncoder(TextEncoderConfig.from_shapes(published_shapes("models_t5")), tokenizer)
    state = encoder.state_dict()
    assert all(tensor.is_meta for tensor in state.values())
    assert sum(tensor.numel() for tensor in state.values()) == 5_680_910_336
    assert [name for name, tensor in state.items() if tensor.shape[0] == 256384] == ["model.shared.weight"]
