"""What a download finds here already, which versions it takes, and what it says before it begins."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from infinitalk_cli.weights_record import Record
from tests.downloads import assert_right, download, talk_json, tree
from tests.hub_server import HubServer, commit_of
from tests.hub_tree import (
    COMMON,
    FUSIONX,
    INFINITETALK,
    REPACKED,
    RTX_4090,
    SINGLE_FP8,
    VAE,
    WAN,
    content_at,
    lay_tree,
)


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


def test_offline_takes_no_file_that_is_not_what_was_recorded(hub: HubServer, tmp_path: Path) -> None:
    assert download("--only", "vae").exit_code == 0
    place = tmp_path / "weights" / VAE
    right = place.read_bytes()
    place.write_bytes(right[:-1] + bytes([right[-1] ^ 1]))
    result = download("--offline", "--only", "vae")
    assert result.exit_code == 4
    assert "damaged" in result.stderr
    assert hashlib.sha256(right).hexdigest() in (tmp_path / "weights" / ".talk" / "record.json").read_text()
    assert download("--only", "vae").exit_code == 0
    assert place.read_bytes() == right


def test_somebody_s_own_weights_in_the_way_are_kept_under_another_name(hub: HubServer, tmp_path: Path) -> None:
    place = tmp_path / "weights" / SINGLE_FP8
    place.parent.mkdir(parents=True)
    save_file({"mine": torch.arange(5)}, place)
    mine = place.read_bytes()
    result = download("--quant", "fp8", "--only", SINGLE_FP8)
    assert result.exit_code == 0
    assert place.read_bytes() == content_at(hub, SINGLE_FP8)
    (kept,) = place.parent.glob("*.other")
    assert kept.read_bytes() == mine
    assert kept.name in result.stderr.replace("\n", "")


def test_offline_variable_of_the_hub_is_heeded(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert download("--only", "vae").exit_code == 4
    assert hub.requests == []


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


@pytest.mark.parametrize("arguments", [(), ("--offline",)])
def test_dry_run_without_the_hub_shows_what_is_known_and_fails_as_the_download_would(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    assert download("--only", "vae").exit_code == 0
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    result = download("--profile", "rtx-4090", "--dry-run", *arguments)
    assert result.exit_code == 4
    lines = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines() if line.strip()}
    assert lines[VAE][-1] == "have"
    assert lines[SINGLE_FP8] == ["?", "need"]
    assert lines[COMMON[5]] == ["4.8", "GB", "need"]  # the published length
    assert "of unknown size" in result.stdout
    assert "what was fetched is kept" not in result.stderr
    report = json.loads(download("--profile", "rtx-4090", "--dry-run", "--json", *arguments).stdout)
    sizes = {file["place"]: file["size"] for file in report["files"]}
    assert sizes[SINGLE_FP8] is None
    assert report["total_bytes"] is None
    assert tree(tmp_path / "weights") == {VAE}


def test_plan_and_record_name_the_commit_of_a_branch(hub: HubServer, tmp_path: Path) -> None:
    lora = ("download", "--quant", "fp8", "--lora", "fusionx", "--only", "lora")
    commit = commit_of(FUSIONX, "main")
    (planned,) = talk_json(*lora, "--dry-run")["files"]
    assert (planned["revision"], planned["commit"]) == ("main", commit)
    assert f"{commit[:12]} (main)" in download(*lora[1:], "--dry-run").stdout
    assert talk_json(*lora)["files"][0]["commit"] == commit
    assert talk_json(*lora)["files"][0]["commit"] == commit  # from the record alone
    (listed,) = talk_json("weights", "ls")["files"]
    (verified,) = talk_json("weights", "verify", "--full")["files"]
    assert listed["origin"] == verified["origin"] == f"{FUSIONX}@{commit}"


def test_branch_stays_where_the_folders_files_came_from(hub: HubServer, tmp_path: Path) -> None:
    path = "Lightx2v/lightx2v_I2V_14B_480p_cfg_step_distill_rank{}_bf16.safetensors"
    first, second = path.format(64), path.format(32)
    wish = ("--quant", "fp8", "--only", "lora", "--lora", "lightx2v")
    assert download(*wish).exit_code == 0
    as_it_was = dict(hub.repositories[REPACKED]["main"])
    hub.move_branch(REPACKED, "main")
    hub.add(REPACKED, second, b"another version")
    result = download(*wish, "--lora", "lightx2v-rank32")
    assert result.exit_code == 0, result.output
    for name in (first, second):
        assert (tmp_path / "weights" / Path(name).name).read_bytes() == as_it_was[name]
    # who names the branch gets it as it is now
    assert download(*wish, "--lora", "lightx2v-rank32", "--revision", f"{REPACKED}=main").exit_code == 0
    assert (tmp_path / "weights" / Path(second).name).read_bytes() == b"another version"
    entry = Record(tmp_path / "weights").known(Path(second).name)
    assert entry is not None
    assert entry.commit == hub.commit_of(REPACKED, "main")


def test_commit_that_is_gone_is_replaced_by_the_branch_with_a_note(hub: HubServer, tmp_path: Path) -> None:
    wish = ("--quant", "fp8", "--only", "lora", "--lora", "fusionx")
    assert download(*wish).exit_code == 0
    (path,) = [path for path in hub.repositories[FUSIONX]["main"] if path.startswith("FusionX_LoRa/")]
    hub.move_branch(FUSIONX, "main", forget=True)
    hub.add(FUSIONX, path, b"what there is now")
    (tmp_path / "weights" / Path(path).name).unlink()
    result = download(*wish)
    assert result.exit_code == 0, result.output
    assert "has no commit" in result.stderr
    assert (tmp_path / "weights" / Path(path).name).read_bytes() == b"what there is now"


def test_part_that_a_run_does_not_have_says_how_to_ask_for_it(hub: HubServer) -> None:
    for part, words in (("lora", "--lora NAME"), ("tts", "--voice NAME"), ("adapter", "--quant none")):
        result = download("--quant", "fp8", "--only", part)
        assert result.exit_code == 2
        assert words in result.stderr
    result = download("--quant", "fp8", "--only", "wav2vec2")
    assert result.exit_code == 2
    assert "lora, tts" in result.stderr
    assert "such as chinese-wav2vec2-base/config.json" in result.stderr
    assert hub.requests == []
