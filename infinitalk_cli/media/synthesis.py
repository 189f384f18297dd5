"""Speech from text by Kokoro, an optional package: a line of text in, 24 kHz mono samples out.

A text is cut at its line breaks, each line becomes phonemes, and these are spoken in pieces that the network takes,
one after the other without a pause, as in the reference programs. The network's noise comes from a seed, so that the
same text is the same sound.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from infinitalk_cli.errors import EnvironmentUnfitError, WeightsError
from infinitalk_cli.media.phonemes import Phonemizer, open_phonemizer, pieces

SYNTHESIS_RATE = 24_000
"""Samples a second that the synthesis makes."""

Samples = npt.NDArray[np.float32]


class Kokoro(Protocol):
    """`kokoro.KModel`: phonemes, a style `(1, 256)` and a speed to samples `(n,)`."""

    def __call__(self, phonemes: str, ref_s: Tensor, speed: float) -> Tensor: ...


class Synthesizer:
    """Speaks with one network in any number of voices."""

    def __init__(self, network: Kokoro, *, speed: float = 1.0, seed: int = 0) -> None:
        """`speed`: 2.0 is twice as fast. `seed`: of the noise in the voice."""
        self._network = network
        self._speed = speed
        self._seed = seed
        self._phonemizer = lru_cache(maxsize=None)(open_phonemizer)

    def speak(self, text: str, voice: Tensor, language: str) -> Samples:
        """Speak a text.

        Args: voice: `(510, 1, 256)`, a style for each number of phonemes. language: a letter of `voices.LANGUAGES`.
        Returns: `(n,)` at `SYNTHESIS_RATE`; nothing if the text has nothing to say.
        Raises: EnvironmentUnfitError: if a package that the language needs is missing.
        """
        phonemizer: Phonemizer = self._phonemizer(language)
        spoken = [self._piece(piece, voice) for line in text.splitlines() for piece in pieces(phonemizer(line))]
        return np.concatenate([np.zeros(0, np.float32), *spoken])

    @torch.no_grad()
    def _piece(self, phonemes: str, voice: Tensor) -> Samples:
        style = voice[min(len(phonemes), len(voice)) - 1]
        with torch.random.fork_rng():
            torch.manual_seed(self._seed)
            return self._network(phonemes, style, self._speed).float().cpu().numpy().reshape(-1)


def load_kokoro(config: Path, network: Path, device: torch.device) -> Kokoro:
    """Kokoro with its weights.

    Raises: EnvironmentUnfitError: if the package does not start. WeightsError: if the files are damaged or of another
    network.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, about the network's own old-fashioned layers
            kokoro: Any = importlib.import_module("kokoro")  # optional: type checkers may not find it
            model = kokoro.KModel(repo_id="local", config=str(config), model=str(network))
    except ImportError as error:
        raise EnvironmentUnfitError(
            f"kokoro does not start: {error}", hint='pip install "infinitalk-cli[tts]"'
        ) from error
    except Exception as error:  # whatever torch and the package make of a damaged file
        raise _unusable(network, str(error).splitlines()[0] if str(error) else type(error).__name__) from error
    refuse_unloaded(model, network)
    return model.to(device).eval()


def refuse_unloaded(model: nn.Module, network: Path) -> None:
    """The package passes over tensors that it does not find. Raises: WeightsError: if a matrix is among them.

    The published file leaves out vectors that a plain start has right: scales of 1 and offsets of 0.
    """
    stored: dict[str, dict[str, Any]] = torch.load(network, map_location="cpu", weights_only=True, mmap=True)
    there = {f"{part}.{name.removeprefix('module.')}" for part, tensors in stored.items() for name in tensors}
    missing = sorted(name for name, value in model.state_dict().items() if value.ndim > 1 and name not in there)
    if missing:
        raise _unusable(network, f"{len(missing)} tensors are missing, the first {missing[0]}")


def load_voice(path: Path) -> Tensor:
    """A voice's styles `(n, 1, 256)`. Raises: WeightsError: if the file holds something else."""
    try:
        voice: object = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever torch makes of a damaged file
        raise WeightsError(
            f"{path} is no voice: {type(error).__name__}", hint="fetch it again: talk download --tts"
        ) from error
    if not isinstance(voice, Tensor) or voice.ndim != 3 or voice.shape[1:] != (1, 256):
        raise WeightsError(f"{path} is no voice of Kokoro", hint="fetch it again: talk download --tts")
    return voice.float()


def _unusable(network: Path, why: str) -> WeightsError:
    return WeightsError(
        f"{network} is not Kokoro's network: {why}", hint="fetch it again: talk download --only tts --tts"
    )


def join(parts: Sequence[Samples], pause_s: float) -> Samples:
    """Parts with a pause between each two."""
    pause = np.zeros(round(pause_s * SYNTHESIS_RATE), np.float32)
    spaced = [piece for part in parts for piece in (pause, part)][1:]
    return np.concatenate(spaced) if spaced else np.zeros(0, np.float32)
