"""`talk download` against a hub of ours and the real client library: what is fetched, how it ends, what is kept."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any, cast

import pytest
from typer.testing import CliRunner, Result

from infinitalk_cli import download_command
from infinitalk_cli import hub as hub_module
from infinitalk_cli.console import progress_line
from infinitalk_cli.download import Meter
from infinitalk_cli.errors import DoesNotFitError
from infinitalk_cli.main import app
from infinitalk_cli.weights_record import Record
from tests.hardware_fixtures import hardware
from tests.hub_server import HubServer, Trouble, commit_of
from tests.hub_tree import (
    COMMON,
    FP8_TEXT,
    INFINITETALK,
    MULTITALK,
    PLAIN_TEXT,
    QUANT,
    RTX_4090,
    SHARDS,
    WAN,
    WAV2VEC,
    content_at,
    content_of,
    fill,
    lay_tree,
    use_hub,
)

VAE = "Wan2.1-I2V-14B-480P/Wan2.1_VAE.pth"
SINGLE_FP8 = f"{QUANT}/infinitetalk_single_fp8.safetensors"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[HubServer, None, None]:
    """A hub with everything on it, and a machine with nothing."""
    server = HubServer()
    fill(server)
    use_hub(server, tmp_path / "hf" / "hub", monkeypatch)
    monkeypatch.setenv("TALK_WEIGHTS_DIR", str(tmp_path / "weights"))
    monkeypatch.delenv("TALK_DEBUG", raising=False)
    monkeypatch.setattr(hub_module.Patience, "__init__", _impatient)
    with server.running():
        yield server


def _impatient(patience: hub_module.Patience) -> None:
    """The same waits as in life, a hundred times shorter."""
    for name, value in {"num_tries": 4, "first_wait_s": 0.01, "longest_wait_s": 0.1}.items():
        object.__setattr__(patience, name, value)


def download(*arguments: str) -> Result:
    """The command without the conversion, which these made-up contents are not for."""
    return CliRunner().invoke(app, ["download", "--no-convert", *arguments])


def talk_json(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    return cast("dict[str, Any]", json.loads(result.stdout))


def tree(folder: Path) -> set[str]:
    """The files under a folder, without our own record."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {path.as_posix() for path in found if path.parts[0] != ".talk"}


def assert_right(hub: HubServer, folder: Path, places: tuple[str, ...]) -> None:
    assert tree(folder) == set(places)
    for place in places:
        assert (folder / place).read_bytes() == content_at(hub, place), place


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


def test_files_that_are_there_are_recognised_by_their_content(hub: HubServer, tmp_path: Path) -> None:
    lay_tree(hub, tmp_path / "weights", RTX_4090[:-2])
    assert download("--profile", "rtx-4090").exit_code == 0
    assert {sent.path for sent in hub.sent} == {"quant_models/t5_fp8.safetensors", "quant_models/t5_map_fp8.json"}
    hub.forget()
    assert download("--profile", "rtx-4090").exit_code == 0
    assert hub.requests == []


def test_file_that_another_program_left_unfinished_is_continued(hub: HubServer, tmp_path: Path) -> None:
    whole = content_at(hub, SINGLE_FP8)
    path = tmp_path / "weights" / SINGLE_FP8
    path.parent.mkdir(parents=True)
    path.write_bytes(whole[:1000])
    assert download("--quant", "fp8", "--only", SINGLE_FP8).exit_code == 0
    assert [(sent.start, sent.num_bytes) for sent in hub.sent] == [(1000, len(whole) - 1000)]
    assert_right(hub, tmp_path / "weights", (SINGLE_FP8,))


def test_other_whole_file_stays_until_the_right_one_is_complete(hub: HubServer, tmp_path: Path) -> None:
    path = tmp_path / "weights" / SINGLE_FP8
    path.parent.mkdir(parents=True)
    theirs = content_of("another.safetensors", 1000)
    path.write_bytes(theirs)
    hub.troubles.append(Trouble(path="quant_models/infinitetalk_single_fp8.safetensors", wrong=True))
    assert download("--quant", "fp8", "--only", SINGLE_FP8).exit_code == 4
    assert path.read_bytes() == theirs
    hub.troubles.clear()
    assert download("--quant", "fp8", "--only", SINGLE_FP8).exit_code == 0
    assert_right(hub, tmp_path / "weights", (SINGLE_FP8,))


