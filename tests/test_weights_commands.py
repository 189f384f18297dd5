"""`talk weights`: what it shows, what it finds wrong, what it takes over, what it lets go."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from infinitalk_cli import compact
from infinitalk_cli.main import app
from infinitalk_cli.weights import locate
from infinitalk_cli.weights_record import Record
from tests.hub_server import HubServer
from tests.hub_tree import (
    COMMON,
    FP8_TEXT,
    PLAIN_TEXT,
    QUANT,
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


@pytest.fixture
def filled(hub: HubServer, tmp_path: Path) -> Path:
    """A weights folder with the RTX 4090's files, as `talk download` leaves it."""
    result = CliRunner().invoke(app, ["download", "--no-convert", "--profile", "rtx-4090"])
    assert result.exit_code == 0, result.output
    hub.forget()
    return tmp_path / "weights"


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
    with zipfile.ZipFile(root / PLAIN_TEXT, "w") as archive:
        archive.writestr("archive/data.pkl", b"another text encoder")
    publish(monkeypatch, published_file(hub, VAE), published_file(hub, PLAIN_TEXT))
    assert "not the published file, which has" in weights("verify").stdout
    files = {file["place"]: file for file in report_of("verify", "--full")["files"]}
    assert {place: file["published"] for place, file in files.items()} == {VAE: True, PLAIN_TEXT: False, SINGLE: None}
    assert files[VAE]["note"] == "the published Wan2.1_VAE.pth"
    states = {file["place"]: file["state"] for file in report_of("ls")["files"]}
    assert states == {VAE: "verified", PLAIN_TEXT: "unverified", SINGLE: "unverified"}


@pytest.mark.parametrize("arguments", [(), ("--full",)])
def test_garbage_of_another_length_than_the_published_file_is_damage(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    root = lay_tree(hub, tmp_path / "weights", (VAE, PLAIN_TEXT))
    (root / VAE).write_bytes(b"<html>no such file</html>")
    (root / "mine.pth").write_bytes(b"nobody knows how long this should be")
    publish(monkeypatch, published_file(hub, VAE), published_file(hub, PLAIN_TEXT))
    result = weights("verify", *arguments)
    assert result.exit_code == 4
    assert "DAMAGED: 25 bytes, but the published file has 3000; and it is no archive of tensors" in result.stdout
    assert "1 of 3 files are damaged" in result.stderr


def test_hostile_header_is_damage_not_a_crash(filled: Path) -> None:
    header = b'{"a": {"dtype": "F32", "shape": [99999999999], "data_offsets": [0, 399999999996]}}'
    (filled / SINGLE_FP8).write_bytes(len(header).to_bytes(8, "little") + header)
    (filled / "chinese-wav2vec2-base/model.safetensors").write_bytes(b"\xff" * 100)
    Record(filled).remove(SINGLE_FP8)
    Record(filled).remove("chinese-wav2vec2-base/model.safetensors")
    result = weights("verify")
    assert result.exit_code == 4
    assert "2 of 14 files are damaged" in result.stderr


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


def test_rm_names_what_it_deleted(filled: Path) -> None:
    sizes = {place: (filled / place).stat().st_size for place in (VAE, SINGLE_FP8)}
    *deleted, last = weights("rm", VAE, SINGLE_FP8, "--yes").stdout.splitlines()
    assert [line.split()[:2] for line in deleted] == [["deleted", VAE], ["deleted", SINGLE_FP8]]
    assert last == f"2 files, {sum(sizes.values()) / 1000:.1f} kB freed"


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
