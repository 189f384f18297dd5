"""What is kept when writing ends early or fails, and whose files are spared."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from infinitalk_cli.errors import InputError, MediaError
from infinitalk_cli.media.part_folder import PartFolder
from infinitalk_cli.media.segments import Picture
from infinitalk_cli.media.sound_track import SoundTrack
from infinitalk_cli.media.writer import VideoWriter
from tests.media.made import numbered_frame
from tests.media.writing import (
    frames,
    left_without_finishing,
    names_in,
    numbers_in,
    sound_track,
    static,
    writing,
)


def test_an_interrupted_run_can_still_be_finished(tmp_path: Path) -> None:
    def run(writer: VideoWriter) -> None:
        writer.write(frames(33))
        raise KeyboardInterrupt

    with writing(tmp_path / "a.mp4", sound=sound_track(tmp_path, 5.0)) as writer:
        with pytest.raises(KeyboardInterrupt):
            run(writer)
        writer.finish()
    assert numbers_in(tmp_path / "a.mp4") == list(range(33))
    assert names_in(tmp_path) == ["a.mp4", "sound.wav"]


def test_leaving_without_finishing_keeps_a_playable_part(tmp_path: Path) -> None:
    writer = left_without_finishing(tmp_path / "a.mp4", num_frames=60)
    assert names_in(tmp_path) == ["a.part", "a.part.mp4"]
    assert names_in(tmp_path / "a.part") == ["0001.mp4", "job.json", "lock"]
    assert numbers_in(writer.part_path) == list(range(60))


def test_leaving_before_the_first_frame_leaves_nothing(tmp_path: Path) -> None:
    left_without_finishing(tmp_path / "a.mp4", num_frames=0)
    assert names_in(tmp_path) == []


def test_finishing_nothing_leaves_nothing_and_spares_an_older_file(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"older")
    with writing(tmp_path / "a.mp4") as writer:
        with pytest.raises(MediaError, match="no frame was finished"):
            writer.finish()
    assert names_in(tmp_path) == ["a.mp4"]
    assert (tmp_path / "a.mp4").read_bytes() == b"older"


def test_a_piece_can_be_watched_as_soon_as_it_is_written(tmp_path: Path) -> None:
    with writing(tmp_path / "a.mp4") as writer:
        writer.write(frames(81))
        writer.write(frames(72, first=81))
        assert numbers_in(tmp_path / "a.part" / "0002.mp4") == list(range(81, 153))


def test_a_writer_goes_on_behind_the_pieces_of_an_earlier_one(tmp_path: Path) -> None:
    track, side = sound_track(tmp_path, 4.0), 128  # x264 is not always deterministic at the size of a stamp
    moving = np.stack([numbered_frame(i, side, side) for i in range(73)])
    whole, target = tmp_path / "whole.mp4", tmp_path / "a.mp4"
    with writing(whole, height=side, width=side, sound=track) as writer:
        writer.write(moving[:40])
        writer.write(moving[40:])
        writer.finish()
    with writing(target, height=side, width=side, sound=track) as writer:
        writer.write(moving[:40])
    with PartFolder(target) as folder:
        with VideoWriter(folder, Picture(side, side), sound=track, num_frames=40) as writer:
            writer.write(moving[40:])
            writer.finish()
    assert names_in(tmp_path) == ["a.mp4", "sound.wav", "whole.mp4"]
    assert target.read_bytes() == whole.read_bytes()


@contextmanager
def files_limited_to(num_bytes: int) -> Generator[None, None, None]:
    """Let no file grow beyond a size, which fails like a full disk."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def write_ten_seconds(target: Path, track: SoundTrack) -> Path:
    with writing(target, sound=track) as writer:
        for _ in range(10):
            writer.write(static(25))
        return writer.finish()


def write_on_full_disk(target: Path, track: SoundTrack, num_bytes: int) -> MediaError:
    with files_limited_to(num_bytes), pytest.raises(MediaError) as caught:
        write_ten_seconds(target, track)
    return caught.value


def test_a_full_disk_keeps_the_pieces_before(tmp_path: Path) -> None:
    target = tmp_path / "out" / "a.mp4"
    with writing(target) as writer:
        writer.write(frames(25))
        with files_limited_to(20_000), pytest.raises(MediaError) as caught:
            writer.write(static(25))
    error = caught.value
    assert error.exit_code == 7
    assert "disk space" in error.hint
    assert writer.kept() == f"the first 1.00 s are finished and can be played: {target.with_name('a.part.mp4')}"
    assert names_in(target.parent) == ["a.part", "a.part.mp4"]
    assert names_in(target.parent / "a.part") == ["0001.mp4", "job.json", "lock"]
    assert numbers_in(target.parent / "a.part.mp4") == list(range(25))


