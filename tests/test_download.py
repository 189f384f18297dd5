"""`talk download` against a hub of ours and the real client library: which files are fetched for which wish."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from infinitalk_cli import download_command
from infinitalk_cli.console import progress_line
from infinitalk_cli.download import Meter
from tests.downloads import assert_right, download, tree
from tests.hardware_fixtures import hardware
from tests.hub_server import HubServer
from tests.hub_tree import (
    COMMON,
    FP8_TEXT,
    MULTITALK,
    PLAIN_TEXT,
    QUANT,
    RTX_4090,
    SHARDS,
    VAE,
    WAN,
    WAV2VEC,
)


def test_rtx_4090_gets_exactly_its_files_with_the_right_bytes(hub: HubServer, tmp_path: Path) -> None:
    result = download("--profile", "rtx-4090")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{tmp_path / 'weights'}\n"
    assert_right(hub, tmp_path / "weights", RTX_4090)


@pytest.mark.parametrize(
    ("arguments", "places"),
    [
        (("--quant", "none"), (*COMMON, *SHARDS, PLAIN_TEXT, "InfiniteTalk/single/infinitetalk.safetensors")),
        (
            ("--profile", "default", "--speakers", "2"),
            (*COMMON, *SHARDS, PLAIN_TEXT, "InfiniteTalk/multi/infinitetalk.safetensors"),
        ),
        (
            ("--quant", "fp8", "--speakers", "2"),
            (*COMMON, f"{QUANT}/infinitetalk_multi_fp8.safetensors", f"{QUANT}/infinitetalk_multi_fp8.json", *FP8_TEXT),
        ),
        (
            ("--quant", "fp8", "--speakers", "2", "--merged-lora"),
            (
                *COMMON,
                f"{QUANT}/infinitetalk_multi_fp8_lora.safetensors",
                f"{QUANT}/infinitetalk_multi_fp8_lora.json",
                *FP8_TEXT,
            ),
        ),
        (
            ("--profile", "rtx-3090"),
            (
                *COMMON,
                f"{QUANT}/infinitetalk_single_int8.safetensors",
                f"{QUANT}/infinitetalk_single_int8.json",
                "MeiGen-MultiTalk/quant_models/t5_int8.safetensors",
                "MeiGen-MultiTalk/quant_models/t5_map_int8.json",
            ),
        ),
        (
            ("--quant", "none", "--engine", "multitalk"),
            (*COMMON, *SHARDS, PLAIN_TEXT, "MeiGen-MultiTalk/multitalk.safetensors"),
        ),
        (
            ("--only", "lora", "--lora", "fusionx", "--lora", "lightx2v"),
            (
                "Wan2.1_I2V_14B_FusionX_LoRA.safetensors",
                "lightx2v_I2V_14B_480p_cfg_step_distill_rank64_bf16.safetensors",
            ),
        ),
        (
            ("--only", "tts", "--tts"),
            (
                "Kokoro-82M/config.json",
                "Kokoro-82M/kokoro-v1_0.pth",
                *(f"Kokoro-82M/voices/{name}.pt" for name in ("af_heart", "am_adam", "am_michael")),
            ),
        ),
        (("--only", "vae", "--only", "chinese-wav2vec2-base/*.json"), (VAE, *COMMON[-3:-1])),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) and len(str(value)) < 80 else "",
)
def test_each_need_is_met_by_its_published_files(
    hub: HubServer, tmp_path: Path, arguments: tuple[str, ...], places: tuple[str, ...]
) -> None:
    result = download(*arguments)
    assert result.exit_code == 0, result.output
    assert tree(tmp_path / "weights") == set(places)


def test_preset_brings_its_lora(hub: HubServer, tmp_path: Path) -> None:
    assert download("--quant", "fp8", "--preset", "fast", "--only", "lora").exit_code == 0
    assert tree(tmp_path / "weights") == {"lightx2v_I2V_14B_480p_cfg_step_distill_rank64_bf16.safetensors"}


def test_machine_chooses_the_form_where_nothing_is_said(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download_command, "detect_hardware", lambda: hardware("rtx3090-desktop"))
    result = download("--only", "transformer")
    assert result.exit_code == 0, result.output
    assert "rtx-3090 profile, int8 weights" in result.stderr
    assert f"{QUANT}/infinitetalk_single_int8.safetensors" in tree(tmp_path / "weights")


def test_machine_without_a_gpu_asks_what_the_weights_are_for(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download_command, "detect_hardware", lambda: hardware("no-gpu-laptop"))
    result = download()
    assert result.exit_code == 2
    assert "--quant fp8" in result.stderr
    assert hub.requests == []
    assert download("--only", "vae").exit_code == 0


def test_project_file_is_heeded(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "talk.toml").write_text('quant = "int8"\n')
    monkeypatch.chdir(tmp_path)
    assert download("--only", "transformer").exit_code == 0
    assert f"{QUANT}/infinitetalk_single_int8.safetensors" in tree(tmp_path / "weights")


def test_speech_encoder_comes_from_the_pull_request_and_never_as_a_pickle(hub: HubServer, tmp_path: Path) -> None:
    assert download("--only", "audio").exit_code == 0
    model = (tmp_path / "weights/chinese-wav2vec2-base/model.safetensors").read_bytes()
    assert model == hub.repositories[WAV2VEC]["refs/pr/1"]["model.safetensors"]
    config = (tmp_path / "weights/chinese-wav2vec2-base/config.json").read_bytes()
    assert config == hub.repositories[WAV2VEC]["main"]["config.json"]
    assert not any("pytorch_model" in request for request in hub.requests)


def test_second_run_asks_nothing_and_a_damaged_file_alone_is_fetched_again(hub: HubServer, tmp_path: Path) -> None:
    assert download("--profile", "rtx-4090").exit_code == 0
    hub.forget()
    again = download("--profile", "rtx-4090")
    assert (again.exit_code, hub.requests) == (0, [])
    assert "14 files are there and verified" in again.stderr
    vae = tmp_path / "weights" / VAE
    vae.write_bytes(b"x" + vae.read_bytes()[1:])
    assert download("--profile", "rtx-4090").exit_code == 0
    assert {sent.path for sent in hub.sent} == {"Wan2.1_VAE.pth"}
    assert_right(hub, tmp_path / "weights", RTX_4090)


def test_file_that_vanished_upstream_is_named_unless_a_stand_in_is_there(hub: HubServer, tmp_path: Path) -> None:
    del hub.repositories[MULTITALK]["main"]["quant_models/t5_int8.safetensors"]
    result = download("--quant", "int8", "--only", "text")
    assert result.exit_code == 0, result.output
    assert "taking InfiniteTalk/quant_models/t5_fp8.safetensors" in result.stderr
    assert tree(tmp_path / "weights") == {
        "InfiniteTalk/quant_models/t5_fp8.safetensors",
        "MeiGen-MultiTalk/quant_models/t5_map_int8.json",
    }
    del hub.repositories[WAN]["main"]["Wan2.1_VAE.pth"]
    result = download("--only", "vae")
    assert result.exit_code == 4
    assert "Wan2.1_VAE.pth of Wan-AI/Wan2.1-I2V-14B-480P" in result.stderr


def test_one_speaker_with_a_merged_lora_in_fp8_gets_the_int8_file_that_exists(hub: HubServer, tmp_path: Path) -> None:
    result = download("--quant", "fp8", "--merged-lora", "--only", "transformer")
    assert result.exit_code == 0, result.output
    assert f"{QUANT}/infinitetalk_single_int8_lora.safetensors" in tree(tmp_path / "weights")
    assert not any("multi" in place for place in tree(tmp_path / "weights"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--profile", "rtx-5000000"), "there is no profile"),
        (("--profile", "demo"), "makes its own weights"),
        (("--quant", "fp8", "--lora", "nothing"), "there is no LoRA"),
        (("--quant", "fp8", "--voice", "xx_nobody"), "there is no voice"),
        (("--only", "nothing"), "--only nothing"),
        (("--quant", "none", "--merged-lora"), "--quant fp8 or int8"),
        (("--quant", "fp8", "--revision", "nobody/nothing=main"), "not a repository"),
        (("--speakers", "3"), "--speakers"),
    ],
)
def test_wrong_wishes_are_refused_before_the_hub_is_asked(
    hub: HubServer, arguments: tuple[str, ...], words: str
) -> None:
    result = download(*arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert hub.requests == []


def test_progress_tells_total_speed_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    meter = Meter(40 * 10**9)
    progress = meter.read("a")
    assert progress.eta_s is None
    for _ in range(3):
        now_s += 1
        meter.add(10**9)
        progress = meter.read("b.safetensors and 3 more")
    assert progress.amount == "3.0 of 40.0 GB at 1000.0 MB/s"
    assert (progress.fraction, progress.eta_s, progress.elapsed_s) == (3 / 40, 37.0, 3.0)
    assert (
        progress_line(progress) == "[  8%] download: b.safetensors and 3 more, 3.0 of 40.0 GB at 1000.0 MB/s, 0:37 left"
    )
    now_s = 30.0  # only the last seconds count
    meter.read()
    now_s = 32.0
    meter.add(10**8)
    assert meter.read().amount.endswith("at 50.0 MB/s")
