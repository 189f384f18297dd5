"""Downloads that meet trouble: connections, wrong bytes, refusals, full disks. What is right is not lost."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from infinitalk_cli.errors import DoesNotFitError
from tests.downloads import assert_right, download, tree
from tests.hub_server import HubServer, Trouble
from tests.hub_tree import (
    SINGLE_FP8,
    VAE,
    WAN,
    content_of,
)


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
    (aside,) = path.parent.glob("*.other")
    assert aside.read_bytes() == theirs
    aside.unlink()
    assert_right(hub, tmp_path / "weights", (SINGLE_FP8,))


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


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_folder_is_the_users_matter(hub: HubServer, tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    folder.mkdir(mode=0o555)
    result = download("--only", "vae")
    assert result.exit_code == 2
    assert "can't write to" in result.stderr
    assert "--weights-dir" in result.stderr


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_read_only_disk_is_the_users_matter(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    real = Path.mkdir

    def refuse(path: Path, *arguments: Any, **options: Any) -> None:
        if tmp_path / "weights" in (path, *path.parents):
            raise OSError(number, os.strerror(number), str(path))
        real(path, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", refuse)
    result = download("--only", "vae")
    assert result.exit_code == 2
    assert "can't write to" in result.stderr
    assert "--weights-dir" in result.stderr


def test_unknown_host_is_said_plainly_and_names_a_way_out(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    result = download("--only", "vae")
    assert result.exit_code == 4
    assert "can't get Wan-AI/Wan2.1-I2V-14B-480P" in result.stderr
    assert "check the network" in result.stderr
    assert "--offline" in result.stderr


@pytest.mark.parametrize("status", [401, 403])
def test_refused_listing_says_how_to_log_in(hub: HubServer, status: int) -> None:
    hub.troubles.append(Trouble(status=status, listing=True))
    result = download("--only", "vae")
    assert result.exit_code == 4
    assert "hf auth login" in result.stderr
