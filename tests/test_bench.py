"""`talk bench` measures what it is asked for and ends with one JSON document."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner, Result

from infinitalk_cli.bench import parse_setting
from infinitalk_cli.errors import InputError
from infinitalk_cli.main import app
from infinitalk_cli.measure import REAL_DIT, PassSetting, Workload, pass_tflop

TRIAL = ["bench", "--random-weights", "--tiny", "--device", "cpu", "--repeats", "2"]


@pytest.fixture(scope="module")
def trial() -> Result:
    """Passes, colours and the VAE, measured once."""
    return CliRunner().invoke(app, [*TRIAL, "bf16", "int8-two-speakers", "color", "vae"])


def test_last_line_is_a_document_of_all_figures(trial: Result) -> None:
    assert trial.exit_code == 0, trial.output
    found = json.loads(trial.stdout.splitlines()[-1])
    names = [result["name"] for result in found["results"]]
    assert names[:3] == ["bf16", "int8-two-speakers", "colour correction"]
    assert {"VAE encode, float32", "VAE decode, bfloat16 channels-last"} <= set(names)
    assert all(len(result["times_s"]) == 2 and min(result["times_s"]) > 0 for result in found["results"])
    assert found["torch"] == torch.__version__
    assert "bf16 " in trial.stderr


def test_stages_around_the_transformer_are_measured_and_drawn_as_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    run = CliRunner().invoke(app, [*TRIAL, "text", "image", "audio", "load", "first-pass"])
    assert run.exit_code == 0, run.output
    results = json.loads(run.stdout.splitlines()[-1])["results"]
    assert [found["name"] for found in results] == ["first pass", "text", "image", "audio", "load"]
    assert len(results[0]["times_s"]) == 1
    assert results[-1]["tflop_per_s"] >= 0
    assert "lowest - highest" in run.stderr
    assert all(len(line) <= 80 for line in run.stderr.splitlines())


def test_layout_does_not_change_what_the_vae_makes(trial: Result) -> None:
    notes = {r["name"]: r["note"] for r in json.loads(trial.stdout.splitlines()[-1])["results"]}
    off = {name: float(note.split()[2].rstrip(",")) for name, note in notes.items() if name.startswith("VAE")}
    assert off["VAE decode, float32"] == 0
    assert off["VAE decode, float32 channels-last"] < 1e-5
    assert 1e-5 < off["VAE decode, bfloat16 channels-last"] < 0.05


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bf16", PassSetting("bf16")),
        ("fp8-streamed", PassSetting("fp8", streamed=True)),
        ("int8-plain-two-speakers", PassSetting("int8", plain=True, num_speakers=2)),
    ],
)
def test_names_of_settings_are_read_and_told(name: str, expected: PassSetting) -> None:
    assert parse_setting(name) == expected
    assert expected.name == name


@pytest.mark.parametrize("name", ["fp4", "bf16-fast", ""])
def test_unknown_setting_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="nothing to measure"):
        parse_setting(name)


@pytest.mark.parametrize("size", ["448", "448x", "450x896", "0x896", "axb"])
def test_size_must_be_two_multiples_of_16(size: str) -> None:
    run = CliRunner().invoke(app, [*TRIAL, "--size", size, "bf16"])
    assert run.exit_code == 2
    assert "--size" in run.stderr


def test_without_random_weights_it_says_what_to_add() -> None:
    run = CliRunner().invoke(app, ["bench", "--tiny"])
    assert run.exit_code == 2
    assert "--random-weights" in run.stderr


def test_work_of_a_pass_is_that_of_the_published_count() -> None:
    work = Workload(640, 640)
    assert work.num_tokens == 33_600
    assert pass_tflop(REAL_DIT, work) == pytest.approx(1895, rel=0.002)  # 47.4 TFLOP a block
