"""The doctor: each obstacle is found, told with what mends it, and decides the exit code only if it is one."""

from __future__ import annotations

import socket
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from infinitalk_cli.doctor import Check, Examination, Packages, download_bytes, examine, is_fit, read_packages
from infinitalk_cli.doctor_cuda import check_cuda
from infinitalk_cli.doctor_deep import make_demo_video, run_probes
from infinitalk_cli.doctor_online import check_hub
from infinitalk_cli.doctor_packages import CEILINGS, FLOORS, TRITON, parse_version
from infinitalk_cli.doctor_reports import check_line, fix_script
from infinitalk_cli.hardware import Hardware
from infinitalk_cli.profile_choice import choose_profile
from infinitalk_cli.profiles import Attention, Wishes
from tests.hardware_fixtures import hardware

GOOD: dict[str, str | None] = {
    **{name: f"{floor}.99" for name, floor in FLOORS.items()},
    "torch": "2.11.0+cu128",
    "transformers": "5.17.0",
    "huggingface_hub": "2.4.0",
}
ENCODERS = frozenset({"libx264", "aac"})


def checks_of(
    seen: Hardware,
    *,
    versions: Mapping[str, str | None] | None = None,
    torch_cuda: tuple[int, int] | None = (12, 8),
    encoders: frozenset[str] = ENCODERS,
    weights_dir: Path = Path("no-weights"),
    python: tuple[int, int] = (3, 11),
) -> dict[str, Check]:
    """Every check of this machine with these packages, by name."""
    packages = Packages({**GOOD, **(versions or {})}, torch_cuda, encoders)
    found = examine(Examination(seen, packages, choose_profile(seen), weights_dir, python))
    return {check.name: check for check in found}


def fit(checks: Mapping[str, Check]) -> bool:
    return is_fit(list(checks.values()))


@pytest.mark.parametrize("name", ["rtx4090-desktop", "h200", "rtx3090-desktop", "a100-80-pair", "l4-kubernetes"])
def test_a_machine_that_can_run_is_fit_also_before_the_download(name: str) -> None:
    checks = checks_of(hardware(name, free_disk_bytes=10**12))
    assert fit(checks)
    assert not checks["weights"].ok
    assert checks["weights"].fix.startswith("talk download --speakers 1")


@pytest.mark.parametrize(
    ("name", "check", "fix"),
    [
        ("no-gpu-laptop", "gpu", "talk demo"),
        ("driver-mismatch", "driver", "sudo reboot"),
        ("rtx4060-laptop-8gb", "ram", "close other programs"),
        ("a10g-docker", "ram", "raise the memory limit of the container"),
    ],
)
def test_a_machine_that_cannot_run_is_told_why_and_what_mends_it(name: str, check: str, fix: str) -> None:
    checks = checks_of(hardware(name, free_vram_bytes=7 * 10**9, available_ram_bytes=8 * 10**9))
    assert not fit(checks)
    assert not checks[check].ok
    assert checks[check].required
    assert fix in checks[check].fix


def test_blocks_that_ram_has_no_room_for_are_no_obstacle_but_told() -> None:
    checks = checks_of(hardware("rtx4080-wsl2", available_ram_bytes=12 * 10**9))
    assert checks["ram"].ok
    assert "of 40 blocks are read from the disk in every pass" in checks["ram"].detail


def test_wsl_is_told_to_raise_its_share() -> None:
    checks = checks_of(hardware("rtx4080-wsl2", available_ram_bytes=8 * 10**9))
    assert "memory=11GB under [wsl2]" in checks["ram"].fix
    assert "wsl --shutdown" in checks["ram"].fix


def test_who_holds_the_gpu_is_named() -> None:
    pair = hardware("a100-80-pair", environment={"CUDA_VISIBLE_DEVICES": "0"})
    memory = checks_of(pair)["gpu memory"]
    assert "on it: " in memory.detail
    assert "pid" in memory.detail


def test_hidden_gpus_are_told_from_missing_ones() -> None:
    checks = checks_of(hardware("rtx4090-desktop", environment={"CUDA_VISIBLE_DEVICES": ""}))
    assert checks["gpu"].fix == "unset CUDA_VISIBLE_DEVICES"


