"""What is refused before a run starts: options and outputs that can't work."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from infinitalk_cli.errors import InputError
from infinitalk_cli.job import Job, Speaker
from infinitalk_cli.profiles import find_profile
from infinitalk_cli.request import (
    GenerateRequest,
    GenerateResult,
    LoraFile,
    check_request,
    parse_lora,
)
from infinitalk_cli.wishes import SoundWishes, VoiceWishes


@pytest.fixture
def request_(tmp_path: Path) -> GenerateRequest:
    """A request that can work."""
    (tmp_path / "face.png").write_bytes(b"picture")
    (tmp_path / "a.wav").write_bytes(b"sound")
    job = Job(reference=tmp_path / "face.png", prompt="", speakers=(Speaker(tmp_path / "a.wav"), Speaker(None)))
    return GenerateRequest(job=job, output=tmp_path / "out" / "talk.mp4", profile=find_profile("default"))


def refusal(request: GenerateRequest) -> str:
    with pytest.raises(InputError) as caught:
        check_request(request)
    assert caught.value.exit_code == 2
    return caught.value.message


def test_a_good_request_is_accepted_and_nothing_is_written(request_: GenerateRequest) -> None:
    check_request(request_)
    assert not request_.output.parent.exists()


@pytest.mark.parametrize(
    ("wishes", "told"),
    [
        (SoundWishes(drive_loudness=0.0), "--drive-loudness must be from -60 to -5 LUFS, or off, not 0"),
        (SoundWishes(output_loudness=-70.0), "--output-loudness must be from -60 to -5 LUFS, or off, not -70"),
        (SoundWishes(start_s=-1.0), "--audio-start must be from 0 s up, not -1"),
        (SoundWishes(start_s=2.0, end_s=2.0), "--audio-end must lie behind --audio-start (2 s), not at 2 s"),
        (SoundWishes(output_sound="source"), "--output-audio source needs a video as the source"),
        (SoundWishes(drive_audio=(Path("a"), Path("b"))), "--drive-audio is given 2 times, but the job has 1 record"),
        (VoiceWishes(speed=3.0), "--speed must be from 0.5 to 2, not 3"),
        (VoiceWishes(pause_s=-1.0), "--pause must be from 0 to 60 s, not -1"),
        (VoiceWishes(("a", "b", "c")), "--voice is given 3 times"),
    ],
)
def test_wish_that_can_not_work_is_told(
    request_: GenerateRequest, wishes: SoundWishes | VoiceWishes, told: str
) -> None:
    field = "sound" if isinstance(wishes, SoundWishes) else "voice"
    assert told in refusal(replace(request_, **{field: wishes}))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"seed": -2}, "--seed must be from 0"),
        ({"seed": 2**63}, "--seed must be from 0"),
        ({"crf": 52}, "--crf must be from 0 (lossless) to 51 (worst), not 52"),
        ({"color_strength": 1.1}, "--color-strength must be from 0 to 1, not 1.1"),
        ({"color_strength": float("nan")}, "--color-strength must be from 0 to 1, not nan"),
        ({"max_seconds": 0.0}, "--max-seconds must be above 0, not 0"),
        ({"step_cache_threshold": 0.0}, "--teacache-threshold must be above 0, not 0"),
        ({"device": "gpu"}, "--device must be auto, cpu, cuda or cuda:N, not 'gpu'"),
    ],
)
def test_option_out_of_range_is_told(request_: GenerateRequest, changes: dict[str, float], told: str) -> None:
    assert told in refusal(replace(request_, **changes))  # pyright: ignore[reportArgumentType]


def test_a_mistake_that_the_profile_and_the_request_share_is_told_once(request_: GenerateRequest) -> None:
    profile = replace(request_.profile, num_persistent_param_in_dit=-1)
    message = refusal(replace(request_, profile=profile, resident_parameters=-1))
    assert message == "--num-persistent-param-in-dit must be 0 or more, not -1"


def test_all_problems_are_told_at_once(request_: GenerateRequest) -> None:
    profile = replace(request_.profile, chunk_frames=80, num_steps=0)
    message = refusal(replace(request_, profile=profile, crf=-1, output=request_.output.with_suffix(".avi")))
    assert message.startswith("4 options can't work:\n  ")
    for part in ("--frames must be 4n + 1", "--steps must be at least 1", "--crf", "must end in .mp4, not 'talk.avi'"):
        assert part in message


def test_output_that_is_there_is_kept_unless_it_may_be_replaced(request_: GenerateRequest) -> None:
    request_.output.parent.mkdir()
    request_.output.write_bytes(b"precious")
    assert refusal(request_) == f"{request_.output} is already there: --overwrite replaces it, -o names another"
    check_request(replace(request_, overwrite=True))
    assert request_.output.read_bytes() == b"precious"


def test_an_input_is_never_the_output(request_: GenerateRequest, tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(b"video")
    (tmp_path / "out").mkdir()
    same = tmp_path / "out" / ".." / "clip.mp4"
    request = replace(request_, job=replace(request_.job, reference=clip), output=same, overwrite=True)
    assert "is an input of the job" in refusal(request)


def test_an_input_is_not_overwritten_on_the_way_to_the_output(request_: GenerateRequest, tmp_path: Path) -> None:
    """What an interrupted run left may be the video of the next."""
    part = tmp_path / "clip.part.mp4"
    part.write_bytes(b"video")
    job = replace(request_.job, reference=part)
    assert "would be overwritten" in refusal(replace(request_, job=job, output=tmp_path / "clip.mp4"))
    check_request(replace(request_, job=job, output=tmp_path / "other.mp4"))


def test_output_that_is_a_folder_or_lies_in_a_file(request_: GenerateRequest, tmp_path: Path) -> None:
    told = refusal(replace(request_, output=tmp_path))
    assert told.startswith(f"the output must end in .mp4, but {tmp_path} is a folder: name a file in it, such as ")
    for nameless in (Path(), Path("/")):
        assert "the output must end in .mp4" in refusal(replace(request_, output=nameless))
    assert "face.png is a file" in refusal(replace(request_, output=tmp_path / "face.png" / "deep" / "talk.mp4"))


def test_output_with_an_unusable_name(request_: GenerateRequest, tmp_path: Path) -> None:
    assert "is not a usable path" in refusal(replace(request_, output=tmp_path / ("x" * 5000 + ".mp4")))


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="needs a folder that this user may not fill")
def test_folder_without_the_right_to_write_is_told(request_: GenerateRequest, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    assert f"the output folder {locked} is not writable" in refusal(replace(request_, output=locked / "talk.mp4"))


def test_lora_with_and_without_a_scale(tmp_path: Path) -> None:
    path = tmp_path / "speed.safetensors"
    path.touch()
    assert parse_lora(str(path)) == LoraFile(path, 1.0)
    assert parse_lora(f"{path}:0.8") == LoraFile(path, 0.8)
    assert parse_lora(f"{path}:-.5") == LoraFile(path, -0.5)


@pytest.mark.parametrize("tail", ["", ":0.8", ":fast", ":nan", ":1e999"])
def test_lora_that_is_not_there_is_named(tmp_path: Path, tail: str) -> None:
    with pytest.raises(InputError, match=r"no such file: .*gone\.safetensors") as caught:
        parse_lora(f"{tmp_path / 'gone.safetensors'}{tail}")
    assert "FILE:SCALE" in caught.value.hint


def test_duration_follows_from_frames() -> None:
    result = GenerateResult(Path("a.mp4"), width=64, height=96, num_frames=70, fps=25, num_chunks=2, elapsed_s=9.0)
    assert result.duration_s == 2.8


def test_a_link_is_judged_by_where_it_leads(request_: GenerateRequest, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    link = tmp_path / "link.mp4"
    link.symlink_to(closed / "real.mp4")
    closed.chmod(0o500)
    try:
        if os.access(closed, os.W_OK):
            pytest.skip("this user may write everywhere")
        with pytest.raises(InputError, match="closed is not writable"):
            check_request(replace(request_, output=link))
    finally:
        closed.chmod(0o700)
