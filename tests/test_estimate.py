"""Predictions of memory and time: the arithmetic, and measured passes it must never fall short of."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path

import pytest

from infinitalk_cli.estimate import (
    Rate,
    copy_rate,
    estimate,
    find_card,
    num_chunks,
    pass_flops,
    passes_per_step,
    rate_of,
)
from infinitalk_cli.footprint import (
    RAM_LEFT_BYTES,
    JobShape,
    Rung,
    block_bytes,
    num_read,
    num_tokens,
    outside_bytes,
    persistent_parameters,
    ram_bytes,
    vram_bytes,
    working_bytes,
)
from infinitalk_cli.hardware import Gpu, PcieLink
from infinitalk_cli.profiles import Quant, Wishes, find_preset, find_profile, settle
from infinitalk_cli.run_reports import estimate_lines
from infinitalk_cli.rungs import first_rung
from infinitalk_cli.sampling.chunk_plan import plan_chunks
from infinitalk_cli.sampling.guidance import pass_kinds
from infinitalk_cli.sampling.settings import SamplingSettings

SQUARE = JobShape(640, 640, 81)
STREAMED = find_profile("rtx-4090")


@pytest.mark.parametrize(
    ("width", "height", "tokens", "pflop"),
    [(640, 640, 33_600, 1.895), (832, 448, 30_576, 1.649), (960, 960, 75_600, 6.860), (1280, 704, 73_920, 6.606)],
)
def test_work_of_a_pass(width: int, height: int, tokens: int, pflop: float) -> None:
    shape = JobShape(width, height, 81)
    assert num_tokens(shape, 81) == tokens
    assert pass_flops(shape, 81) / 1e15 == pytest.approx(pflop, abs=0.0006)


@pytest.mark.parametrize(
    ("width", "height", "quant", "on_gpu", "measured_gb"),
    [
        (896, 448, "none", 40, 40.729),
        (896, 448, "fp8", 40, 22.237),
        (896, 448, "none", 2, 5.325),
        (896, 448, "fp8", 2, 4.567),
        (1280, 704, "fp8", 2, 7.768),
    ],
)
def test_memory_of_a_pass_is_predicted_from_above(
    width: int, height: int, quant: Quant, on_gpu: int, measured_gb: float
) -> None:
    """Peaks of allocated memory measured by the bench on an H200; `on_gpu`: blocks there, slots included."""
    profile, shape = replace(STREAMED, quant=quant), JobShape(width, height, 81)
    predicted = on_gpu * block_bytes(profile) + outside_bytes(profile) + working_bytes(shape, profile, Rung(0))
    assert 1.0 <= predicted / 1e9 / measured_gb <= 1.1


@pytest.mark.parametrize(
    ("width", "height", "num_resident", "used_gb"),
    [
        (896, 448, 37, 22.449),
        (896, 448, 21, 15.031),
        (896, 448, 12, 10.860),
        (896, 448, 8, 9.017),
        (896, 448, 4, 7.150),
        (896, 448, 0, 5.307),
        (1280, 704, 5, 11.818),
    ],
)
def test_what_a_run_takes_of_the_gpu_is_predicted_from_above(
    width: int, height: int, num_resident: int, used_gb: float
) -> None:
    """Peaks by the driver's count: a chunk in fp8, capped to 8 to 24 GB of an H200 (benchmarks/memory_caps.py)."""
    rung = Rung(num_resident, vae_tile=40)
    predicted = vram_bytes(JobShape(width, height, 81), STREAMED, rung, with_text=False)
    assert 1.0 <= predicted / 1e9 / used_gb <= 1.1


@pytest.mark.parametrize("motion_frames", [9, 25])
def test_chunks_are_as_many_as_the_sampler_makes(motion_frames: int) -> None:
    profile = replace(STREAMED, motion_frames=motion_frames)
    settings = SamplingSettings(motion_frames=motion_frames)
    for frames in (1, 80, 81, 82, 152, 153, 154, 1000):
        for cuts in ((), (1,), (30, 111, 300)):
            inside = [cut for cut in cuts if cut < frames]
            planned = plan_chunks((frames,), replace(settings, max_frames=frames), cuts)
            assert num_chunks(frames, profile, inside) == len(planned)


@pytest.mark.parametrize("preset", ["quality", "balanced", "fast"])
def test_passes_are_as_many_as_the_sampler_makes(preset: str) -> None:
    profile = settle(STREAMED, Wishes(), "infinitetalk", find_preset(preset))
    kinds = pass_kinds(profile.text_guidance_scale, profile.audio_guidance_scale)
    assert passes_per_step(profile) == len(kinds)


def test_time_is_that_of_the_arithmetic() -> None:
    found = estimate(SQUARE, STREAMED, Rate(1e14, 25e9), free_bytes=24 * 10**9)
    assert found.pass_s == pytest.approx(18.95, abs=0.01)
    assert found.passes_per_chunk == 120
    assert found.seconds == pytest.approx(120 * 18.95, abs=1)


def test_a_slow_slot_makes_copies_the_limit() -> None:
    found = estimate(SQUARE, STREAMED, Rate(1e15, 1e9), free_bytes=24 * 10**9)
    assert found.pass_s == pytest.approx(40 * block_bytes(STREAMED) / 1e9)


def test_without_a_rate_no_time_is_invented() -> None:
    found = estimate(SQUARE, STREAMED, Rate(), free_bytes=24 * 10**9)
    assert found.seconds is None
    assert "talk bench" in found.basis


