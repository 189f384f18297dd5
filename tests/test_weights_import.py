"""What `talk weights import` takes over from other folders, and what is then not fetched."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from infinitalk_cli.main import app
from infinitalk_cli.published import Published
from infinitalk_cli.weights import locate
from infinitalk_cli.weights_record import Record
from tests.hub_server import HubServer, Trouble
from tests.hub_tree import (
    COMMON,
    INFINITETALK,
    PLAIN_TEXT,
    RTX_4090,
    SHARDS,
    SINGLE,
    SINGLE_FP8,
    VAE,
    content_at,
    content_of,
    lay_tree,
)
from tests.weights_cli import publish, published_file, report_of, weights


def test_import_of_a_guides_tree_shares_the_files_and_knows_them(hub: HubServer, tmp_path: Path) -> None:
    theirs = lay_tree(hub, tmp_path / "their weights", (*RTX_4090, SINGLE))
    result = weights("import", str(theirs))
    assert result.exit_code == 0, result.output
    ours = tmp_path / "weights"
    for place in (*RTX_4090, SINGLE):
        assert (ours / place).samefile(theirs / place)
    hub.forget()
    assert CliRunner().invoke(app, ["download", "--no-convert", "--profile", "rtx-4090"]).exit_code == 0
    assert hub.requests == []


def test_import_recognises_content_under_other_names(hub: HubServer, tmp_path: Path) -> None:
    comfy = tmp_path / "ComfyUI/models"
    for name, place in {"vae/wan_vae.pth": VAE, "diffusion_models/talk.safetensors": SINGLE_FP8}.items():
        (comfy / name).parent.mkdir(parents=True)
        (comfy / name).write_bytes(content_at(hub, place))
    (comfy / "vae/other.pth").write_bytes(content_of("other", len(content_at(hub, VAE))))
    files = {file["place"]: file for file in report_of("import", str(comfy))["files"]}
    assert set(files) == {VAE, SINGLE_FP8}
    assert all(file["verified"] and file["way"] == "linked" for file in files.values())
    assert Record(tmp_path / "weights").known(VAE) is not None


def test_import_of_a_hub_cache_works_offline_by_the_digest_in_its_names(hub: HubServer, tmp_path: Path) -> None:
    from huggingface_hub import hf_hub_download

    hf_hub_download(INFINITETALK, "single/infinitetalk.safetensors", endpoint=hub.url)
    hub.forget()
    files = report_of("import", str(tmp_path / "hf"), "--offline")["files"]
    assert [(file["place"], file["verified"]) for file in files] == [(SINGLE, True)]
    assert (tmp_path / "weights" / SINGLE).read_bytes() == content_at(hub, SINGLE)
    assert hub.requests == []


def test_import_without_a_network_goes_by_known_sums_and_then_by_names(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = lay_tree(hub, tmp_path / "their weights", (VAE, SINGLE))
    (theirs / VAE).rename(theirs / "renamed.pth")
    publish(monkeypatch, published_file(hub, VAE))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    result = weights("import", str(theirs), "--json")
    assert result.exit_code == 0, result.output
    assert "going by known sums and names alone" in result.stderr
    files = {file["place"]: file["verified"] for file in json.loads(result.stdout)["files"]}
    assert files == {VAE: True, SINGLE: False}


def test_a_repository_that_is_refused_takes_no_digests_from_the_others(hub: HubServer, tmp_path: Path) -> None:
    theirs = lay_tree(hub, tmp_path / "their weights", (VAE, SINGLE))
    (theirs / VAE).rename(theirs / "renamed.pth")
    hub.troubles.append(Trouble(path=INFINITETALK, status=403, listing=True))
    result = weights("import", str(theirs), "--json")
    assert result.exit_code == 0, result.output
    assert result.stderr.count(f"going by known sums and names for files of {INFINITETALK}: the hub does not") == 1
    files = {file["place"]: file["verified"] for file in json.loads(result.stdout)["files"]}
    assert files == {VAE: True, SINGLE: False}


def test_import_takes_another_programs_adapter_that_a_run_can_read(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "Wan2_1-InfiniTetalk-Single_fp16.safetensors"
    content = content_of(name, 500)
    (tmp_path / "ComfyUI").mkdir()
    (tmp_path / "ComfyUI/infinite.safetensors").write_bytes(content)
    publish(monkeypatch, Published(name, len(content), hashlib.sha256(content).hexdigest()))
    assert [file["place"] for file in report_of("import", str(tmp_path / "ComfyUI"))["files"]] == [f"repackaged/{name}"]
    root = lay_tree(hub, tmp_path / "weights", (*COMMON, *SHARDS, PLAIN_TEXT))
    assert locate(root, num_speakers=1).adapter == root / "repackaged" / name


def test_import_from_another_disk_copies_or_links_by_name(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_link(*arguments: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", no_link)
    theirs = lay_tree(hub, tmp_path / "their weights", (VAE, SINGLE_FP8))
    ours = tmp_path / "weights"
    assert [file["way"] for file in report_of("import", str(theirs / "InfiniteTalk"))["files"]] == ["copied"]
    assert not (ours / SINGLE_FP8).samefile(theirs / SINGLE_FP8)
    assert (ours / SINGLE_FP8).read_bytes() == content_at(hub, SINGLE_FP8)
    assert [file["way"] for file in report_of("import", str(theirs), "--symlink")["files"]] == ["symlinked"]
    assert (ours / VAE).is_symlink()
    assert (ours / VAE).samefile(theirs / VAE)


def test_import_leaves_what_is_there_and_what_leads_nowhere(hub: HubServer, tmp_path: Path) -> None:
    theirs = lay_tree(hub, tmp_path / "their weights", (VAE,))
    (theirs / "loop").symlink_to(theirs)
    (theirs / "dangling.safetensors").symlink_to(tmp_path / "nowhere")
    ours = tmp_path / "weights"
    (ours / VAE).parent.mkdir(parents=True)
    (ours / VAE).write_bytes(b"mine")
    result = weights("import", str(theirs))
    assert result.exit_code == 0, result.output
    assert "nothing there that is missing here" in result.stdout
    assert (ours / VAE).read_bytes() == b"mine"
    assert weights("import", str(tmp_path / "nowhere")).exit_code == 2


def test_import_names_a_damaged_file_that_it_could_have_taken(hub: HubServer, tmp_path: Path) -> None:
    theirs = tmp_path / "ComfyUI/models/vae/wan_2.1_vae.safetensors"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"half of a download")
    result = weights("import", str(tmp_path / "ComfyUI"))
    assert result.exit_code == 0
    assert f"{theirs} is not taken, it is damaged" in result.stderr


def test_import_dry_run_takes_nothing(hub: HubServer, tmp_path: Path) -> None:
    theirs = lay_tree(hub, tmp_path / "their weights", (VAE,))
    assert VAE in weights("import", str(theirs), "--dry-run").stdout
    assert not (tmp_path / "weights").exists()


def test_what_another_programs_files_serve_for_is_not_fetched(hub: HubServer, tmp_path: Path) -> None:
    names = ("umt5_xxl_fp8_e4m3fn_scaled.safetensors", "clip_vision_h.safetensors", "wan_2.1_vae.safetensors")
    others = tmp_path / "weights/repackaged"
    others.mkdir(parents=True)
    for name in names:
        (others / name).write_bytes(content_of(name, 100))
    result = CliRunner().invoke(app, ["download", "--no-convert", "--profile", "rtx-4090"])
    assert result.exit_code == 0, result.output
    for name in names:
        assert f"repackaged/{name} serves" in result.stderr
    fetched = {sent.path for sent in hub.sent}
    assert not fetched & {"quant_models/t5_fp8.safetensors", "Wan2.1_VAE.pth", COMMON[5].rpartition("/")[2]}
    files = locate(tmp_path / "weights", num_speakers=1, quant="fp8")
    assert {files.text_encoder.name, files.image_encoder.name, files.vae.name} == set(names)
    # what is asked for by name is fetched all the same
    assert CliRunner().invoke(app, ["download", "--only", "vae"]).exit_code == 0
    assert locate(tmp_path / "weights", num_speakers=1, quant="fp8").vae == tmp_path / "weights" / VAE


def test_damaged_file_of_another_program_serves_for_nothing(hub: HubServer, tmp_path: Path) -> None:
    path = tmp_path / "weights/repackaged/wan_2.1_vae.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half of a download")
    assert CliRunner().invoke(app, ["download", "--no-convert", "--profile", "rtx-4090"]).exit_code == 0
    assert locate(tmp_path / "weights", num_speakers=1, quant="fp8").vae == tmp_path / "weights" / VAE
