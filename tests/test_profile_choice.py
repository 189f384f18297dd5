"""Which profile a machine gets, and why: a table of machines, recorded or composed, as the choice sees them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from infinitalk_cli.errors import EnvironmentUnfitError, InputError
from infinitalk_cli.footprint import vram_bytes
from infinitalk_cli.hardware import Gpu, Hardware
from infinitalk_cli.profile_choice import choose_profile, memory_shortfall, shape_of
from infinitalk_cli.profiles import Wishes, find_preset, find_profile
from infinitalk_cli.rungs import first_rung
from tests.hardware_fixtures import NAMES, hardware

GB = 10**9
GIB = 1 << 30


def machine(
    card: str, capability: tuple[int, int], gib: float, *, free_gb: float | None = None, ram_gb: float = 64
) -> Hardware:
    """A desktop with this card alone; all of its memory but half a GB is free unless said otherwise."""
    base = hardware("rtx4090-desktop", available_ram_bytes=round(ram_gb * GB))
    total = round(gib * GIB)
    free = total - GIB // 2 if free_gb is None else round(free_gb * GB)
    gpu = replace(base.gpus[0], name=card, capability=capability, total_bytes=total, free_bytes=free)
    return replace(base, gpus=(gpu,), visible_gpus=(gpu,))


@dataclass(frozen=True)
class Row:
    """A machine and what it gets. `stays`: "none", "some" or "all" blocks on the GPU; `why`: a part of a reason."""

    seen: Hardware
    profile: str
    quant: str
    stays: str
    why: str
    lacks: str = ""


ROWS = {
    "4090, as the guide has it": Row(hardware("rtx4090-desktop"), "rtx-4090", "fp8", "none", "row of its own"),
    "3090 with 32 GB of RAM": Row(hardware("rtx3090-desktop"), "rtx-3090", "int8", "none", "row of its own"),
    "5090 on Windows": Row(hardware("rtx5090-windows"), "rtx-5090", "fp8", "all", "row of its own"),
    "4080 in WSL": Row(hardware("rtx4080-wsl2"), "rtx-4080", "fp8", "none", "row of its own"),
    "4060 Ti 16 GB": Row(hardware("rtx4060ti-16gb"), "rtx-4060-ti", "fp8", "none", "row of its own"),
    "3060 12 GB": Row(hardware("rtx3060-12gb"), "rtx-3060", "int8", "none", "row of its own"),
    "3060 beside a 4090": Row(hardware("rtx3060-and-4090"), "rtx-4090", "fp8", "none", "row of its own"),
    "8 GB laptop, 16 GB of RAM": Row(hardware("rtx4060-laptop-8gb"), "gpu-8gb", "fp8", "some", "read from the disk"),
    "8 GB laptop, 8 GB of RAM free": Row(
        hardware("rtx4060-laptop-8gb", available_ram_bytes=8 * GB), "gpu-8gb", "fp8", "none", "no row", "of RAM"
    ),
    "8 GB laptop, enough RAM": Row(
        hardware("rtx4060-laptop-8gb", available_ram_bytes=30 * GB), "gpu-8gb", "fp8", "none", "by its 8 GiB"
    ),
    "A10G in a 16 GB container": Row(hardware("a10g-docker"), "a10g", "int8", "some", "RAM is too short to stream all"),
    "A10G in a 16 GB container, half taken": Row(
        hardware("a10g-docker", free_vram_bytes=8 * GB), "a10g", "int8", "some", "read from the disk"
    ),
    "A10G with RAM": Row(machine("NVIDIA A10G", (8, 6), 22.5), "a10g", "int8", "some", "row of its own"),
    "L4": Row(hardware("l4-kubernetes"), "l4", "fp8", "some", "row of its own"),
    "A100 40 GB": Row(machine("NVIDIA A100-SXM4-40GB", (8, 0), 40), "a100-40", "none", "some", "row of its own"),
    "A100 40 GB, 32 GB of RAM": Row(
        machine("NVIDIA A100-SXM4-40GB", (8, 0), 40, ram_gb=32), "a100-40", "none", "some", "row of its own"
    ),
    "A100 40 GB, 13 GB of RAM": Row(
        machine("NVIDIA A100-SXM4-40GB", (8, 0), 40, ram_gb=13), "a100-40", "int8", "all", "do not fit: 8-bit"
    ),
    "A100 in MIG instances": Row(hardware("a100-40-mig"), "gpu-16gb", "int8", "none", "no fp8 arithmetic"),
    "A100 80 GB, the free one": Row(hardware("a100-80-pair"), "a100-80", "none", "all", "row of its own"),
    "L40S": Row(machine("NVIDIA L40S", (8, 9), 44.5), "l40s", "fp8", "all", "row of its own"),
    "H100": Row(machine("NVIDIA H100 80GB HBM3", (9, 0), 80), "h100", "none", "all", "row of its own"),
    "H200": Row(hardware("h200"), "h200", "none", "all", "row of its own"),
    "H200, capped to 8-bit room": Row(
        hardware("h200", free_vram_bytes=34 * GB, available_ram_bytes=12 * GB), "h200", "fp8", "all", "8-bit ones"
    ),
    "H200 with 10 GB left": Row(
        hardware("h200", free_vram_bytes=10 * GB), "h200", "none", "some", "its free memory holds"
    ),
    "4070 Ti 12 GB": Row(machine("NVIDIA GeForce RTX 4070 Ti", (8, 9), 12), "rtx-4070-ti", "fp8", "none", "row"),
    "4070 Ti SUPER 16 GB": Row(
        machine("NVIDIA GeForce RTX 4070 Ti SUPER", (8, 9), 16), "rtx-4070-ti", "fp8", "none", "row of its own"
    ),
    "4060 Ti 8 GB": Row(machine("NVIDIA GeForce RTX 4060 Ti", (8, 9), 8), "gpu-8gb", "fp8", "none", "by its 8 GiB"),
    "3080 10 GB": Row(machine("NVIDIA GeForce RTX 3080", (8, 6), 10), "gpu-8gb", "int8", "none", "no fp8"),
    "2080 Ti": Row(machine("NVIDIA GeForce RTX 2080 Ti", (7, 5), 11), "gpu-12gb", "int8", "none", "emulates"),
    "RTX 6000 Ada 48 GB": Row(
        machine("NVIDIA RTX 6000 Ada Generation", (8, 9), 48), "gpu-32gb", "fp8", "all", "by its 48 GiB"
    ),
    "B200": Row(machine("NVIDIA B200", (10, 0), 180), "gpu-64gb", "none", "all", "by its 180 GiB"),
    "5070 Ti 16 GB": Row(machine("NVIDIA GeForce RTX 5070 Ti", (12, 0), 16), "gpu-16gb", "fp8", "none", "by its 16"),
    "4090 that a game holds": Row(
        machine("NVIDIA GeForce RTX 4090", (8, 9), 24, free_gb=3), "rtx-4090", "fp8", "none", "row", "3.0 GB of NVIDIA"
    ),
    "1080 Ti": Row(machine("NVIDIA GeForce GTX 1080 Ti", (6, 1), 11), "demo", "none", "cpu", "torch needs 7.0"),
    "no GPU": Row(hardware("no-gpu-laptop"), "demo", "none", "cpu", "shows no NVIDIA GPU"),
    "driver half updated": Row(hardware("driver-mismatch"), "demo", "none", "cpu", "machine not restarted since"),
}


@pytest.mark.parametrize("row", ROWS.values(), ids=list(ROWS))
def test_each_machine_gets_its_profile_with_the_reason(row: Row) -> None:
    choice = choose_profile(row.seen)
    assert (choice.profile.name, choice.profile.quant) == (row.profile, row.quant)
    assert row.why in "; ".join(choice.reasons)
    assert (row.lacks in choice.shortfall) if row.lacks else choice.shortfall == ""
    assert choice.fits == (not row.lacks)
    if choice.gpu is None:
        assert row.stays == "cpu"
    else:
        resident = first_rung(choice.profile, shape_of(choice.profile), choice.gpu.free_bytes or 0).num_resident
        assert {0: "none", 40: "all"}.get(resident, "some") == row.stays


def test_the_4090_has_the_settings_of_the_guide() -> None:
    profile = choose_profile(hardware("rtx4090-desktop")).profile
    assert (profile.quant, profile.num_persistent_param_in_dit) == ("fp8", 0)
    assert (profile.motion_frames, profile.size, profile.chunk_frames) == (9, "480", 81)
    assert (profile.num_steps, profile.shift) == (40, 7.0)


@pytest.mark.parametrize("name", NAMES)
def test_a_profile_that_is_said_to_fit_leaves_memory_free(name: str) -> None:
    choice = choose_profile(hardware(name))
    if choice.gpu is not None and choice.fits:
        free = choice.gpu.free_bytes or 0
        rung = first_rung(choice.profile, shape_of(choice.profile), free)
        assert vram_bytes(shape_of(choice.profile), choice.profile, rung) <= free


def test_more_free_memory_never_gives_a_worse_choice() -> None:
    """Over free memory from 4 to 140 GB on one card: once something fits it goes on to, and more stays, not less."""
    fitted: list[tuple[int, int]] = []
    for free in range(4, 141, 4):
        choice = choose_profile(hardware("h200", free_vram_bytes=free * GB), Wishes(quant="none"))
        if choice.fits:
            resident = first_rung(choice.profile, shape_of(choice.profile), free * GB).num_resident
            fitted.append((free, resident))
        else:
            assert not fitted
    assert [resident for _, resident in fitted] == sorted(resident for _, resident in fitted)
    assert fitted[-1] == (140, 40)


def test_a_wish_is_never_overruled() -> None:
    seen = hardware("h200", free_vram_bytes=12 * GB, available_ram_bytes=30 * GB)
    assert choose_profile(seen).profile.quant == "fp8"
    choice = choose_profile(seen, Wishes(quant="none"))
    assert choice.profile.quant == "none"
    assert "of RAM" in choice.shortfall
    assert choice.remedy == "this fits: --quant fp8"


def test_nothing_is_read_from_the_disk_that_another_choice_has_in_memory() -> None:
    for ram_gb in range(9, 40):
        choice = choose_profile(machine("NVIDIA A100-SXM4-40GB", (8, 0), 40, ram_gb=ram_gb))
        assert choice.fits
        assert not any("read from the disk" in reason for reason in choice.reasons)


def test_weights_that_have_to_be_converted_are_not_read_from_the_disk() -> None:
    seen = hardware("rtx4060-laptop-8gb")
    asked = choose_profile(seen, Wishes(quant="none"))
    assert "of RAM" in asked.shortfall
    assert asked.remedy == "this fits: --quant fp8"
    as_computed = replace(asked.profile, blocks_from_disk=True)
    assert memory_shortfall(as_computed, seen, asked.gpu, sizes=None).startswith("needs 13.3 GB of RAM")  # T5 in bf16
    to_round = replace(choose_profile(seen).profile, blocks_from_disk=False)
    assert "of RAM" in memory_shortfall(to_round, seen, asked.gpu)


def test_720_that_does_not_fit_is_answered_with_480() -> None:
    choice = choose_profile(hardware("rtx3060-12gb", free_vram_bytes=5 * GB), Wishes(size="720"))
    assert "of GPU memory" in choice.shortfall
    assert choice.remedy.endswith("--size 480")


def test_a_preset_is_independent_of_the_card() -> None:
    for name in ("rtx4090-desktop", "h200", "rtx3060-12gb"):
        profile = choose_profile(hardware(name), preset=find_preset("fast")).profile
        assert (profile.num_steps, profile.text_guidance_scale, profile.audio_guidance_scale) == (4, 1.0, 1.0)
        assert profile.lora == "lightx2v"


def test_the_wished_gpu_is_taken_and_a_wrong_one_refused() -> None:
    pair = hardware("rtx3060-and-4090")
    assert choose_profile(pair, gpu_wish="0").profile.name == "rtx-3060"
    with pytest.raises(InputError, match="fits no GPU here"):
        choose_profile(pair, gpu_wish="7")
    with pytest.raises(EnvironmentUnfitError, match="no usable NVIDIA GPU"):
        choose_profile(hardware("no-gpu-laptop"), gpu_wish="0")


def test_the_shortfall_names_who_limits_the_ram() -> None:
    gpu = Gpu(0, free_bytes=6 * GB)
    text = memory_shortfall(replace(find_profile("a10g"), blocks_from_disk=False), hardware("a10g-docker"), gpu)
    assert "under the limit of the control group" in text
    text = memory_shortfall(find_profile("rtx-4080"), hardware("rtx4080-wsl2", available_ram_bytes=8 * GB), gpu)
    assert ".wslconfig" in text
