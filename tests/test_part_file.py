"""A file on its way: continued, checked, put in place, or given up."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from infinitalk_cli.errors import InterruptedRunError, TalkError
from infinitalk_cli.part_file import (
    Digest,
    PartFile,
    TooManyBytesError,
    disk_error,
    hash_file,
    part_path,
    parts_of,
    read_digest,
)

CONTENT = bytes(range(256)) * 20
DIGEST = Digest("sha256", hashlib.sha256(CONTENT).hexdigest())


def part_of(target: Path, digest: Digest = DIGEST, size: int = len(CONTENT)) -> PartFile:
    return PartFile(target, size, digest)


def test_complete_file_is_put_in_place_with_its_digest(tmp_path: Path) -> None:
    target = tmp_path / "folder" / "model.safetensors"
    with part_of(target) as part:
        part.write(CONTENT[:100])
        assert not part.is_right
        part.write(CONTENT[100:])
        assert not target.exists()
        assert part.finish() == DIGEST.value
    assert target.read_bytes() == CONTENT
    assert list(target.parent.iterdir()) == [target]


def test_part_is_continued_by_the_next_process_and_hashed_from_its_beginning(tmp_path: Path) -> None:
    with part_of(tmp_path / "a") as part:
        part.write(CONTENT[:1000])
    with part_of(tmp_path / "a") as part:
        assert (part.have_bytes, part.tell()) == (1000, 1000)
        part.write(CONTENT[1000:])
        assert part.is_right
        part.finish()
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_part_of_another_version_is_not_continued_but_dropped(tmp_path: Path) -> None:
    with part_of(tmp_path / "a") as part:
        part.write(b"old")
    with part_of(tmp_path / "a", Digest("sha256", "f" * 64)) as part:
        assert part.have_bytes == 0
        assert parts_of(tmp_path / "a") == [part.path]


def test_part_that_is_a_link_is_replaced_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    precious, target = tmp_path / "precious", tmp_path / "weights" / "a"
    precious.write_bytes(b"precious")
    target.parent.mkdir()
    part_path(target, DIGEST).symlink_to(precious)
    with part_of(target) as part:
        part.write(CONTENT)
        part.finish()
    assert target.read_bytes() == CONTENT
    assert not target.is_symlink()
    assert precious.read_bytes() == b"precious"


def test_bytes_in_the_kernel_outlive_the_process(tmp_path: Path) -> None:
    """No buffer of ours: what `write` took is in the file although it was never closed or flushed."""
    with part_of(tmp_path / "a") as part:
        part.write(CONTENT[:777])
        assert part.path.stat().st_size == 777


@pytest.mark.parametrize("content", [CONTENT[:-1] + b"x", CONTENT[:-1]])
def test_wrong_or_short_content_is_not_right(tmp_path: Path, content: bytes) -> None:
    with part_of(tmp_path / "a") as part:
        part.write(content)
        assert not part.is_right


def test_more_bytes_than_announced_are_refused(tmp_path: Path) -> None:
    with part_of(tmp_path / "a") as part:
        part.write(CONTENT)
        with pytest.raises(TooManyBytesError):
            part.write(b"x")


def test_part_longer_than_the_file_begins_anew(tmp_path: Path) -> None:
    part_path(tmp_path / "a", DIGEST).write_bytes(CONTENT + b"x")
    with part_of(tmp_path / "a") as part:
        assert part.have_bytes == 0
        assert part.path.stat().st_size == 0


def test_server_that_starts_over_is_followed(tmp_path: Path) -> None:
    told = list[int]()
    with PartFile(tmp_path / "a", len(CONTENT), DIGEST, on_bytes=told.append) as part:
        part.write(b"x" * 50)
        assert part.seek(0) == 0
        part.truncate()
        part.write(CONTENT)
        assert part.is_right
    assert sum(told) == len(CONTENT)


def test_stop_is_heeded_at_the_next_write(tmp_path: Path) -> None:
    stopped = False
    with PartFile(tmp_path / "a", len(CONTENT), DIGEST, stopped=lambda: stopped) as part:
        part.write(CONTENT[:10])
        stopped = True
        with pytest.raises(InterruptedRunError):
            part.write(CONTENT[10:])
    assert part.path.read_bytes() == CONTENT[:10]


def test_discarded_part_is_gone(tmp_path: Path) -> None:
    with part_of(tmp_path / "a") as part:
        part.write(b"x")
        part.discard()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("tag", "kind"),
    [("a" * 64, "sha256"), ("0" * 40, "git"), ("a" * 32, "unknown"), ("W-abc", "unknown"), ("", "unknown")],
)
def test_entity_tags_are_read_as_digests(tag: str, kind: str) -> None:
    assert read_digest(tag) == Digest(kind, tag)  # pyright: ignore[reportArgumentType]


def test_digests_are_those_of_sha256_and_git(tmp_path: Path) -> None:
    path = tmp_path / "hello"
    path.write_bytes(b"hello\n")
    hasher = hash_file(path)
    assert hasher.agrees_with(Digest("git", "ce013625030ba8dba906f756967f9e9ca394464a"))
    assert hasher.agrees_with(Digest("sha256", "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"))
    assert not hasher.agrees_with(Digest("git", "0" * 40))
    assert hasher.agrees_with(Digest("unknown", "W-1"))


@pytest.mark.parametrize(
    ("number", "exit_code"), [(28, 6), (122, 6), (30, 2), (13, 2), (1, 2), (20, 2), (5, 4)], ids=lambda n: str(n)
)
def test_disk_errors_say_whose_matter_they_are(tmp_path: Path, number: int, exit_code: int) -> None:
    error = disk_error(OSError(number, "reason"), tmp_path / "a")
    assert isinstance(error, TalkError)
    assert error.exit_code == exit_code
    assert str(tmp_path) in error.message
