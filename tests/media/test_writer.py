from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest
import torch

from infinitalk_cli.errors import InputError, MediaError
from infinitalk_cli.media.part_folder import PartFolder
from infinitalk_cli.media.segments import Picture, complete_boxes
from infinitalk_cli.media.sound_track import SoundPiece, SoundTrack
from infinitalk_cli.media.video import VideoReader
from infinitalk_cli.media.writer import VideoWriter, to_pixels
from tests.media.made import lag, noise, number_of, numbered_frame, read_sound, write_wav

HEIGHT, WIDTH = 48, 64


def frames(num_frames: int, first: int = 0) -> npt.NDArray[np.uint8]:
    return np.stack([numbered_frame(i % 256, HEIGHT, WIDTH) for i in range(first, first + num_frames)])


def static(num_frames: int) -> npt.NDArray[np.uint8]:
    """Noise, which hardly compresses."""
    return np.random.default_rng(0).integers(0, 256, (num_frames, HEIGHT, WIDTH, 3), dtype=np.uint8)


def sound_track(folder: Path, seconds: float, *, rate: int = 44_100, channels: int = 1) -> SoundTrack:
    samples = noise(round(seconds * rate), channels)
    path = write_wav(folder / "sound.wav", samples, rate)
    return SoundTrack((SoundPiece(path),), rate, channels, Fraction(len(samples), rate))


def numbers_in(path: Path) -> list[int]:
    with av.open(str(path)) as file:
        return [number_of(frame.to_ndarray(format="rgb24")) for frame in file.decode(video=0)]


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@contextmanager
def writing(
    target: Path,
    *,
    height: int = HEIGHT,
    width: int = WIDTH,
    crf: int = 17,
    sound: SoundTrack | None = None,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = True,
) -> Generator[VideoWriter]:
    """A writer in a folder of its own, begun anew."""
    with PartFolder(target) as folder:
        folder.begin({})
        picture = Picture(height, width, crf=crf)
        with VideoWriter(folder, picture, sound=sound, metadata=metadata, overwrite=overwrite) as writer:
            yield writer


def left_without_finishing(target: Path, num_frames: int) -> VideoWriter:
    with writing(target) as writer:
        if num_frames:
            writer.write(frames(num_frames))
    return writer


def test_frames_arrive_in_order_at_25_a_second(tmp_path: Path) -> None:
    target = tmp_path / "out" / "talk.mp4"
    with writing(target) as writer:
        writer.write(frames(81))
        writer.write(frames(72, first=81))
        assert writer.num_frames == 153
        assert writer.finish() == target
    assert names_in(target.parent) == ["talk.mp4"]
    assert numbers_in(target) == list(range(153))
    with av.open(str(target)) as file:
        stream = file.streams.video[0]
        times = [frame.time for frame in file.decode(stream)]
        assert (stream.average_rate, stream.codec_context.name, stream.pix_fmt) == (25, "h264", "yuv420p")
        assert times == pytest.approx([i / 25 for i in range(153)])


def test_the_index_comes_first(tmp_path: Path) -> None:
    with writing(tmp_path / "a.mp4") as writer:
        writer.write(frames(10))
        writer.finish()
    kinds = [kind for kind, _ in complete_boxes(tmp_path / "a.mp4")]
    assert kinds.index(b"moov") < kinds.index(b"mdat")
    assert b"moof" not in kinds


def test_colours_are_bt709_in_tags_and_in_truth(tmp_path: Path) -> None:
    colours = np.array(
        [[255, 0, 0], [0, 255, 0], [0, 0, 255], [200, 120, 90], [128, 128, 128], [20, 200, 220]], np.uint8
    )
    picture = np.repeat(np.repeat(colours[None], 32, axis=0), 32, axis=1)
    with writing(tmp_path / "a.mp4", height=32, width=192, crf=4) as writer:
        writer.write(np.stack([picture] * 3))
        writer.finish()
    with av.open(str(tmp_path / "a.mp4")) as file:
        codec = file.streams.video[0].codec_context
        assert (codec.color_primaries, codec.color_trc, codec.colorspace, codec.color_range) == (1, 1, 1, 1)
        frame = next(file.decode(video=0))
    luma = np.frombuffer(frame.planes[0], np.uint8).reshape(32, -1)[16, 16:192:32].astype(float)
    assert luma == pytest.approx(16 + 219 / 255 * colours @ np.array([0.2126, 0.7152, 0.0722]), abs=1.5)
    with VideoReader(tmp_path / "a.mp4") as reader:
        seen = np.asarray(reader.frame_at_time(0))
    assert np.abs(seen[16, 16::32].astype(int) - colours).max() <= 4


def test_tensors_are_rounded_to_8_bits_and_clipped(tmp_path: Path) -> None:
    levels = torch.tensor([-1.5, -1.0, -0.9999, 0.0, 0.0041, 0.9999, 1.0, 1.5])
    pixels = to_pixels(levels.view(1, 1, 1, 1, 8).expand(1, 3, 2, 4, 8))
    assert pixels.shape == (2, 4, 8, 3)
    assert pixels[1, 2, :, 0].tolist() == [0, 0, 0, 128, 128, 255, 255, 255]