def test_links_are_replaced_or_followed_but_never_written_through(hub: HubServer, tmp_path: Path) -> None:
    ours, elsewhere = tmp_path / "weights", tmp_path / "another disk"
    (elsewhere / "InfiniteTalk").mkdir(parents=True)
    (elsewhere / "precious.pth").write_bytes(b"precious")
    (ours / "Wan2.1-I2V-14B-480P").mkdir(parents=True)
    (ours / "InfiniteTalk").symlink_to(elsewhere / "InfiniteTalk")
    (ours / VAE).symlink_to(elsewhere / "precious.pth")
    (ours / COMMON[0]).symlink_to(elsewhere / "nowhere")
    assert download("--profile", "rtx-4090").exit_code == 0
    assert (elsewhere / "precious.pth").read_bytes() == b"precious"
    assert not (elsewhere / "nowhere").exists()
    assert (elsewhere / SINGLE_FP8).read_bytes() == content_at(hub, SINGLE_FP8)
    for place in RTX_4090:
        assert (ours / place).read_bytes() == content_at(hub, place)


def test_dry_run_says_what_would_be_fetched_and_writes_nothing(hub: HubServer, tmp_path: Path) -> None:
    assert download("--only", "vae").exit_code == 0
    before = tree(tmp_path)
    result = download("--profile", "rtx-4090", "--dry-run")
    assert result.exit_code == 0
    assert "have" in next(line for line in result.stdout.splitlines() if VAE in line)
    assert "need" in next(line for line in result.stdout.splitlines() if SINGLE_FP8 in line)
    assert "to fetch: 13 files" in result.stdout
    report = talk_json("download", "--profile", "rtx-4090", "--dry-run")
    sizes = {file["place"]: file["size"] for file in report["files"]}
    assert sizes == {place: len(content_at(hub, place)) for place in RTX_4090}
    assert report["total_bytes"] - report["need_bytes"] == sizes[VAE]
    assert report["free_bytes"] > 0
    assert tree(tmp_path) == before


def test_what_the_hubs_own_cache_holds_is_linked_not_fetched(hub: HubServer, tmp_path: Path) -> None:
    from huggingface_hub import hf_hub_download

    theirs = Path(hf_hub_download(INFINITETALK, "quant_models/infinitetalk_single_fp8.safetensors", endpoint=hub.url))
    hub.forget()
    report = talk_json("download", "--profile", "rtx-4090", "--no-convert")
    assert "quant_models/infinitetalk_single_fp8.safetensors" not in {sent.path for sent in hub.sent}
    assert (tmp_path / "weights" / SINGLE_FP8).samefile(theirs)
    assert report["linked_bytes"] == theirs.stat().st_size
    assert_right(hub, tmp_path / "weights", RTX_4090)


def test_damaged_file_of_the_hubs_cache_is_not_taken(hub: HubServer, tmp_path: Path) -> None:
    from huggingface_hub import hf_hub_download

    theirs = Path(hf_hub_download(WAN, "Wan2.1_VAE.pth", endpoint=hub.url)).resolve()
    theirs.chmod(0o644)
    theirs.write_bytes(bytes(theirs.stat().st_size))
    assert download("--only", "vae").exit_code == 0
    assert_right(hub, tmp_path / "weights", (VAE,))


def test_offline_takes_what_is_here_and_names_what_is_not(hub: HubServer, tmp_path: Path) -> None:
    from huggingface_hub import hf_hub_download

    for path in ("Wan2.1_VAE.pth", "config.json"):
        hf_hub_download(WAN, path, revision="main", endpoint=hub.url)
    hub.forget()
    result = download("--offline", "--only", "vae")
    assert (result.exit_code, hub.requests) == (0, [])
    assert_right(hub, tmp_path / "weights", (VAE,))
    result = download("--offline", "--only", "vae", "--only", "audio")
    assert result.exit_code == 4
    assert "chinese-wav2vec2-base/model.safetensors" in result.stderr
    assert "Wan2.1_VAE" not in result.stderr
    assert hub.requests == []


