"""UMT5's encoder: a prompt to one vector per token.

The network is `transformers`' class, imported when the first encoder is built. Two things are ours on purpose. The
tokenizer is `tokenizers.Tokenizer`, read from `tokenizer.json` by the caller: the library's own loader takes seconds.
And the token table is looked up here instead of through the library's tied copy, which some versions fail to tie:
`model.shared.weight` is the only table, so nothing depends on how a version shares it.

A prompt is encoded at its own length. Padding would be masked in every layer and cut off again, so the rows are the
same and a short prompt costs little.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import Any

import ftfy
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from infinitalk_cli.models.encoder_config import TextEncoderConfig


def clean_prompt(text: str) -> str:
    """Repair broken characters, resolve HTML entities (also doubly escaped ones) and collapse white space.

    Full-width punctuation and curly quotes become plain ones; letters keep their case.
    """
    repaired = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", repaired).strip()


class TextEncoder(nn.Module):
    """UMT5's encoder with its tokenizer. `model` is the library's `UMT5EncoderModel` without the tied table."""

    def __init__(self, config: TextEncoderConfig, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.config = config
        self.model = build_umt5(config)
        self.tokenizer = tokenizer
        # Truncation counts the end token, so an overlong prompt keeps it.
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(config.text_len)
        self.eval()

    def tokenize(self, prompt: str) -> list[int]:
        """Token numbers of the cleaned prompt, the end token last, at most `text_len`."""
        return self.tokenizer.encode(clean_prompt(prompt)).ids

    @torch.no_grad()
    def encode(self, prompt: str) -> Tensor:
        """Encode a prompt, which may be empty: `(L, dim)` in the dtype of the weights, L the number of tokens."""
        return self.encode_ids(self.tokenize(prompt))

    @torch.no_grad()
    def encode_ids(self, ids: Sequence[int]) -> Tensor:
        """Encode a prompt that was tokenized."""
        table = self.model.shared
        vectors = table(torch.tensor([ids], device=table.weight.device))
        return self.model.encoder(inputs_embeds=vectors).last_hidden_state[0]


def build_umt5(config: TextEncoderConfig) -> Any:
    """Build the library's encoder on the current default device (`meta` leaves it empty)."""
    from transformers.models.umt5.configuration_umt5 import UMT5Config
    from transformers.models.umt5.modeling_umt5 import UMT5EncoderModel

    model: Any = UMT5EncoderModel(
        UMT5Config(
            vocab_size=config.vocab_size,
            d_model=config.dim,
            d_kv=config.head_dim,
            d_ff=config.ffn_dim,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            relative_attention_num_buckets=config.num_buckets,
            relative_attention_max_distance=config.max_distance,
            layer_norm_epsilon=config.eps,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
        )
    )
    model.encoder.embed_tokens = None  # the tied copy; see the module's note
    return model
