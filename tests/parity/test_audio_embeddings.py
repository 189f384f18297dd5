"""Audio embeddings of one and two speakers against the outputs of the original, whole and streamed."""

from __future__ import annotations

import json
import wave
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from infinitalk_cli.media.speech import prepare_speech
from infinitalk_cli.memory.tensor_files import open_tensors
from infinitalk_cli.models.audio_encoder import SAMPLE_RATE, VARIANCE_FLOOR, AudioEncoder, num_audio_frames
from infinitalk_cli.models.encoder_config import AudioEncoderConfig
from infinitalk_cli.networks import make_audio_encoder
from tests.parity.conftest import TinyTree
from tests.parity.reference import DEVICE, Case, cases, expect_close, reference_dir, value

SAMPLE_STEP = 37  # the data holds every 37th sample
Wave = NDArray[np.float32]


def has_embedding(case: Case) -> bool:
    return any("embedding_rows" in entry for entry in expected_embeddings(case))


def expected_embeddings(case: Case) -> Iterator[Mapping[str, Any]]:
    """What is expected of each speaker, in order."""
    if "embedding_rows" in case.expected:
        yield case.expected
    yield from (case.expected[person] for person in ("person1", "person2") if person in case.expected)


def speaker_files(case: Case) -> list[Path | None]:
    """The sound file of each speaker, None for one who says nothing."""
    names = [case.inputs["file"]] if "file" in case.inputs else [case.inputs["person1"], case.inputs["person2"]]
    return [name and reference_dir() / name for name in names]


@pytest.fixture(scope="module")
def weights(tiny_tree: TinyTree) -> Path:
    (folder,) = {name for case in cases("audio", has_embedding) for name in case.weights.values()}
    return tiny_tree.need_matching(f"{folder}*")[0].parent


def load_encoder(weights: Path, settings: Mapping[str, Any]) -> AudioEncoder:
    """The encoder with its preprocessor settings, those of a case winning."""
    preprocessor = read_json(weights / "preprocessor_config.json") | settings.get("preprocessor", {})
    return make_audio_encoder(
        AudioEncoderConfig.from_json(read_json(weights / "config.json")),
        open_tensors(weights / "model.safetensors"),
        do_normalize=preprocessor["do_normalize"],
        dtype=torch.float32,
        device=DEVICE,
    )


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def expect_embedding(embeds: Tensor, expected: Mapping[str, Any], tolerance: Mapping[str, float], what: str) -> None:
    assert len(embeds) == expected["num_frames"]
    for name, actual in {
        "embedding_rows": embeds[expected["frame_rows"]],
        "embedding_first8": embeds[:, :, :8],
        "embedding_mean": embeds.mean(dim=2),
        "embedding_std": embeds.std(dim=2),
    }.items():
        expect_close(actual, value(expected[name]), tolerance, f"{what} {name}")


@pytest.mark.parametrize("case", cases("audio", has_embedding), ids=str)
def test_speech_gives_the_embeddings(case: Case, weights: Path, tmp_path: Path) -> None:
    encoder = load_encoder(weights, case.settings)
    tracks = prepare_speech(speaker_files(case), tmp_path, case.settings.get("audio_type", "para"))
    for waveform, expected in zip(tracks.waveforms, expected_embeddings(case), strict=True):
        tolerance = case.tolerance["embedding"]
        whole = encoder.embed(torch.from_numpy(np.array(waveform)), frames_rule="float")
        expect_embedding(whole, expected, tolerance, "whole")
        stream = encoder.stream(waveform, frames_rule="float")
        expect_embedding(stream.gather(torch.arange(stream.num_frames)), expected, tolerance, "streamed")