def test_a_tensor_is_written_like_its_pixels(tmp_path: Path) -> None:
    pixels = frames(20)
    tensor = torch.from_numpy(pixels).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    assert np.array_equal(to_pixels(tensor), pixels)
    with writing(tmp_path / "a.mp4") as writer:
        writer.write(tensor)
        writer.finish()
    assert numbers_in(tmp_path / "a.mp4") == list(range(20))


@pytest.mark.parametrize("rate, channels", [(44_100, 2), (48_000, 1), (16_000, 1), (22_050, 2)])
def test_sound_is_the_original_within_a_millisecond(tmp_path: Path, rate: int, channels: int) -> None:
    track = sound_track(tmp_path, 4.0, rate=rate, channels=channels)
    played = noise(4 * rate, channels)
    with writing(tmp_path / "a.mp4", sound=track) as writer:
        for start in range(0, 100, 30):
            writer.write(frames(min(30, 100 - start), first=start))
        writer.finish()
    with av.open(str(tmp_path / "a.mp4")) as file:
        stream = file.streams.audio[0]
        assert (stream.codec_context.name, stream.rate, stream.channels) == ("aac", rate, channels)
        assert stream.duration is not None
        assert stream.time_base is not None
        assert stream.duration * stream.time_base == 4
        assert file.duration == 4_000_000
    heard = read_sound(tmp_path / "a.mp4")
    for at in (rate // 10, 3 * rate):
        assert lag(heard[:, 0], played[:, 0], at=at, length=rate // 2) == 0
    assert np.corrcoef(heard[: 4 * rate, -1], played[:, -1])[0, 1] > 0.95


def test_sound_longer_than_the_frames_is_cut_and_shorter_sound_ends_early(tmp_path: Path) -> None:
    for num_frames, wanted_s in ((10, 0.4), (60, 1.0)):
        path = tmp_path / f"{num_frames}.mp4"
        track = sound_track(tmp_path, 1.0)
        with writing(path, sound=track) as writer:
            writer.write(frames(num_frames))
            writer.finish()
        with av.open(str(path)) as file:
            stream = file.streams.audio[0]
            assert stream.duration == round(wanted_s * 44_100)
        assert len(numbers_in(path)) == num_frames


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


# Close to the whole size the limit is met by bytes that FFmpeg writes while closing; it does not report their failure.
@pytest.mark.parametrize("share", [0.01, 0.5, 0.9, 0.995])
def test_a_disk_that_is_full_at_the_end_costs_no_piece(tmp_path: Path, share: float) -> None:
    target, track = tmp_path / "out" / "a.mp4", sound_track(tmp_path, 10.0)
    size = write_ten_seconds(target, track).stat().st_size
    target.unlink()
    with writing(target, sound=track) as writer:
        for _ in range(10):
            writer.write(static(25))
        with files_limited_to(int(size * share)), pytest.raises(MediaError, match="failed"):
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


def test_titles_are_written(tmp_path: Path) -> None:
    tags = {"title": "Ein Gruß", "comment": "seed 42"}
    with writing(tmp_path / "a.mp4", metadata=tags) as writer:
        writer.write(frames(2))
        writer.finish()
    with av.open(str(tmp_path / "a.mp4")) as file:
        assert tags.items() <= file.metadata.items()


def test_a_lower_crf_gives_a_larger_file(tmp_path: Path) -> None:
    sizes = list[int]()
    for crf in (10, 40):
        with writing(tmp_path / f"{crf}.mp4", crf=crf) as writer:
            writer.write(static(10))
            sizes.append(writer.finish().stat().st_size)
    assert sizes[0] > 2 * sizes[1]


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


def test_odd_sizes_and_frames_of_another_size_are_our_mistakes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="even"), writing(tmp_path / "a.mp4", height=33):
        pass
    with writing(tmp_path / "a.mp4") as writer:
        with pytest.raises(ValueError, match="a frame of"):
            writer.write(np.zeros((1, 16, 16, 3), np.uint8))


PEAK_MEMORY = """
import re, sys
from fractions import Fraction
from pathlib import Path
import numpy as np
from infinitalk_cli.media.sound_track import SoundPiece, SoundTrack
from infinitalk_cli.media.part_folder import PartFolder
from infinitalk_cli.media.segments import Picture
from infinitalk_cli.media.writer import VideoWriter
num_frames = int(sys.argv[1])
sound = SoundTrack((SoundPiece(Path(sys.argv[2])),), 16_000, 1, Fraction(num_frames, 25))
with PartFolder(Path(sys.argv[3])) as folder, VideoWriter(folder, Picture(32, 32), sound=sound) as writer:
    for _ in range(num_frames // 50):
        writer.write(np.random.default_rng(0).integers(0, 256, (50, 32, 32, 3), dtype=np.uint8))
    writer.finish()
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read where Linux shows it")
def test_memory_does_not_grow_with_the_number_of_frames(tmp_path: Path) -> None:
    sound = write_wav(tmp_path / "a.wav", np.tile(noise(16_000), (120, 1)), 16_000)
    peaks = list[int]()
    for num_frames in (100, 1600):
        command = [sys.executable, "-c", PEAK_MEMORY, str(num_frames), str(sound), str(tmp_path / "a.mp4")]
        peaks.append(int(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    assert peaks[1] - peaks[0] < 10_000  # kB
