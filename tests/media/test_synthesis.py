from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from infinitalk_cli.errors import WeightsError
from infinitalk_cli.media import synthesis
from infinitalk_cli.media.synthesis import Synthesizer, load_kokoro, load_voice
from tests.kokoro_files import tiny_kokoro, write_voice


class Recorder:
    """Speaks a sample for each phoneme and notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int, float]] = []

    def __call__(self, phonemes: str, ref_s: Tensor, speed: float) -> Tensor:
        self.asked.append((phonemes, int(ref_s[0, 0]), speed))
        return torch.rand(len(phonemes))


@pytest.fixture
def as_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every language's phonemes are its letters."""
    monkeypatch.setattr(synthesis, "open_phonemizer", lambda language: lambda text: f"{language}{text}")


STYLES = torch.arange(510.0).view(510, 1, 1).expand(510, 1, 256)
"""A voice whose style for n phonemes holds the number n - 1."""


@pytest.mark.usefixtures("as_letters")
def test_lines_and_long_texts_are_spoken_piece_by_piece_without_pauses() -> None:
    network = Recorder()
    spoken = Synthesizer(network, speed=1.2).speak("Hello.\n\nYou " + "there, " * 90, STYLES, "a")
    assert [(phonemes[:5], style + 1, speed) for phonemes, style, speed in network.asked] == [
        ("aHell", 7, 1.2),
        ("a", 1, 1.2),
        ("aYou ", 508, 1.2),
        ("there", 125, 1.2),
    ]
    assert spoken.dtype == np.float32
    assert len(spoken) == 7 + 1 + 508 + 125


@pytest.mark.usefixtures("as_letters")
def test_same_seed_is_the_same_sound_and_leaves_other_random_numbers_alone() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, second, other = (Synthesizer(Recorder(), seed=seed).speak("Hello there.", STYLES, "a") for seed in (1, 1, 2))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.slow
def test_kokoro_s_own_class_speaks_an_english_sentence(tmp_path: Path) -> None:
    pytest.importorskip("kokoro")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = tiny_kokoro(tmp_path)
        voice = load_voice(write_voice(tmp_path / "af_test.pt"))
        spoken = Synthesizer(network).speak("Hi.", voice, "a")
        fast = Synthesizer(network, speed=2.0).speak("Hi.", voice, "a")
    assert np.isfinite(spoken).all()
    assert spoken.any()
    assert 0.02 < len(spoken) / 24_000 < 1
    assert len(fast) < len(spoken)


@pytest.mark.slow
def test_network_is_loaded_from_its_files_and_an_incomplete_one_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("kokoro")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = tiny_kokoro(tmp_path)
        parts: dict[str, Any] = {
            name: {f"module.{key}": value for key, value in part.state_dict().items()}
            for name, part in network.named_children()
        }
        path = tmp_path / "kokoro-v1_0.pth"
        torch.save(parts, path)
        loaded: Any = load_kokoro(tmp_path / "config.json", path, torch.device("cpu"))
        assert all(torch.equal(value, network.state_dict()[name]) for name, value in loaded.state_dict().items())
        del parts["bert_encoder"]["module.weight"]
        torch.save(parts, path)
        with pytest.raises(WeightsError, match=r"1 tensors are missing, the first bert_encoder.weight"):
            load_kokoro(tmp_path / "config.json", path, torch.device("cpu"))
        path.write_bytes(b"PK broken")
        with pytest.raises(WeightsError, match="is not Kokoro's network"):
            load_kokoro(tmp_path / "config.json", path, torch.device("cpu"))


def test_file_that_is_no_voice_is_refused(tmp_path: Path) -> None:
    torch.save(torch.zeros(3, 4), tmp_path / "small.pt")
    (tmp_path / "text.pt").write_text("no tensor")
    for name in ("small.pt", "text.pt"):
        with pytest.raises(WeightsError, match="is no voice"):
            load_voice(tmp_path / name)
