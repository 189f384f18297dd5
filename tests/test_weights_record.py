"""The record of the weights folder: what it remembers, when it no longer believes, and who may write."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from infinitalk_cli.errors import InputError
from infinitalk_cli.weights_record import Record, locked

PLACE = "folder/a.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A weights folder with one file."""
    (tmp_path / "folder").mkdir()
    (tmp_path / PLACE).write_bytes(b"content")
    return tmp_path


def test_record_is_there_for_the_next_process(folder: Path) -> None:
    entry = Record(folder).add(PLACE, "f" * 64, repository="owner/name", revision="main", commit="c", path="a")
    assert entry.size == 7
    assert Record(folder).known(PLACE) == entry


@pytest.mark.parametrize("change", ["content", "time", "deletion"])
def test_file_that_changed_is_no_longer_known(folder: Path, change: str) -> None:
    import os

    record = Record(folder)
    entry = record.add(PLACE, "f" * 64)
    if change == "content":
        (folder / PLACE).write_bytes(b"longer content")
    elif change == "time":
        os.utime(folder / PLACE, ns=(0, entry.mtime_ns + 1))
    else:
        (folder / PLACE).unlink()
    assert record.known(PLACE) is None
    assert record.of(PLACE) == entry


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"version": 99, "files": []}', '{"version": 1, "files": [{"place": 3}]}', "null"]
)
def test_damaged_record_counts_as_empty_and_is_replaced(folder: Path, content: str) -> None:
    (folder / ".talk").mkdir()
    (folder / ".talk/record.json").write_text(content)
    record = Record(folder)
    assert record.entries == ()
    record.add(PLACE, "f" * 64)
    assert len(Record(folder).entries) == 1


def test_record_with_a_wrong_type_in_it_is_not_believed(folder: Path) -> None:
    Record(folder).add(PLACE, "f" * 64)
    path = folder / ".talk/record.json"
    content = json.loads(path.read_text())
    content["files"][0]["size"] = "7"
    path.write_text(json.dumps(content))
    assert Record(folder).entries == ()


def test_forgotten_file_stays_forgotten(folder: Path) -> None:
    record = Record(folder)
    record.add(PLACE, "f" * 64)
    record.remove(PLACE)
    record.remove("never/there")
    assert Record(folder).entries == ()


def test_threads_may_add_at_the_same_time(folder: Path) -> None:
    record = Record(folder)
    names = [f"folder/{number}" for number in range(20)]

    def add(name: str) -> None:
        (folder / name).write_bytes(b"x")
        record.add(name, "f" * 64)

    threads = [threading.Thread(target=add, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {entry.place for entry in Record(folder).entries} == set(names)


def test_lock_makes_the_second_wait_for_the_first(folder: Path) -> None:
    waits, order = list[str](), list[str]()
    told = threading.Event()

    def wait(text: str) -> None:
        waits.append(text)
        told.set()

    def second() -> None:
        with locked(folder, wait):
            order.append("second")

    with locked(folder, waits.append):
        thread = threading.Thread(target=second)
        thread.start()
        assert told.wait(10)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]
    assert len(waits) == 1


def test_lock_in_a_place_that_cannot_be_written_is_the_users_matter(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="can't write"):
        with locked(tmp_path / "file", lambda text: None):
            pass