def test_offline_variable_of_the_hub_is_heeded(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert download("--only", "vae").exit_code == 4
    assert hub.requests == []


def test_cut_connections_are_taken_up_where_they_broke(hub: HubServer, tmp_path: Path) -> None:
    hub.troubles.append(Trouble(path="Wan2.1_VAE.pth", times=2, cut_after=1000))
    assert download("--only", "vae").exit_code == 0
    assert_right(hub, tmp_path / "weights", (VAE,))
    starts = [sent.start for sent in hub.sent]
    assert starts == sorted(starts)
    assert hub.bytes_sent("Wan2.1_VAE.pth") <= 3000 + 2 * 1000


def test_nothing_arrives_any_more_and_what_did_is_kept(hub: HubServer, tmp_path: Path) -> None:
    hub.add(WAN, "Wan2.1_VAE.pth", os.urandom(3 * 2**20))
    hub.troubles.append(Trouble(path="Wan2.1_VAE.pth", times=1, cut_after=2**21 + 5))
    hub.troubles.append(Trouble(path="Wan2.1_VAE.pth", status=503))
    failed = download("--only", "vae")
    assert failed.exit_code == 4
    assert "503" in failed.stderr
    parts = list((tmp_path / "weights/Wan2.1-I2V-14B-480P").glob("*.part"))
    assert [part.stat().st_size for part in parts] == [2**21]
    hub.troubles.clear()
    hub.forget()
    dry_run = download("--only", "vae", "--dry-run")
    assert "2.1 MB of it are here" in dry_run.stdout
    assert download("--only", "vae").exit_code == 0
    assert [(sent.start, sent.num_bytes) for sent in hub.sent] == [(2**21, 2**20)]
    assert_right(hub, tmp_path / "weights", (VAE,))


def test_server_that_cannot_continue_is_heard_from_the_beginning(hub: HubServer, tmp_path: Path) -> None:
    hub.add(WAN, "Wan2.1_VAE.pth", os.urandom(3 * 2**20))
    hub.troubles.append(Trouble(path="Wan2.1_VAE.pth", times=1, cut_after=2**21, ignore_range=True))
    hub.troubles.append(Trouble(path="Wan2.1_VAE.pth", ignore_range=True))
    assert download("--only", "vae").exit_code == 0
    assert_right(hub, tmp_path / "weights", (VAE,))


def test_silent_connection_is_given_up_and_made_anew(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    hub.add(WAN, "Wan2.1_VAE.pth", os.urandom(2**20))
    hub.troubles.append(Trouble(path="Wan2.1_VAE.pth", times=1, seconds_per_send=0.6))
    assert download("--only", "vae").exit_code == 0
    assert_right(hub, tmp_path / "weights", (VAE,))


def test_wrong_bytes_are_fetched_once_more(hub: HubServer, tmp_path: Path) -> None:
    hub.troubles.append(Trouble(path="Wan2.1_VAE.pth", times=1, wrong=True))
    assert download("--only", "vae").exit_code == 0
    assert_right(hub, tmp_path / "weights", (VAE,))
    assert len(hub.sent) == 2


def test_wrong_bytes_twice_are_an_error_and_leave_nothing(hub: HubServer, tmp_path: Path) -> None:
    hub.troubles.append(Trouble(path="Wan2.1_VAE.pth", wrong=True))
    result = download("--only", "vae", "--only", "Wan2.1-I2V-14B-480P/config.json")
    assert result.exit_code == 4
    assert "damaged twice" in result.stderr
    assert tree(tmp_path / "weights") == {"Wan2.1-I2V-14B-480P/config.json"}


def test_small_files_are_compared_by_gits_digest(hub: HubServer, tmp_path: Path) -> None:
    hub.troubles.append(Trouble(path="config.json", wrong=True))
    result = download("--only", "Wan2.1-I2V-14B-480P/config.json")
    assert result.exit_code == 4
    assert "damaged twice" in result.stderr
    assert tree(tmp_path / "weights") == set()


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_hub_is_waited_for_as_long_as_it_asks(hub: HubServer, tmp_path: Path, status: int) -> None:
    hub.troubles.append(Trouble(times=1, status=status, headers={"Retry-After": "1"}, listing=True))
    hub.troubles.append(Trouble(path="Wan2.1_VAE.pth", times=1, status=status, headers={"Retry-After": "1"}))
    result = download("--only", "vae")
    assert result.exit_code == 0, result.output
    assert "asks to wait" in result.stderr
    assert_right(hub, tmp_path / "weights", (VAE,))


def test_gated_repository_says_how_to_log_in_and_a_token_opens_it(hub: HubServer, tmp_path: Path) -> None:
    hub.tokens = {"hf_right"}
    result = download("--only", "vae")
    assert result.exit_code == 4
    assert "hf auth login" in result.stderr
    assert "HF_TOKEN" in result.stderr
    assert download("--only", "vae", "--token", "hf_right").exit_code == 0
    assert_right(hub, tmp_path / "weights", (VAE,))


def test_token_of_the_environment_is_used(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.tokens = {"hf_right"}
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert download("--only", "vae").exit_code == 0


def test_no_hub_at_all_is_said_plainly(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    result = download("--only", "vae")
    assert result.exit_code == 4
    assert "can't get Wan-AI/Wan2.1-I2V-14B-480P" in result.stderr
    assert "Traceback" not in result.stderr


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


def test_pinned_commit_is_taken_where_it_exists(hub: HubServer, tmp_path: Path) -> None:
    pinned = "6b73f84e66371cdfe870c72acd6826e1d61cf279"
    hub.add(WAN, "Wan2.1_VAE.pth", b"as it was tested", revision=pinned)
    assert download("--only", "vae").exit_code == 0
    assert (tmp_path / "weights" / VAE).read_bytes() == b"as it was tested"


def test_another_revision_can_be_asked_for_and_is_asked_again(hub: HubServer, tmp_path: Path) -> None:
    hub.add(WAN, "Wan2.1_VAE.pth", b"of the branch", revision="next")
    wish = ("--only", "vae", "--revision", f"{WAN}=next")
    assert download(*wish).exit_code == 0
    vae = tmp_path / "weights" / VAE
    assert vae.read_bytes() == b"of the branch"
    entry = Record(tmp_path / "weights").known(VAE)
    assert entry is not None
    assert (entry.revision, entry.commit) == ("next", commit_of(WAN, "next"))
    hub.add(WAN, "Wan2.1_VAE.pth", b"of the branch, later", revision="next")
    assert download(*wish).exit_code == 0
    assert vae.read_bytes() == b"of the branch, later"
    nowhere = download("--only", "vae", "--revision", "nowhere")
    assert nowhere.exit_code == 4
    assert "at nowhere" in nowhere.stderr


def test_too_little_room_is_said_before_anything_is_fetched(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real._replace(free=5000))  # pyright: ignore
    result = download("--profile", "rtx-4090")
    assert result.exit_code == DoesNotFitError.exit_code
    assert "talk weights rm" in result.stderr
    assert hub.sent == []


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
def test_a_disk_that_fills_up_ends_the_download_and_keeps_what_came(hub: HubServer, tmp_path: Path) -> None:
    import resource

    hub.add(WAN, "Wan2.1_VAE.pth", os.urandom(3 * 2**20))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**21 + 1000, before[1]))
    try:
        result = download("--only", "vae")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert result.exit_code == DoesNotFitError.exit_code
    assert "is full" in result.stderr
    hub.forget()
    assert download("--only", "vae").exit_code == 0
    assert [sent.start for sent in hub.sent] == [2**21 + 1000]
    assert_right(hub, tmp_path / "weights", (VAE,))


def test_folder_that_cannot_be_written_to_is_the_users_matter(hub: HubServer, tmp_path: Path) -> None:
    (tmp_path / "weights").write_text("a file where the folder should be")
    result = download("--only", "vae")
    assert result.exit_code == 2
    assert "--weights-dir" in result.stderr


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