@pytest.mark.parametrize("case", cases("audio", lambda case: "normalised_every_37" in case.expected), ids=str)
def test_samples_that_enter_the_network(case: Case, weights: Path, tmp_path: Path) -> None:
    """The first convolution sees the waveform itself, unless the settings ask for mean 0 and variance 1."""
    encoder = load_encoder(weights, case.settings)
    (file,) = speaker_files(case)
    (waveform,) = prepare_speech([file], tmp_path).waveforms
    seen: list[Tensor] = []
    first = encoder.model.feature_extractor.conv_layers[0].conv
    first.register_forward_hook(lambda _, args, __: seen.append(args[0].flatten()))
    encoder.embed(torch.from_numpy(np.array(waveform)))
    encoder.stream(waveform).gather(torch.tensor([0]))
    # The tolerances are of the waveform; what is divided by its deviation is off by as much more.
    gain = 1 / np.sqrt(waveform.var() + VARIANCE_FLOOR) if encoder.do_normalize else 1.0
    tolerance = {name: bound * gain for name, bound in case.tolerance[waveform_kind(file)].items()}
    whole, first_block = seen
    expected = value(case.expected["normalised_every_37"])
    expect_close(whole[::SAMPLE_STEP], expected, tolerance, "whole")
    read = first_block[::SAMPLE_STEP]
    expect_close(read, expected[: len(read)], tolerance, "first block of the stream")


def waveform_kind(file: Path | None) -> str:
    """Which tolerance a waveform has: the resampler leaves a larger difference."""
    assert file
    with wave.open(str(file)) as opened:
        return "wave" if opened.getframerate() == SAMPLE_RATE else "wave_resampled"


@pytest.mark.parametrize("case", cases("audio", lambda case: "frames" in case.expected), ids=str)
def test_frames_are_counted_as_the_reference_counts_and_exactly(case: Case) -> None:
    samples = case.inputs["samples"]
    differs = case.expected["exact_integer_rule_differs_at"]
    assert [num_audio_frames(n, "float") for n in samples] == case.expected["frames"]
    assert [num_audio_frames(n) for n in samples if n not in differs] == [
        frames for n, frames in zip(samples, case.expected["frames"], strict=True) if n not in differs
    ]
    # Deliberately better: a frame that floating point loses is counted.
    assert all(num_audio_frames(n) == num_audio_frames(n, "float") + 1 for n in differs)


def test_every_case_of_the_family_is_run() -> None:
    assert all(has_embedding(case) or "frames" in case.expected for case in cases("audio"))


@pytest.mark.parametrize(
    "loudness, rms, largest",
    [((0.05, 2.0), 0.1, 0.6), pytest.param((1.0, 1.0), 0.015, 0.1, marks=pytest.mark.slow)],
)
def test_windows_deviate_from_the_whole_by_no_more_than_stated(
    weights: Path, loudness: tuple[float, float], rms: float, largest: float
) -> None:
    """Attention does not reach beyond a window. The states have a standard deviation of 1.

    These random weights attend evenly to every frame, so a window differs from the whole as its mean sound does: little
    where the speech goes on in the same manner, more where its loudness changes from phrase to phrase. The bounds are
    about twice what the module states.
    """
    encoder = load_encoder(weights, {})
    speech = repeated_speech(50 * SAMPLE_RATE, loudness)
    whole = encoder.embed(torch.from_numpy(speech)).cpu()
    stream = encoder.stream(speech)
    difference = stream.gather(torch.arange(stream.num_frames)) - whole
    assert whole.std() == pytest.approx(1, abs=0.1)
    assert 1e-3 < difference.pow(2).mean().sqrt() < rms
    assert difference.abs().max() < largest


def repeated_speech(num_samples: int, loudness: tuple[float, float]) -> Wave:
    """The two sounds of the two-speaker cases by turns, each time as loud as a draw between two bounds says."""
    random = np.random.default_rng(0)
    (first, second, *_) = (
        file for case in cases("audio", lambda c: "person1" in c.inputs) for file in speaker_files(case)
    )
    phrases: list[Wave] = []
    while sum(map(len, phrases)) < num_samples:
        for file in (first, second):
            assert file
            with wave.open(str(file)) as opened:
                samples = np.frombuffer(opened.readframes(opened.getnframes()), np.int16)
            phrases.append((samples * (random.uniform(*loudness) / 32768)).astype(np.float32))
    return np.concatenate(phrases)[:num_samples]
