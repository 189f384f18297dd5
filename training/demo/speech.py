"""Synthetic speech: a corpus from espeak-ng, what it means for a mouth, and what may lie under it.

`python -m training.demo.speech OUT.npz --clips 140` makes clips of 12 s: phrases of several languages and voices with
pauses, at the loudness that `talk` gives speech, in 8 bits (mu-law). Needs the program espeak-ng.

How far a mouth is open is a plain function of the sound, `mouth_opening`; the networks are trained on it and the tests
measure it in the videos. Everything but the making of the corpus runs in batches on any device.
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import wave
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

RATE = 16_000
FPS = 25
HOP = RATE // FPS
CLIP_S = 12
MU = 255.0

LOUD = 0.13
"""Root mean square of a sound that opens the mouth fully, for speech at -23 LUFS."""
EXPONENT = 0.75
ACTIVE_RMS = 0.055
"""Of speech at -23 LUFS, pauses left out."""

LOW_HZ, WIDE_HZ = 500.0, 2300.0
"""Spectral centroids that make the mouth narrow and wide."""

VOICES = (
    *(f"en-us+{kind}" for kind in ("m1", "m3", "m5", "m7", "f1", "f2", "f4", "steph", "edward")),
    *(f"en-gb+{kind}" for kind in ("m2", "m4", "m6", "f1", "f3", "linda", "max")),
    *("de+m1", "de+f2", "de+m7", "fr-fr+m3", "fr-fr+f4", "es+m2", "es+f1", "it+m4", "it+f3", "pt-br+m6", "pt-br+f2"),
    *("nl+m5", "nl+f4", "pl+m3", "pl+f1", "sv+m1", "sv+f3", "ru+m2", "ru+f4", "tr+f2", "fi+m6", "hu+f1", "cs+m4"),
)
HELD_OUT_VOICES = ("en-us+f3", "en-gb+m3", "en-us+m8", "en-gb+f5", "ro+m5")
"""Never trained on."""

WORD_LIST = (
    "a the my your our this that every little old quiet bright morning evening garden window river mountain letter "
    "story picture voice music summer winter house kitchen table bread water silver paper people children friend "
    "teacher doctor captain moment minute always never sometimes again slowly quickly gently yesterday tomorrow "
    "open close carry follow remember forget believe answer question begin finish travel listen speak whisper laugh "
    "sing walk run wait dream choose build paint write read give take bring hello good bye yes no maybe please thank "
    "you and or but because although while before after under over between through beyond beautiful important "
    "possible simple strange familiar seven eleven twenty hundred thousand mama papa bobby bumble mellow power"
)


@dataclass(frozen=True)
class Corpus:
    """Clips of speech. `codes`: `(n, CLIP_S * RATE)` mu-law, 8 bits."""

    codes: NDArray[np.uint8]

    @classmethod
    def load(cls, path: Path) -> Corpus:
        with np.load(path) as stored:
            return cls(stored["codes"])

    def waveforms(self, device: torch.device) -> Tensor:
        """`(n, samples)` float32."""
        levels = torch.from_numpy(self.codes).to(device).float() / MU * 2 - 1
        return levels.sign() * ((1 + MU) ** levels.abs() - 1) / MU


def mouth_opening(waveforms: Tensor) -> Tensor:
    """How far the mouth is open in every video frame: the smoothed loudness, compressed.

    Args: waveforms: `(B, samples)` at 16 kHz, levelled to -23 LUFS. Returns: `(B, samples // 640)` in [0, 1].
    """
    num_frames = waveforms.shape[1] // HOP
    window = torch.hann_window(2 * HOP, device=waveforms.device, dtype=waveforms.dtype)
    window = (window / window.sum())[None, None]
    power = F.conv1d(F.pad(waveforms.square()[:, None], (HOP // 2, HOP)), window, stride=HOP)[:, 0, :num_frames]
    opening = (power.clamp_min(0).sqrt() / LOUD).clamp(0, 1) ** EXPONENT
    return smoothed(opening)


def mouth_width(waveforms: Tensor) -> Tensor:
    """How wide the mouth is, from 0 (round) to 1: by the centre of the spectrum; a half where it is quiet.

    Args and returns as for `mouth_opening`.
    """
    num_frames = waveforms.shape[1] // HOP
    window = torch.hann_window(2 * HOP, device=waveforms.device, dtype=waveforms.dtype)
    padded = F.pad(waveforms, (HOP // 2, HOP))
    spectrum = torch.fft.rfft(padded.unfold(1, 2 * HOP, HOP)[:, :num_frames] * window).abs()
    hertz = torch.fft.rfftfreq(2 * HOP, 1 / RATE).to(spectrum)
    spectrum = spectrum * ((hertz > 200) & (hertz < 4500))
    centre = (spectrum * hertz).sum(-1) / spectrum.sum(-1).clamp_min(1e-6)
    width = ((centre - LOW_HZ) / (WIDE_HZ - LOW_HZ)).clamp(0, 1)
    voiced = (spectrum.square().mean(-1).sqrt() / 0.5).clamp(0, 1)
    return smoothed(0.5 + (width - 0.5) * voiced)


def smoothed(values: Tensor) -> Tensor:
    """`(B, n)` after a filter of three taps."""
    taps = torch.tensor([0.25, 0.5, 0.25], device=values.device, dtype=values.dtype)[None, None]
    return F.conv1d(F.pad(values[:, None], (1, 1), mode="replicate"), taps)[:, 0]


def disturbed(clean: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Speech as it may reach the encoder: other speed, loudness by part, silence, tone, music, noise.

    Args: clean: `(B, samples)`. Returns: what is heard, and the speech in it alone, both `(B, samples)`.
    """
    speech = with_changed_speed(clean, generator) * with_loudness(clean, generator)
    heard = with_tone(speech, generator)
    peak = music(heard, generator) * uniform(generator, heard, 0.004, 0.03)
    hiss = torch.randn(heard.shape, generator=generator, device=heard.device) * 10 ** uniform(
        generator, heard, -4, -2.6
    )
    has_music, has_hiss = chance(generator, heard, 0.35), chance(generator, heard, 0.5)
    gain = levelling_gain(speech)
    return (heard + has_music * peak + has_hiss * hiss) * gain, speech * gain