@pytest.mark.parametrize(
    ("versions", "check", "told"),
    [
        ({"torch": None}, "torch", "torch is not installed"),
        ({"torch": "2.3.1"}, "torch", "older than 2.4"),
        ({"torch": "2.8.0+cu128"}, "torch", "leaks RAM"),
        ({"torch": "2.9.0"}, "torch", "3-D convolutions"),
        ({"transformers": "5.1.0"}, "transformers", "wrong embeddings"),
        ({"transformers": "6.0.0"}, "transformers", "newer than what was tested"),
        ({"transformers": "5.17.0", "torch": "2.4.1"}, "transformers", "does not work on torch 2.4.1"),
        ({"transformers": "5.18.0", "torch": "2.5.1"}, "transformers", "does not work on torch 2.5.1"),
        ({"huggingface_hub": "0.20.0"}, "packages", "huggingface_hub 0.20.0 is older than 0.26"),
        ({"soxr": None, "ftfy": None}, "packages", "ftfy is not installed; soxr is not installed"),
    ],
)
def test_a_package_out_of_range_is_named_with_the_command(
    versions: Mapping[str, str | None], check: str, told: str
) -> None:
    found = checks_of(hardware("rtx4090-desktop"), versions=versions)[check]
    assert (found.ok, found.required) == (False, True)
    assert told in found.detail
    assert found.fix.startswith(("python -m pip install", "uv pip install"))


@pytest.mark.parametrize("torch", ["2.8.1", "2.9.1", "2.10.0", "2.4.0"])
def test_other_releases_of_torch_are_good(torch: str) -> None:
    versions = {"torch": torch, "transformers": "4.50.0"}
    assert checks_of(hardware("rtx4090-desktop"), versions=versions)["torch"].ok


@pytest.mark.parametrize(
    ("name", "torch_cuda", "told"),
    [
        ("rtx4090-desktop", None, "has no CUDA"),
        ("rtx5090-windows", (12, 4), "needs a build for CUDA 12.8"),
        ("rtx4090-desktop", (99, 0), "the driver runs CUDA up to"),
    ],
)
def test_a_torch_that_was_built_for_others_is_told(name: str, torch_cuda: tuple[int, int] | None, told: str) -> None:
    build = checks_of(hardware(name), torch_cuda=torch_cuda)["torch build"]
    assert (build.ok, build.required) == (False, True)
    assert told in build.detail


def test_volta_is_left_out_by_new_builds_and_turing_is_not() -> None:
    seen = hardware("h200")
    for capability, good in (((7, 0), False), ((7, 5), True)):
        gpu = replace(seen.gpus[0], capability=capability)
        machine = replace(seen, gpus=(gpu,), visible_gpus=(gpu,))
        assert checks_of(machine, torch_cuda=(13, 0))["torch build"].ok == good


def test_a_5090_runs_on_a_build_for_cuda_12_8() -> None:
    assert checks_of(hardware("rtx5090-windows"), torch_cuda=(12, 8))["torch build"].ok


def test_missing_encoders_are_an_obstacle() -> None:
    video = checks_of(hardware("h200"), encoders=frozenset({"aac"}))["video"]
    assert (video.ok, video.required) == (False, True)
    assert "libx264" in video.detail


def test_python_that_is_too_old_or_untested() -> None:
    assert not fit(checks_of(hardware("h200", free_disk_bytes=10**12), python=(3, 9)))
    newer = checks_of(hardware("h200", free_disk_bytes=10**12), python=(3, 19))
    assert not newer["python"].ok
    assert fit(newer)


def test_room_for_the_weights_decides_which_form_is_advised() -> None:
    roomy, tight, full = (
        checks_of(hardware("h200", free_disk_bytes=free))["disk"] for free in (10**11, 6 * 10**10, 10**10)
    )
    assert roomy.ok
    assert (tight.ok, tight.required, "32 GB in fp8" in tight.detail) == (False, False, True)
    weights = checks_of(hardware("h200", free_disk_bytes=6 * 10**10))["weights"]
    assert weights.fix == "talk download --speakers 1 --quant fp8"
    assert (full.required, full.ok) == (True, False)
    assert download_bytes("fp8") < 33e9 < 90e9 < download_bytes("none")


