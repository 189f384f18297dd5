"""Whole videos of both programs against the originals, from the picture and the speech to 8-bit frames.

Each case is generated once; the tests look at one stage of it each, from the start noise to the frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from infinitalk_cli.sampling.guidance import is_off, pass_kinds
from tests.parity.conftest import TinyTree
from tests.parity.reference import Case, cases, expect_close, value
from tests.parity.whole_run import ChunkRecord, Encoders, WholeRun, run_case

CASES = [*cases("e2e"), *cases("multitalk")]

MEAN_TOLERANCE = {"atol": 1e-3, "rtol": 0.0}
"""Means and deviations are stored rounded, and move far less than single values."""


@pytest.fixture(scope="module")
def encoders(tiny_tree: TinyTree) -> Encoders:
    return Encoders.build(tiny_tree, CASES[0])


@pytest.fixture(scope="module", params=CASES, ids=str)
def run(
    request: pytest.FixtureRequest,
    tiny_tree: TinyTree,
    encoders: Encoders,
    tmp_path_factory: pytest.TempPathFactory,
) -> WholeRun:
    return run_case(tiny_tree, request.param, encoders, tmp_path_factory.mktemp("speech"))


def latents_tolerance(case: Case) -> Mapping[str, float]:
    return {"atol": case.tolerance["latents_atol"], "rtol": 0.0}


def expect_per_chunk(run: WholeRun, name: str, actual: list[Tensor]) -> None:
    """Compare one tensor per chunk with a list of stored ones; None in the list stands for nothing to compare."""
    for index, form in enumerate(run.case.expected[name]):
        if form is not None:
            expect_close(actual[index], value(form), latents_tolerance(run.case), f"{name} of chunk {index}")


def given(stored: Tensor | None) -> Tensor:
    assert stored is not None
    return stored


def conditions(run: WholeRun) -> list[Tensor]:
    """Per chunk the condition, `(20, T, h, w)`."""
    return [given(chunk.condition) for chunk in run.chunks]


def test_video_has_the_size_and_length_of_the_reference(run: WholeRun) -> None:
    expected = run.case.expected
    assert len(run.chunks) == expected["num_chunks"]
    assert run.frames.shape == (3, expected["num_frames"], expected["height"], expected["width"])


def test_transformer_is_asked_at_the_same_times_and_not_more_often(run: WholeRun) -> None:
    kinds = pass_kinds(run.settings.text_guidance_scale, run.settings.audio_guidance_scale)
    num_reference_passes = 2 if is_off(run.settings.text_guidance_scale) else 3
    num_calls = sum(len(chunk.inputs) for chunk in run.chunks)
    assert num_calls * num_reference_passes == run.case.expected["model_calls"] * len(kinds)
    expected_times = run.case.expected["timesteps_seen_first_chunk"][::num_reference_passes]
    expect_close(run.chunks[0].times[:: len(kinds)], expected_times, MEAN_TOLERANCE, "times")


def test_blocks_are_skipped_in_the_same_passes(run: WholeRun) -> None:
    ran = [int(each) for chunk in run.chunks for each in chunk.blocks_ran]
    assert ran == run.case.expected.get("blocks_ran_per_call", [1] * len(ran))


def test_first_input_of_every_chunk_equals_the_reference(run: WholeRun) -> None:
    expect_per_chunk(run, "first_model_input", [chunk.inputs[0] for chunk in run.chunks])


def test_motion_part_of_the_second_step_equals_the_reference(run: WholeRun) -> None:
    if "second_step_model_input_motion_part" in run.case.expected:
        num_passes = len(pass_kinds(run.settings.text_guidance_scale, run.settings.audio_guidance_scale))
        num_motion = (run.settings.motion_frames - 1) // 4 + 1
        second = [chunk.inputs[num_passes][:, :num_motion] for chunk in run.chunks]
        expect_per_chunk(run, "second_step_model_input_motion_part", second)


def test_condition_equals_the_reference(run: WholeRun) -> None:
    expected = run.case.expected
    masks = [condition[:4].mean((0, 2, 3)) for condition in conditions(run)]
    means = [condition[4:].mean((0, 2, 3)) for condition in conditions(run)]
    expect_close(torch.stack(masks), expected["condition_mask_per_latent_frame"], "exact", "masks")
    expect_close(torch.stack(means), expected["condition_latent_frame_means"], MEAN_TOLERANCE, "means")
    if "condition_latents" in expected:
        expect_per_chunk(run, "condition_latents", [condition[4:] for condition in conditions(run)])


def test_image_features_equal_the_reference(run: WholeRun) -> None:
    features = [given(chunk.image).float() for chunk in run.chunks]
    statistics = [[float(each.mean()), float(each.std())] for each in features]
    expect_close(statistics, run.case.expected["clip_feature_mean_std"], MEAN_TOLERANCE, "features")


def test_latents_of_every_chunk_equal_the_reference(run: WholeRun) -> None:
    """All of them but those of the last chunk that become no frame of the video: these are not decoded here."""
    for index, form in enumerate(run.case.expected["final_latents"]):
        if form is not None:
            decoded = given(run.chunks[index].decoded)
            expected = value(form)
            expect_close(decoded, expected[:, : decoded.shape[1]], latents_tolerance(run.case), f"chunk {index}")
            assert index == len(run.chunks) - 1 or decoded.shape == expected.shape


def test_known_latents_reach_the_decoder_unchanged(run: WholeRun) -> None:
    num_motion = (run.settings.motion_frames - 1) // 4 + 1
    first, *later = run.chunks
    if run.settings.engine == "multitalk":
        assert all(is_known(chunk, num_motion) for chunk in later)
        assert not is_known(first, 1)
    else:
        assert is_known(first, 1)
        assert all(
            torch.equal(chunk.inputs[0][:, :num_motion], given(chunk.decoded)[:, :num_motion]) for chunk in later
        )


def is_known(chunk: ChunkRecord, num_frames: int) -> bool:
    """Whether the first latents to be decoded are those of the condition, bit for bit."""
    return torch.equal(given(chunk.decoded)[:, :num_frames], given(chunk.condition)[4:, :num_frames])


def test_speaker_masks_equal_the_reference(run: WholeRun) -> None:
    if "ref_target_masks" in run.case.expected:
        masks = given(run.conditioning.speaker_masks).to(torch.uint8)
        expect_close(masks, value(run.case.expected["ref_target_masks"]), "exact", "masks")


def test_frames_equal_the_reference(run: WholeRun) -> None:
    expected, tolerance = run.case.expected, run.case.tolerance
    frames = ((run.frames + 1) / 2 * 255).clip(0, 255).to(torch.uint8)  # truncated, as the original
    wanted = value(expected["frames_uint8_THWC"]).astype(np.int16)
    shown = frames if expected["frames_index"] == "all" else frames[:, expected["frames_index"]]
    difference = np.abs(shown.permute(1, 2, 3, 0).cpu().numpy().astype(np.int16) - wanted)
    assert difference.max() <= tolerance["uint8_max_difference"]
    assert (difference > 0).mean() <= tolerance["uint8_fraction_different_max"]


def test_statistics_of_the_video_equal_the_reference(run: WholeRun) -> None:
    expected = run.case.expected
    statistics = [float(run.frames.mean()), float(run.frames.std())]
    expect_close(statistics, expected["output_mean_std"], MEAN_TOLERANCE, "mean and deviation")
    at_limits = float((run.frames.abs() >= 1).float().mean())
    expect_close(at_limits, expected["output_fraction_at_limits"], MEAN_TOLERANCE, "fraction at the limits")


COMPARED: Any = {
    *("num_frames", "height", "width", "num_chunks", "model_calls", "timesteps_seen_first_chunk"),
    *("blocks_ran_per_call", "first_model_input", "second_step_model_input_motion_part", "condition_latents"),
    *("condition_latent_frame_means", "condition_mask_per_latent_frame", "clip_feature_mean_std", "final_latents"),
    *("ref_target_masks", "frames_uint8_THWC", "frames_index", "output_mean_std", "output_fraction_at_limits"),
    "sound_track",
}


def test_everything_that_the_data_states_is_compared() -> None:
    assert {name for case in CASES for name in case.expected} <= COMPARED