@pytest.fixture(scope="module")
def whole_size(tmp_path_factory: pytest.TempPathFactory) -> int:
    """Bytes of a video of ten seconds."""
    folder = tmp_path_factory.mktemp("whole")
    return write_ten_seconds(folder / "a.mp4", sound_track(folder, 10.0)).stat().st_size


# Close to the whole size the limit is met by bytes that FFmpeg writes while closing; it does not report their failure.
@pytest.mark.parametrize("share", [0.01, 0.5, 0.9, 0.995])
def test_a_disk_that_is_full_at_the_end_costs_no_piece(tmp_path: Path, whole_size: int, share: float) -> None:
    target, track = tmp_path / "out" / "a.mp4", sound_track(tmp_path, 10.0)
    with writing(target, sound=track) as writer:
        for _ in range(10):
            writer.write(static(25))
        with files_limited_to(int(whole_size * share)), pytest.raises(MediaError, match="failed"):
            writer.finish()
        assert re.search(r"the first 10\.00 s .*0001\.mp4 to 0010\.mp4$", writer.kept())
    assert names_in(target.parent) == ["a.part"]
    assert len(names_in(target.parent / "a.part")) == 12


def test_a_disk_full_before_the_first_piece_leaves_nothing(tmp_path: Path) -> None:
    with writing(tmp_path / "out" / "a.mp4") as writer:
        with files_limited_to(1000), pytest.raises(MediaError):
            writer.write(static(25))
        assert writer.kept() == "nothing was finished"
    assert names_in(tmp_path / "out") == []


def test_a_failing_last_step_keeps_the_whole_part(tmp_path: Path) -> None:
    with writing(tmp_path / "a.mp4") as writer:
        writer.write(frames(60))
        (tmp_path / "a.mp4").mkdir()  # nothing can be renamed to this
        with pytest.raises(MediaError, match="failed"):
            writer.finish()
    assert names_in(tmp_path) == ["a.mp4", "a.part", "a.part.mp4"]
    assert numbers_in(writer.part_path) == list(range(60))


def test_places_that_cannot_be_written_are_input_errors(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="nothing can be written") as caught:
        PartFolder(tmp_path / "file" / "a.mp4")
    assert caught.value.exit_code == 2
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        PartFolder(tmp_path / "folder.mp4")


def test_two_runs_do_not_write_one_file(tmp_path: Path) -> None:
    target = tmp_path / "a.mp4"
    with writing(target) as first:
        first.write(frames(60))
        with pytest.raises(InputError, match=r"another run is writing .*a\.mp4") as caught:
            PartFolder(target)
        assert caught.value.exit_code == 2
        first.finish()
    assert numbers_in(target) == list(range(60))
    assert names_in(tmp_path) == ["a.mp4"]


DIES = """
import os, sys
from pathlib import Path
import numpy as np
from infinitalk_cli.media.part_folder import PartFolder
from infinitalk_cli.media.segments import Picture
from infinitalk_cli.media.writer import VideoWriter
folder = PartFolder(Path(sys.argv[1]))
VideoWriter(folder, Picture(48, 64)).write(np.zeros((20, 48, 64, 3), np.uint8))
os._exit(0)
"""


def test_what_a_killed_run_left_is_free_for_the_next_one(tmp_path: Path) -> None:
    target = tmp_path / "a.mp4"
    subprocess.run([sys.executable, "-c", DIES, str(target)], check=True)
    assert names_in(tmp_path) == ["a.part"]
    with writing(target) as writer:
        writer.write(frames(5))
        writer.finish()
    assert numbers_in(target) == list(range(5))
    assert names_in(tmp_path) == ["a.mp4"]


def test_a_file_that_came_meanwhile_is_spared_unless_it_may_be_replaced(tmp_path: Path) -> None:
    target = tmp_path / "a.mp4"
    with writing(target, overwrite=False) as writer:
        writer.write(frames(60))
        target.write_bytes(b"theirs")
        with pytest.raises(MediaError, match=r"the video is in .*a\.part\.mp4"):
            writer.finish()
    assert target.read_bytes() == b"theirs"
    assert names_in(tmp_path) == ["a.mp4", "a.part", "a.part.mp4"]
    assert numbers_in(writer.part_path) == list(range(60))


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
@pytest.mark.parametrize("is_there", [True, False])
def test_a_link_stays_and_what_it_points_at_is_written(tmp_path: Path, is_there: bool) -> None:
    real, link = tmp_path / "disk" / "real.mp4", tmp_path / "a.mp4"
    real.parent.mkdir()
    if is_there:
        real.write_bytes(b"older")
    link.symlink_to(Path("disk") / "real.mp4")
    with writing(link) as writer:
        writer.write(frames(5))
        assert names_in(real.parent)[-1] == "real.part"
        assert writer.finish() == link
    assert link.is_symlink()
    assert numbers_in(real) == list(range(5))
    assert names_in(real.parent) == ["real.mp4"]
