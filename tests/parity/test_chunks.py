"""The chunk arithmetic of the original programs, row by row, through the real loop with stand-ins for the networks.

The tables record two things that we do otherwise: the original refuses speech of a chunk's length (we pad it), and it
cuts the end by other rules. So the rows run with the compatibility settings that bring these back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from infinitalk_cli.sampling.chunk_plan import plan_chunks
from infinitalk_cli.sampling.settings import Compatibility, InvalidInput, SamplingSettings
from infinitalk_cli.sampling.stream import Chunk, generate_chunks
from tests.parity.reference import cases
from tests.sampling.stubs import Stubs, labels, make_conditioning, make_stubs

ROWS = [
    (case.settings.get("program", "infinitetalk"), row) for case in cases("chunks") for row in case.expected["rows"]
]
IDS = [f"{program}-{row['audio_frames']}-{row['frame_num']}-{row['motion_frame']}" for program, row in ROWS]


def settings_of(program: Any, row: Mapping[str, Any]) -> SamplingSettings:
    """One step with one pass, and the rules of the original."""
    return SamplingSettings(
        engine=program,
        chunk_frames=row["frame_num"],
        motion_frames=row["motion_frame"],
        max_frames=row["max_frames_num"],
        num_steps=1,
        text_guidance_scale=1.0,
        audio_guidance_scale=1.0,
        compatibility=Compatibility(reference_trim=True, refuse_short_audio=True, any_motion_length=True),
    )


@pytest.mark.parametrize(("program", "row"), ROWS, ids=IDS)
def test_chunks_equal_the_reference(program: str, row: Mapping[str, Any]) -> None:
    stubs, conditioning = make_stubs(), make_conditioning(*row["audio_frames"])
    if "error" in row:
        with pytest.raises(InvalidInput):
            generate_chunks(stubs.networks, conditioning, settings_of(program, row))
        return
    chunks = list(generate_chunks(stubs.networks, conditioning, settings_of(program, row)))

    assert len(stubs.vae.decoded) == row["num_chunks"]
    assert sum(chunk.frames.shape[2] for chunk in chunks) == row["output_frames"]
    assert segments(chunks) == row["output_segments_[chunk,first,last]"]
    expect_speech(stubs, row)
    tails = plan_chunks(row["audio_frames"], settings_of(program, row))[-1].tails
    assert [tail for tail in tails if tail] == row.get("rows_appended_per_person", [tail for tail in tails if tail])
    expect_pictures(stubs, row)


def segments(chunks: list[Chunk]) -> list[list[int]]:
    """Chunk, first and last frame of each piece of the output, read off the painted numbers."""
    painted = [labels(chunk.frames) for chunk in chunks]
    assert all(numbers == list(range(numbers[0], numbers[-1] + 1)) for numbers in painted)
    return [[numbers[0] // 1000, numbers[0] % 1000, numbers[-1] % 1000] for numbers in painted]


def expect_speech(stubs: Stubs, row: Mapping[str, Any]) -> None:
    """The rows of the speech that the middle of each frame's window reads."""
    centers = [windows[:, :, 2, 0, 0].int().tolist() for windows in stubs.dit.windows]
    assert [chunk[0][0] for chunk in centers] == row["first_embedding_row_per_chunk"]
    tails = row["embedding_rows_used_by_last_chunk_tail"]
    assert [speaker[-len(tail) :] for speaker, tail in zip(centers[-1], tails, strict=True)] == tails


def expect_pictures(stubs: Stubs, row: Mapping[str, Any]) -> None:
    """What the later chunks see, where the table says it."""
    masks = [call.condition[0, :4].sum((0, 2, 3)) / 4 for call in stubs.dit.calls]
    for name, mask in zip(("chunk 0", "later chunks"), (masks[0], masks[-1]), strict=True):
        if name in row.get("mask_ones_per_latent_frame", {}) and (name == "chunk 0" or len(masks) > 1):
            assert mask.int().tolist() == row["mask_ones_per_latent_frame"][name]
    if row.get("condition_of_chunk_1"):
        expected, clip = row["condition_of_chunk_1"], stubs.vae.encoded[1]
        first, last = expected["frames_of_chunk_0"]
        num_zeros = expected["then_zero_frames"]
        assert labels(clip) == [*range(first, last + 1), *[0] * num_zeros]
        assert int(stubs.image_encoder.seen[1].mean()) == expected["image_encoder_sees_frame_of_chunk_0"]
