"""The sizes of a transformer that a test can compute in milliseconds."""

from infinitalk_cli.models.config import DiTConfig

TINY = DiTConfig(
    dim=64,
    ffn_dim=96,
    freq_dim=32,
    num_heads=2,
    num_layers=2,
    text_len=8,
    text_dim=12,
    image_dim=20,
    audio_layers=3,
    audio_dim=4,
    audio_hidden_dim=10,
    audio_token_dim=16,
    audio_tokens=4,
)