def test_a_taken_port_is_a_note_not_an_obstacle() -> None:
    with socket.socket() as taken:
        try:
            taken.bind(("127.0.0.1", 8418))
        except OSError:
            pytest.skip("the port is in use")
        taken.listen()
        port = checks_of(hardware("h200"))["port"]
    assert (port.ok, port.required, port.fix) == (False, False, "")  # there is no page yet for which to free it
    assert "no part of talk uses it yet" in port.detail


def test_ranges_are_those_of_the_package() -> None:
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    for name, floor in FLOORS.items():
        assert f'"{name}>={floor}' in text
    for name, ceiling in CEILINGS.items():
        assert f"<{ceiling}" in next(line for line in text.splitlines() if line.strip().startswith(f'"{name}>='))


def test_versions_compare_by_number() -> None:
    assert parse_version("2.13.0+cpu") == (2, 13, 0)
    assert parse_version("2.10.0a0") > parse_version("2.9.1")
    assert parse_version("nonsense") == ()


def test_what_is_installed_here_is_read_without_importing_it() -> None:
    found = read_packages()
    assert found.versions["torch"]
    assert {"libx264", "aac"} <= found.encoders


def test_a_fix_that_is_advice_is_a_comment_in_the_script() -> None:
    script = fix_script(
        [
            Check("a", False, True, "broken", "talk download --speakers 1"),
            Check("b", False, True, "too small", "buy more"),
            Check("c", True, True, "fine"),
        ]
    )
    assert script.splitlines() == [
        "#!/bin/sh",
        "set -e",
        "# a: broken",
        "talk download --speakers 1",
        "# b: too small",
        "# buy more",
    ]


def test_lines_carry_mark_name_detail_and_fix() -> None:
    assert check_line(Check("gpu", True, True, "RTX 4090")) == "ok   gpu: RTX 4090"
    assert check_line(Check("x", False, False, "no", "do")) == "note x: no\n     fix: do"
    assert check_line(Check("x", False, True, "no")).startswith("FAIL x")


def test_a_probe_that_dies_is_a_result() -> None:
    program = (
        "import os, json, signal; print(json.dumps({'name': 'bfloat16', 'ok': True, 'detail': 'fine'}), flush=True);"
        "os.kill(os.getpid(), signal.SIGTERM)"
    )
    first, last = run_probes([sys.executable, "-c", program], {})
    assert (first.name, first.ok, first.required) == ("bfloat16", True, True)
    assert (last.ok, last.required) == (False, True)
    if sys.platform != "win32":
        assert "killed by signal 15 after 'bfloat16'" in last.detail


def test_a_probe_that_hangs_is_a_result() -> None:
    (only,) = run_probes([sys.executable, "-c", "import time; time.sleep(60)"], {}, limit_s=0.3)
    assert "no answer in 0 s" in only.detail


def test_an_optional_kernel_that_fails_is_no_obstacle() -> None:
    program = 'print(\'{"name": "attention: cudnn", "ok": false, "detail": "no"}\')'
    (only,) = run_probes([sys.executable, "-c", program], {})
    assert (only.ok, only.required) == (False, False)


def test_a_demo_that_fails_says_why() -> None:
    check = make_demo_video({"PATH": "", "PYTHONPATH": str(Path(__file__).parents[1])}, "tpu")
    assert (check.ok, check.required) == (False, True)
    assert "exit code 2: error: --device must be" in check.detail


def test_a_hub_that_does_not_answer_is_a_note() -> None:
    check = check_hub("http://127.0.0.1:9")
    assert (check.ok, check.required) == (False, False)


def asked(program: str, limit_s: float = 15.0) -> Check:
    """What the doctor makes of a driver that answers like this program."""
    seen = hardware("rtx4090-desktop")
    return check_cuda(seen, seen.gpus[0], (sys.executable, "-S", "-c", program), limit_s)


