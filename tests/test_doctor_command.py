"""`talk doctor` and `talk env` as commands: what they print and exit with, on recorded machines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from infinitalk_cli import doctor_reports
from infinitalk_cli.doctor import Check, Packages
from infinitalk_cli.main import app
from tests.hardware_fixtures import hardware
from tests.stand_in import lay_plain_weights
from tests.test_doctor import ENCODERS, GOOD


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """A working folder without weights or settings; the machine is put in by `on`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TALK_WEIGHTS_DIR", str(tmp_path / "weights"))
    monkeypatch.setattr("infinitalk_cli.settings_files.user_config_path", lambda: tmp_path / "none.toml")
    return monkeypatch


def on(machine: pytest.MonkeyPatch, name: str, *arguments: str, **changes: int) -> Result:
    seen = hardware(name, **changes)  # pyright: ignore[reportArgumentType]
    machine.setattr(doctor_reports, "detect_hardware", lambda folders=(): seen)
    machine.setattr(doctor_reports, "read_packages", lambda: Packages(GOOD, (12, 8), ENCODERS))
    machine.setattr(doctor_reports, "check_cuda", lambda *_: Check("cuda", True, True, "starts"))
    return CliRunner().invoke(app, ["doctor", *arguments])


def test_a_fit_machine_exits_0_and_names_profile_and_next_command(machine: pytest.MonkeyPatch) -> None:
    result = on(machine, "rtx4090-desktop", free_disk_bytes=10**12)
    assert result.exit_code == 0
    assert "rtx-4090 profile: NVIDIA GeForce RTX 4090 has a row of its own" in result.stdout
    assert "next: talk download --speakers 1 --quant fp8" in result.stdout


def test_a_machine_without_a_gpu_exits_3_and_names_the_demo(machine: pytest.MonkeyPatch) -> None:
    result = on(machine, "no-gpu-laptop", "--json")
    assert result.exit_code == 3
    record = json.loads(result.stdout)
    assert (record["ok"], record["profile"]) == (False, "demo")
    assert set(record) == {"ok", "profile", "checks"}
    assert all(set(check) == {"name", "ok", "required", "detail", "fix"} for check in record["checks"])


def test_the_form_that_was_downloaded_is_judged_as_a_run_would_take_it(
    machine: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lay_plain_weights(tmp_path / "weights")
    result = on(machine, "rtx4090-desktop", available_ram_bytes=60 * 10**9)
    assert "bfloat16 weights are there, others are not" in result.stdout


def test_fix_prints_a_script_and_runs_nothing(machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    result = on(machine, "driver-mismatch", "--fix")
    assert result.stdout.startswith("#!/bin/sh\nset -e\n")
    assert "sudo reboot" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_another_profile_can_be_judged(machine: pytest.MonkeyPatch) -> None:
    result = on(machine, "rtx3060-12gb", "--profile", "default", free_disk_bytes=10**12)
    assert result.exit_code == 3
    assert "FAIL ram" in result.stdout


@pytest.mark.parametrize("name", ["no-gpu-laptop", "driver-mismatch", "rtx3060-12gb"])
def test_the_demo_is_judged_without_what_it_needs_no_gpu_for(machine: pytest.MonkeyPatch, name: str) -> None:
    result = on(machine, name, "--profile", "demo")
    assert result.exit_code == 0, result.stdout
    assert "FAIL" not in result.stdout
    assert result.stdout.endswith("next: talk demo\n")
    if name != "rtx3060-12gb":
        assert "the demo runs without" in result.stdout
    assert "sudo" not in on(machine, name, "--profile", "demo", "--fix").stdout


def test_what_the_demo_needs_too_fails_its_judgement(machine: pytest.MonkeyPatch) -> None:
    machine.setitem(GOOD, "transformers", None)  # pyright: ignore[reportArgumentType]
    result = on(machine, "no-gpu-laptop", "--profile", "demo")
    assert result.exit_code == 3
    assert "not fit for the demo: transformers" in result.stdout
    machine.setenv("TALK_PROFILE", "demo")
    assert "not fit for the published weights" in on(machine, "no-gpu-laptop").stdout


def test_env_holds_versions_and_no_paths(machine: pytest.MonkeyPatch) -> None:
    machine.setenv("HF_TOKEN", "secret")
    machine.setenv("TALK_HUB_TOKEN", "secret")
    machine.setenv("TALK_STEPS", "8")
    result = CliRunner().invoke(app, ["env"])
    assert result.exit_code == 0
    assert "torch " in result.stdout
    assert "TALK_STEPS=8" in result.stdout
    assert "secret" not in result.stdout
    assert str(Path.cwd()) not in result.stdout


def test_two_speakers_need_weights_of_their_own(machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lay_plain_weights(tmp_path / "weights")
    result = on(machine, "h200", "--speakers", "2", "--json", free_disk_bytes=10**12)
    weights = next(check for check in json.loads(result.stdout)["checks"] if check["name"] == "weights")
    assert not weights["ok"]
    assert weights["fix"].startswith("talk download --speakers 2")


@pytest.mark.parametrize(
    ("text", "told", "fix"),
    [
        ("size = 480\nstepz = 3\n", "talk.toml, line 2: unknown key 'stepz'", "did you mean 'steps'?"),
        ("steps = 0\n", "talk.toml, line 1: steps must be from 1 to 1000, not 0", "correct it there, or take it out"),
        ("gpu =\n", "talk.toml is no TOML: ", "a line is KEY = VALUE"),
        ("gpu = 7\n", "talk.toml, line 1: --gpu 7 fits no GPU here", "choose one of: 0 "),
    ],
    ids=["unknown key", "wrong value", "no TOML", "no such GPU"],
)
def test_wrong_settings_are_one_failed_check_among_the_others(
    machine: pytest.MonkeyPatch, text: str, told: str, fix: str
) -> None:
    Path("talk.toml").write_text(text)
    result = on(machine, "h200", free_disk_bytes=10**12)
    first, second, third = result.stdout.splitlines()[:3]
    assert (result.exit_code, first.startswith("FAIL settings: "), third.startswith("ok   python")) == (3, True, True)
    assert told in first
    assert second.startswith(f"     fix: {fix}")
    *_, names, what_runs = result.stdout.splitlines()
    assert names == "not fit for the published weights: settings"
    assert what_runs == "nothing runs here until the settings are right"


def test_wrong_options_of_the_doctor_are_no_finding(machine: pytest.MonkeyPatch) -> None:
    assert on(machine, "h200", "--profile", "rtx-409").exit_code == 2
    assert on(machine, "h200", "--gpu", "7").exit_code == 2
    assert on(machine, "h200", "--gpu", "7").stdout == ""
