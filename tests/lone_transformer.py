"""Weight files of which only the transformer's are there."""

from __future__ import annotations

from pathlib import Path

from infinitalk_cli.weights import Quant, WeightFiles

ABSENT = Path("absent")


def lone_transformer(*shards: Path, quant: Quant, config: Path = ABSENT, adapter: Path | None = None) -> WeightFiles:
    """The files of a run that will load its transformer alone."""
    return WeightFiles(
        dit_config=config,
        dit_shards=shards,
        adapter=adapter,
        quant=quant,
        engine="infinitetalk",
        text_encoder=ABSENT,
        text_encoder_quant="none",
        tokenizer=ABSENT,
        image_encoder=ABSENT,
        vae=ABSENT,
        audio_encoder=ABSENT,
        audio_encoder_config=ABSENT,
        audio_preprocessor_config=ABSENT,
    )