@pytest.mark.parametrize(
    ("program", "ok", "detail", "fix"),
    [
        ('print(\'{"code": 0, "name": "CUDA_SUCCESS", "count": 1}\')', True, "starts, 1 device to use", ""),
        ('print(\'{"code": 802, "name": "NOT_READY", "count": 0}\')', False, "NOT_READY (802)", "fabricmanager"),
        ("import os; os.abort()", False, "ends with code", "sudo reboot"),
    ],
    ids=["starts", "fabric manager", "crash"],
)
def test_a_driver_that_does_not_start_or_crashes_is_a_result(program: str, ok: bool, detail: str, fix: str) -> None:
    check = asked(program)
    assert (check.ok, check.required) == (ok, True)
    assert detail in check.detail
    assert fix in check.fix


def test_a_driver_that_hangs_is_a_result() -> None:
    assert "does not answer in 0.2 s" in asked("import time; time.sleep(9)", 0.2).detail


def test_cuda_that_is_not_there_is_told() -> None:
    seen = hardware("rtx4090-desktop")
    check = check_cuda(seen, seen.gpus[0])
    if not check.ok:
        assert check.fix


def test_a_package_that_only_tests_use_is_no_obstacle() -> None:
    checks = checks_of(hardware("rtx4090-desktop"), versions={"librosa": None})
    assert (checks["packages"].ok, checks["packages"].required) == (False, False)
    assert "no run needs it" in checks["packages"].detail
    assert fit(checks)
    assert not fit(checks_of(hardware("rtx4090-desktop"), versions={"librosa": None, "soxr": None}))


def test_extras_are_told_with_what_adds_them() -> None:
    none = checks_of(hardware("rtx4090-desktop"), versions={"kokoro": None, "scenedetect": None})["extras"]
    assert (none.ok, none.required) == (True, False)
    assert 'no speech from text (pip install "infinitalk-cli[tts]")' in none.detail
    some = checks_of(hardware("rtx4090-desktop"), versions={"scenedetect": "0.7.2"})["extras"]
    assert "scene cuts by scenedetect 0.7.2" in some.detail


@pytest.mark.parametrize(
    ("wish", "package", "fix"),
    [("sage", "sageattention", '"infinitalk-cli[sage]"'), ("int8", TRITON, TRITON)],
)
def test_a_kernel_that_a_profile_asks_for_and_that_is_absent_is_told(wish: Attention, package: str, fix: str) -> None:
    seen = hardware("rtx4090-desktop")
    choice = choose_profile(seen, Wishes(attention=wish))
    found = examine(Examination(seen, Packages(GOOD, (12, 8), ENCODERS), choice, Path("no-weights")))
    check = next(check for check in found if check.name == "attention")
    assert (check.ok, check.required) == (False, False)
    assert f"{package} is not installed: the fastest exact kernel is used instead" in check.detail
    assert check.fix == f"python -m pip install {fix}"


def test_the_8_bit_kernel_is_pointed_out_where_it_can_run() -> None:
    packages = Packages({**GOOD, TRITON: "3.6.0"}, (12, 8), ENCODERS)
    seen = hardware("rtx4090-desktop")
    found = examine(Examination(seen, packages, choose_profile(seen, Wishes()), Path("no-weights")))
    (check,) = (check for check in found if check.name == "attention")
    assert check.ok
    assert "--attention 8bit is faster and less exact" in check.detail


def test_a_pickled_speech_encoder_is_told_and_never_opened(tmp_path: Path) -> None:
    folder = tmp_path / "chinese-wav2vec2-base"
    folder.mkdir()
    (folder / "pytorch_model.bin").write_bytes(b"no pickle at all")
    check = checks_of(hardware("h200"), weights_dir=tmp_path)["speech encoder"]
    assert (check.ok, check.required, check.fix) == (False, False, "talk download --only audio")
    (folder / "model.safetensors").write_bytes(b"")
    assert checks_of(hardware("h200"), weights_dir=tmp_path)["speech encoder"].ok


def test_a_full_disk_for_videos_is_a_note() -> None:
    assert not checks_of(hardware("h200", free_disk_bytes=10**8))["output disk"].ok
    assert checks_of(hardware("h200", free_disk_bytes=10**10))["output disk"].ok