def levelling_gain(speech: Tensor) -> Tensor:
    """The factor `(B, 1)` that brings speech to the usual loudness, pauses left out; 1 for silence."""
    power = speech[:, : speech.shape[1] // HOP * HOP].unflatten(1, (-1, HOP)).square().mean(-1)
    loud = (power > 0.1 * power.mean(1, keepdim=True)).float()
    active = ((power * loud).sum(1) / loud.sum(1).clamp_min(1)).sqrt()[:, None]
    return torch.where(active > 1e-4, ACTIVE_RMS / active.clamp_min(1e-4), 1.0).clamp(0.2, 5)


def uniform(generator: torch.Generator, like: Tensor, low: float, high: float) -> Tensor:
    """`(B, 1)` random numbers."""
    return low + (high - low) * torch.rand(like.shape[0], 1, generator=generator, device=like.device)


def chance(generator: torch.Generator, like: Tensor, share: float) -> Tensor:
    """`(B, 1)` ones and zeros."""
    return (torch.rand(like.shape[0], 1, generator=generator, device=like.device) < share).float()


def with_changed_speed(waveforms: Tensor, generator: torch.Generator) -> Tensor:
    """Another speed and pitch, from another moment on; what is past the end comes from the start."""
    length = waveforms.shape[1]
    speed, start = uniform(generator, waveforms, 0.85, 1.15), uniform(generator, waveforms, 0, length)
    places = (start + speed * torch.arange(length, device=waveforms.device)) % (length - 1)
    low = places.long()
    return torch.lerp(waveforms.gather(1, low), waveforms.gather(1, low + 1), places - low)


def with_loudness(waveforms: Tensor, generator: torch.Generator) -> Tensor:
    """A gain `(B, samples)` that changes every few seconds; sometimes silence in a half, sometimes throughout."""
    batch, length = waveforms.shape
    levels = 10 ** (-0.5 * torch.rand(batch, 1, 7, generator=generator, device=waveforms.device).square())
    gain = F.interpolate(levels, size=length, mode="linear", align_corners=True)[:, 0]
    edge = uniform(generator, waveforms, 0.2, 0.8)
    place = torch.arange(length, device=waveforms.device) / length
    before, after = chance(generator, waveforms, 0.08), chance(generator, waveforms, 0.08)
    gain = gain * (1 - before * (place < edge)) * (1 - after * (place >= edge))
    return gain * (1 - chance(generator, waveforms, 0.03))


def with_tone(waveforms: Tensor, generator: torch.Generator) -> Tensor:
    """Brighter or darker, as rooms and microphones are."""
    tilt = uniform(generator, waveforms, -0.35, 0.35)
    tilted = waveforms - tilt * F.pad(waveforms, (1, 0))[:, :-1]
    return tilted / (1 + tilt.square()).sqrt()


def music(like: Tensor, generator: torch.Generator) -> Tensor:
    """Chords of four tones, one a half second, each dying away; of root mean square about 1."""
    batch, length = like.shape
    time = torch.arange(length, device=like.device) / RATE
    beat = (time * 2).long()
    total = torch.zeros_like(like)
    for _ in range(4):
        notes = torch.randint(0, 30, (batch, int(beat[-1]) + 1), generator=generator, device=like.device)
        hertz = (110 * 2 ** (notes / 12)).gather(1, beat.expand(batch, -1))
        phase = 2 * torch.pi * hertz * time
        total += (phase.sin() + 0.4 * (2 * phase).sin()) * torch.exp(-3 * (time * 2 - beat))
    return total


def make_clip(rng: np.random.Generator, voices: tuple[str, ...]) -> NDArray[np.uint8]:
    """A clip of one voice: phrases of some words, pauses, changes of loudness; mu-law codes."""
    from infinitalk_cli.media.loudness import LoudnessMeter

    voice = voices[rng.integers(len(voices))]
    pieces: list[NDArray[np.float32]] = [np.zeros(int(rng.uniform(0, 0.8) * RATE), np.float32)]
    while sum(map(len, pieces)) < CLIP_S * RATE:
        text = " ".join(rng.choice(WORD_LIST.split(), rng.integers(2, 10)))
        spoken = speak(text, voice, speed=int(rng.integers(115, 205)), pitch=int(rng.integers(25, 75)))
        pieces.append(spoken * np.float32(10 ** (-rng.uniform(0, 8) / 20)))
        pause_s = rng.uniform(0.05, 0.4) if rng.random() < 0.45 else rng.uniform(0.4, 1.5)
        pieces.append(np.zeros(int(pause_s * RATE), np.float32))
    samples = np.concatenate(pieces)[: CLIP_S * RATE]
    meter = LoudnessMeter(RATE)
    meter.add(samples)
    samples = samples * np.float32(10 ** ((-23 - meter.integrated()) / 20))
    levels = np.sign(samples) * np.log1p(MU * np.abs(samples).clip(max=1)) / np.log1p(MU)
    return ((levels + 1) / 2 * MU).round().astype(np.uint8)


def speak(text: str, voice: str, *, speed: int = 150, pitch: int = 50) -> NDArray[np.float32]:
    """A text in a voice of espeak-ng, at 16 kHz. Raises: SystemExit: if the program is not there."""
    import soxr

    program = shutil.which("espeak-ng")
    if program is None:
        raise SystemExit("espeak-ng is not installed: apt-get install espeak-ng")
    arguments = [program, "-v", voice, "-s", str(speed), "-p", str(pitch), "--stdout", text]
    stored = subprocess.run(arguments, check=True, capture_output=True).stdout
    with wave.open(io.BytesIO(stored)) as reader:
        rate, data = reader.getframerate(), reader.readframes(1 << 30)
    samples = np.frombuffer(data[: len(data) // 2 * 2], "<i2").astype(np.float32) / 32768
    return soxr.resample(samples, rate, RATE).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make clips of synthetic speech.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--clips", type=int, default=140)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--held-out", action="store_true", help="in the voices that are never trained on")
    wish = parser.parse_args()
    rng = np.random.default_rng(wish.seed)
    voices = HELD_OUT_VOICES if wish.held_out else VOICES
    codes = [make_clip(rng, voices) for _ in range(wish.clips)]
    np.savez_compressed(wish.out, codes=np.stack(codes))


if __name__ == "__main__":
    main()