def test_a_vendors_figure_is_called_a_prediction_and_a_measured_one_is_not() -> None:
    card = Gpu(0, name="NVIDIA GeForce RTX 4090", total_bytes=24 << 30)
    assert "prediction, not a measurement" in rate_of(card).basis
    assert rate_of(card, 1.2e14).flops_per_s == 1.2e14
    assert "talk bench" in rate_of(card, 1.2e14).basis


def test_cards_are_told_apart_by_name_and_memory() -> None:
    def profile(name: str, gib: int) -> str | None:
        card = find_card(Gpu(0, name=name, total_bytes=gib << 30))
        return card.profile if card else None

    assert profile("NVIDIA GeForce RTX 4090", 24) == "rtx-4090"
    assert profile("NVIDIA GeForce RTX 4090 Laptop GPU", 16) is None
    assert profile("NVIDIA GeForce RTX 4090 D", 48) is None
    assert profile("NVIDIA GeForce RTX 3060 Ti", 8) is None
    assert profile("NVIDIA L40S", 45) == "l40s"
    assert profile("NVIDIA L40", 45) is None
    assert find_card(Gpu(0, name="NVIDIA H200", mig_index=1)) is None


def test_the_slot_gives_the_copy_rate() -> None:
    assert copy_rate(Gpu(0, pcie=PcieLink(max_generation=4, max_width=16))) == 25e9
    assert copy_rate(Gpu(0, pcie=PcieLink(max_generation=5, max_width=16))) == 50e9
    assert copy_rate(Gpu(0, pcie=PcieLink(max_generation=4, max_width=8))) == 12.5e9
    assert copy_rate(Gpu(0)) is None


def test_persistent_parameters_and_resident_blocks_are_each_others_reverse() -> None:
    for number in (0, 1, 17, 39):
        profile = replace(STREAMED, num_persistent_param_in_dit=persistent_parameters(number))
        assert first_rung(profile, SQUARE, 24 * 10**9).num_resident == number


def test_resident_blocks_fit_in_what_is_free() -> None:
    profile = replace(STREAMED, num_persistent_param_in_dit=None)
    for free in range(8 * 10**9, 60 * 10**9, 3 * 10**9):
        assert vram_bytes(SQUARE, profile, first_rung(profile, SQUARE, free)) <= free
    assert first_rung(profile, SQUARE, 40 * 10**9) == Rung(40)


def test_ram_holds_the_streamed_blocks_once_and_no_resident_one() -> None:
    assert 20e9 < ram_bytes(STREAMED, 0) < 23e9
    assert ram_bytes(STREAMED, 0) - ram_bytes(STREAMED, 10) == 10 * block_bytes(STREAMED)
    assert ram_bytes(STREAMED, 40) < 10e9
    assert ram_bytes(find_profile("default"), 0, on_gpu=False) > 75e9


def test_ram_that_is_too_short_is_filled_but_for_a_rest_and_the_others_are_read() -> None:
    block, all_held = block_bytes(STREAMED), ram_bytes(STREAMED, 0)
    assert num_read(STREAMED, 0, all_held) == 0
    before = 0
    for usable in range(all_held - 1, 9 * 10**9, -(10**9)):
        read = num_read(STREAMED, 0, usable)
        assert before <= read <= 40
        taken, before = ram_bytes(STREAMED, 0, num_read=read), read
        assert taken + RAM_LEFT_BYTES <= usable or read == 40 or taken == ram_bytes(STREAMED, 40)
        assert taken + RAM_LEFT_BYTES + block > usable
        assert num_read(STREAMED, read, usable) == 0  # as many less to be streamed
        assert num_read(replace(STREAMED, blocks_from_disk=False), 0, usable) == 0
    assert before > 25
    assert num_read(replace(STREAMED, quant="none"), 0, 20 * 10**9) == 0
    assert num_read(replace(STREAMED, quant="none", blocks_from_disk=True), 0, 20 * 10**9) > 20


def test_reading_from_the_disk_costs_what_computing_does_not_hide() -> None:
    slow, fast = Rate(2e13, 25e9), Rate(1e15, 25e9)
    for rate, hidden in ((slow, True), (fast, False)):
        found = estimate(SQUARE, STREAMED, rate, free_bytes=24 * 10**9, free_ram_bytes=12 * 10**9)
        whole = estimate(SQUARE, STREAMED, rate, free_bytes=24 * 10**9, free_ram_bytes=64 * 10**9)
        assert (found.num_read, whole.num_read) == (27, 0)
        assert found.ram_bytes < 12 * 10**9 < whole.ram_bytes
        assert found.pass_s is not None
        assert whole.pass_s is not None
        assert found.read_wait_s == pytest.approx(found.pass_s - whole.pass_s)
        assert (found.read_wait_s == 0) == hidden
        line = next(line for line in estimate_lines(found) if "from the disk" in line)
        assert line.startswith("27 of 40 blocks are read from the disk in every pass, as RAM has no room for them: ")
        assert "13 s at an assumed 1 GB/s" in line
        assert ("hidden by computing" in line) == hidden
        assert ("s more per pass" in line) != hidden
        assert not any("from the disk" in line for line in estimate_lines(whole))


def test_the_predictions_in_the_documents_are_those_of_the_formula() -> None:
    root = Path(__file__).parent.parent
    table = runpy.run_path(str(root / "benchmarks" / "predict.py"))["table"]()
    assert table in (root / "docs" / "profiles.md").read_text(encoding="utf-8")
