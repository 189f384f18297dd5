"""`talk weights`: what it shows, what it finds wrong, what it takes over, what it lets go."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, cast

import pytest
from typer.testing import CliRunner, Result

from infinitalk_cli import compact, published, weights_import, weights_tree
from infinitalk_cli.main import app
from infinitalk_cli.published import Published
from infinitalk_cli.weights import locate
from infinitalk_cli.weights_record import Record
from tests.hub_server import HubServer
from tests.hub_tree import (
    COMMON,
    FP8_TEXT,
    INFINITETALK,
    PLAIN_TEXT,
    QUANT,
    RTX_4090,
    SHARDS,
    content_at,
    content_of,
    lay_tree,
)

SINGLE_FP8 = f"{QUANT}/infinitetalk_single_fp8.safetensors"
SINGLE = "InfiniteTalk/single/infinitetalk.safetensors"
VAE = "Wan2.1-I2V-14B-480P/Wan2.1_VAE.pth"


@pytest.fixture
def filled(hub: HubServer, tmp_path: Path) -> Path:
    """A weights folder with the RTX 4090's files, as `talk download` leaves it."""
    result = CliRunner().invoke(app, ["download", "--no-convert", "--profile", "rtx-4090"])
    assert result.exit_code == 0, result.output
    hub.forget()
    return tmp_path / "weights"


def weights(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["weights", *arguments])


def report_of(*arguments: str) -> dict[str, Any]:
    result = weights(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return cast("dict[str, Any]", json.loads(result.stdout))


def publish(monkeypatch: pytest.MonkeyPatch, *listed: Published) -> None:
    """Let these be the published sums."""
    monkeypatch.setattr(published, "PUBLISHED", listed)
    monkeypatch.setattr(weights_import, "PUBLISHED", listed)
    by_sha256 = {item.sha256: item for item in listed}
    monkeypatch.setattr(weights_tree, "BY_SHA256", by_sha256)


def published_file(hub: HubServer, place: str) -> Published:
    content = content_at(hub, place)
    return Published(place.rpartition("/")[2], len(content), hashlib.sha256(content).hexdigest(), place)


def test_ls_shows_files_states_and_the_runs_they_suffice_for(filled: Path) -> None:
    (filled / "mine.safetensors").write_bytes(b"my own")
    result = weights("ls")
    assert result.exit_code == 0
    lines = {line.split()[0]: line for line in result.stdout.splitlines() if line.strip()}
    assert "verified" in lines[VAE]
    assert "unverified" in lines["mine.safetensors"]
    runs = {run["name"]: run for run in report_of("ls")["runs"]}
    assert runs["infinitetalk fp8, 1 speaker"]["complete"]
    assert runs["infinitetalk fp8, 2 speakers"]["missing"] == [f"{QUANT}/infinitetalk_multi_fp8.safetensors"]
    assert set(runs["infinitetalk bf16, 1 speaker"]["missing"]) == {*SHARDS, PLAIN_TEXT, SINGLE}


def test_ls_of_nothing_says_where_to_begin(hub: HubServer) -> None:
    result = weights("ls")
    assert result.exit_code == 0
    assert "talk download" in result.stdout


def test_path_is_printed_alone(filled: Path) -> None:
    assert weights("path").stdout == f"{filled}\n"
    assert weights("path", VAE).stdout == f"{filled / VAE}\n"
    assert weights("path", "nothing").exit_code == 4
    (filled.parent / "secret").touch()
    assert weights("path", "../secret").exit_code == 4


def test_verify_needs_no_network_and_finds_nothing_wrong_in_a_fresh_download(hub: HubServer, filled: Path) -> None:
    report = report_of("verify")
    assert report["ok"]
    assert {file["place"] for file in report["files"]} == set(RTX_4090)
    assert hub.requests == []


def test_verify_finds_a_cut_file_by_its_length_and_a_changed_one_when_it_reads_it(filled: Path) -> None:
    model, vae = filled / SINGLE_FP8, filled / VAE
    model.write_bytes(model.read_bytes()[:-5])
    content = vae.read_bytes()
    vae.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    fast = weights("verify")
    assert fast.exit_code == 4
    assert "1 of 14 files are damaged" in fast.stderr
    line = next(line for line in fast.stdout.splitlines() if line.startswith(VAE))
    assert "--full reads it again" in line
    full = weights("verify", "--full")
    assert full.exit_code == 4
    assert "2 of 14 files are damaged" in full.stderr


def test_verify_of_nothing_says_where_it_looked_and_what_fetches_weights(hub: HubServer, tmp_path: Path) -> None:
    for is_there in (False, True):
        if is_there:
            (tmp_path / "weights").mkdir()
        result = weights("verify")
        assert result.exit_code == 4
        assert str(tmp_path / "weights") in result.stderr
        assert "talk download" in result.stderr
        assert result.stdout == ""
    result = weights("verify", "--json")
    assert (result.exit_code, json.loads(result.stdout)) == (4, {"ok": False, "files": []})


def test_verify_takes_one_file_or_folder(filled: Path) -> None:
    assert [file["place"] for file in report_of("verify", VAE)["files"]] == [VAE]
    assert {file["place"] for file in report_of("verify", "chinese-wav2vec2-base")["files"]} == set(COMMON[-3:])
    assert weights("verify", "nothing").exit_code == 2


def test_full_verify_says_which_files_are_the_published_ones_and_remembers(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = lay_tree(hub, tmp_path / "weights", (VAE, PLAIN_TEXT, SINGLE))
    (root / PLAIN_TEXT).write_bytes(b"another text encoder")
    publish(monkeypatch, published_file(hub, VAE), published_file(hub, PLAIN_TEXT))
    assert "not the published file, which has" in weights("verify").stdout
    files = {file["place"]: file for file in report_of("verify", "--full")["files"]}
    assert {place: file["published"] for place, file in files.items()} == {VAE: True, PLAIN_TEXT: False, SINGLE: None}
    assert files[VAE]["note"] == "the published Wan2.1_VAE.pth"
    states = {file["place"]: file["state"] for file in report_of("ls")["files"]}
    assert states == {VAE: "verified", PLAIN_TEXT: "unverified", SINGLE: "unverified"}


def test_hostile_header_is_damage_not_a_crash(filled: Path) -> None:
    header = b'{"a": {"dtype": "F32", "shape": [99999999999], "data_offsets": [0, 399999999996]}}'
    (filled / SINGLE_FP8).write_bytes(len(header).to_bytes(8, "little") + header)
    (filled / "chinese-wav2vec2-base/model.safetensors").write_bytes(b"\xff" * 100)
    Record(filled).remove(SINGLE_FP8)
    Record(filled).remove("chinese-wav2vec2-base/model.safetensors")
    result = weights("verify")
    assert result.exit_code == 4
    assert "2 of 14 files are damaged" in result.stderr


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


def test_rm_frees_what_a_form_does_not_need_and_says_how_much(hub: HubServer, filled: Path) -> None:
    extra = (*SHARDS, PLAIN_TEXT, SINGLE)
    lay_tree(hub, filled, extra)
    part = filled / f"{SHARDS[0]}.0123.part"
    part.write_bytes(b"a part")
    mine = filled / "InfiniteTalk/single/mine.safetensors"
    mine.write_bytes(content_of(mine.name, 10))
    lora = filled / "Wan2.1_I2V_14B_FusionX_LoRA.safetensors"
    lora.write_bytes(content_of(lora.name, 10))
    dry_run = weights("rm", "--quant", "fp8", "--dry-run")
    assert dry_run.exit_code == 0
    assert f"{len(extra) + 1} files" in dry_run.stdout
    freed = sum((filled / place).stat().st_size for place in extra) + part.stat().st_size
    assert weights("rm", "--quant", "fp8").exit_code == 2  # nobody is there to answer
    report = report_of("rm", "--quant", "fp8", "--yes")
    assert {file["place"] for file in report["files"]} == {*extra, part.relative_to(filled).as_posix()}
    assert report["freed_bytes"] == freed
    assert mine.exists()
    assert lora.exists()
    assert report_of("verify")["ok"]
    assert CliRunner().invoke(app, ["download", "--no-convert", "--profile", "rtx-4090"]).exit_code == 0


def test_rm_of_shared_and_linked_files_takes_the_name_and_frees_nothing(hub: HubServer, tmp_path: Path) -> None:
    theirs = lay_tree(hub, tmp_path / "their weights", (VAE, SINGLE))
    assert weights("import", str(theirs)).exit_code == 0
    ours = tmp_path / "weights"
    (ours / SINGLE).unlink()
    (ours / SINGLE).symlink_to(theirs / SINGLE)
    report = report_of("rm", VAE, SINGLE, "--yes")
    assert report["freed_bytes"] == 0
    assert not (ours / VAE).exists()
    assert not (ours / "InfiniteTalk").exists()  # empty folders go too
    assert (theirs / VAE).exists()
    assert (theirs / SINGLE).exists()


def test_rm_does_not_reach_through_a_linked_folder(hub: HubServer, tmp_path: Path) -> None:
    elsewhere = lay_tree(hub, tmp_path / "elsewhere", (SINGLE,)) / "InfiniteTalk"
    ours = tmp_path / "weights"
    ours.mkdir()
    (ours / "InfiniteTalk").symlink_to(elsewhere)
    result = weights("rm", "InfiniteTalk", "--yes")
    assert result.exit_code == 2
    assert "outside the weights folder" in result.stderr
    assert (elsewhere / "single/infinitetalk.safetensors").exists()


@pytest.mark.parametrize("arguments", [("--yes",), ("--quant", "fp8", VAE), ("nothing-here", "--yes")])
def test_rm_wants_to_know_what(filled: Path, arguments: tuple[str, ...]) -> None:
    assert weights("rm", *arguments).exit_code == 2
    assert report_of("verify")["ok"]


def test_rm_keeps_the_text_encoder_that_stands_in(hub: HubServer, tmp_path: Path) -> None:
    int8 = f"{QUANT}/infinitetalk_single_int8.safetensors"
    lay_tree(hub, tmp_path / "weights", (*COMMON, int8, FP8_TEXT[0]))
    report = report_of("rm", "--quant", "int8", "--yes")
    assert report["files"] == []
    assert locate(tmp_path / "weights", num_speakers=1, quant="int8").text_encoder_quant == "fp8"


def make_compact(root: Path, place: str, sources: tuple[str, ...]) -> None:
    """A file at `place` whose header says that it was made of the sources as they are."""
    described = [compact.describe_source(root / source, root) for source in sources]
    metadata = compact.header_metadata(described, {})
    header = json.dumps({"__metadata__": metadata, "a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]}}).encode()
    (root / place).parent.mkdir(exist_ok=True)
    (root / place).write_bytes(len(header).to_bytes(8, "little") + header + b"abc")


def test_sources_of_compact_files_may_go_and_are_not_fetched_again(hub: HubServer, tmp_path: Path) -> None:
    clip, root = COMMON[5], tmp_path / "weights"
    assert CliRunner().invoke(app, ["download", "--no-convert", "--quant", "none"]).exit_code == 0
    make_compact(root, "compact/infinitetalk_single_bf16.safetensors", (*SHARDS, SINGLE))
    make_compact(root, "compact/clip_vision_fp16.safetensors", (clip,))
    make_compact(root, "compact/infinitetalk_single_fp8_lora.safetensors", (*SHARDS, SINGLE))
    report = report_of("rm", "--quant", "none", "--speakers", "1", "--yes")
    assert {file["place"] for file in report["files"]} == {*SHARDS, SINGLE, clip}
    runs = {run["name"]: run for run in report_of("ls")["runs"]}
    assert runs["infinitetalk bf16, 1 speaker"]["complete"]
    hub.forget()
    assert CliRunner().invoke(app, ["download", "--no-convert", "--quant", "none"]).exit_code == 0
    assert hub.requests == []
    # for two speakers the base is needed again; CLIP is not
    assert CliRunner().invoke(app, ["download", "--no-convert", "--quant", "none", "--speakers", "2"]).exit_code == 0
    assert len({sent.path for sent in hub.sent}) == len(SHARDS) + 1


def test_stale_compact_file_replaces_nothing(hub: HubServer, tmp_path: Path) -> None:
    clip, root = COMMON[5], tmp_path / "weights"
    assert CliRunner().invoke(app, ["download", "--no-convert", "--only", "image", "--quant", "fp8"]).exit_code == 0
    make_compact(root, "compact/clip_vision_fp16.safetensors", (clip,))
    (root / clip).write_bytes(b"another CLIP")
    assert CliRunner().invoke(app, ["download", "--no-convert", "--quant", "fp8"]).exit_code == 0
    assert (root / clip).read_bytes() == content_at(hub, clip)


def test_damaged_compact_file_is_named_by_every_command(hub: HubServer, tmp_path: Path) -> None:
    path = tmp_path / "weights/compact/clip_vision_fp16.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"tampered with")
    result = CliRunner().invoke(app, ["download", "--no-convert", "--quant", "fp8"])
    assert result.exit_code == 4
    assert "clip_vision_fp16.safetensors is damaged" in result.stderr
    assert weights("ls").exit_code == 0
    assert weights("verify").exit_code == 4
    assert weights("rm", "compact", "--yes").exit_code == 0
    assert not path.exists()


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
