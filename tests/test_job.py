"""Jobs from files and from options: what is understood, and how each mistake is told."""

from __future__ import annotations

import json
import math
import os
import struct
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infinitalk_cli.errors import InputError
from infinitalk_cli.job import Box, Job, JobFlags, Speaker, job_from_flags, read_job
from infinitalk_cli.job_media import is_video_file

PNG = b"\x89PNG\r\n\x1a\n" + bytes(8)
MP4 = struct.pack(">I", 24) + b"ftypisom" + bytes(8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a picture, a video and two sounds."""
    home = tmp_path / "job"
    home.mkdir()
    for name, content in {"face.png": PNG, "clip.mp4": MP4, "a.wav": b"RIFF", "b.wav": b"RIFF"}.items():
        (home / name).write_bytes(content)
    return home


def write(folder: Path, content: object) -> Path:
    path = folder / "job.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def good(**changes: object) -> dict[str, Any]:
    return {"prompt": "A talk.", "cond_image": "face.png", "cond_audio": {"person1": "a.wav"}, **changes}


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_job(path)
    assert caught.value.exit_code == 2
    return caught.value.message


def test_reads_one_speaker(folder: Path) -> None:
    expected = Job(reference=folder / "face.png", prompt="A talk.", speakers=(Speaker(folder / "a.wav"),))
    assert read_job(write(folder, good())) == expected


def test_reads_two_speakers_of_the_reference_program(folder: Path) -> None:
    sounds = {"person1": "a.wav", "person2": "b.wav"}
    boxes = {"person1": [9, 6, 84, 52], "person2": [9, 66, 84, 114]}
    job = read_job(write(folder, good(cond_audio=sounds, audio_type="add", bbox=boxes)))
    assert job.speakers == (
        Speaker(folder / "a.wav", Box(left=6, top=9, right=52, bottom=84)),
        Speaker(folder / "b.wav", Box(left=66, top=9, right=114, bottom=84)),
    )
    assert job.audio_type == "add"
    assert job.num_speakers == 2


def test_box_with_named_sides_means_what_the_names_say(folder: Path) -> None:
    box = {"left": 6, "top": 9, "right": 52, "bottom": 84}
    job = read_job(write(folder, good(bbox={"person1": box})))
    assert job.speakers[0].box == Box(**box)


@pytest.mark.parametrize("silent", ["None", None])
def test_a_silent_speaker_is_one_without_sound(folder: Path, silent: object) -> None:
    job = read_job(write(folder, good(cond_audio={"person1": silent, "person2": "b.wav"})))
    assert [speaker.audio for speaker in job.speakers] == [None, folder / "b.wav"]
    assert job.audio_type == "para"


@pytest.mark.parametrize("field", ["cond_image", "cond_video"])
@pytest.mark.parametrize(("name", "is_video"), [("face.png", False), ("clip.mp4", True)])
def test_picture_or_video_is_told_by_content(folder: Path, field: str, name: str, is_video: bool) -> None:
    raw = {"prompt": "", field: name, "cond_audio": {"person1": "a.wav"}}
    job = read_job(write(folder, raw))
    assert (job.reference, job.is_video) == (folder / name, is_video)


def test_a_misnamed_file_is_what_its_bytes_say(tmp_path: Path) -> None:
    (tmp_path / "really-a-video.png").write_bytes(MP4)
    (tmp_path / "really-a-picture.mp4").write_bytes(PNG)
    (tmp_path / "nobody-knows.mkv").write_bytes(b"?" * 16)
    (tmp_path / "nobody-knows.ppm").write_bytes(b"?" * 16)
    verdicts = {path.name: is_video_file(path) for path in tmp_path.iterdir()}
    assert verdicts == {
        "really-a-video.png": True,
        "really-a-picture.mp4": False,
        "nobody-knows.mkv": True,
        "nobody-knows.ppm": False,
    }


def test_negative_prompt_may_be_empty_and_is_unsaid_by_default(folder: Path) -> None:
    assert read_job(write(folder, good())).negative_prompt is None
    assert read_job(write(folder, good(negative_prompt=""))).negative_prompt == ""


def test_sound_track_written_back_by_the_reference_program_is_no_mistake(folder: Path) -> None:
    assert read_job(write(folder, good(video_audio="save_audio/sum.wav"))) == read_job(write(folder, good()))


def test_relative_paths_start_at_the_job_then_at_the_working_directory(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here.wav").write_bytes(b"RIFF here")
    (tmp_path / "face.png").write_bytes(PNG)
    monkeypatch.chdir(tmp_path)
    job = read_job(write(folder, good(cond_audio={"person1": "here.wav"})))
    assert job.reference == folder / "face.png"  # the job's own folder comes first
    assert job.speakers[0].audio == Path("here.wav")


def test_absolute_paths_stay(folder: Path) -> None:
    job = read_job(write(folder, good(cond_image=str(folder / "face.png"))))
    assert job.reference == folder / "face.png"


def test_every_mistake_is_told_at_once_with_its_field(folder: Path) -> None:
    (folder / "empty.wav").touch()
    message = refusal(
        write(
            folder,
            {
                "promt": "A talk.",
                "prompt": 3,
                "cond_image": ".",
                "cond_audio": {"person1": "gone.wav", "person2": "empty.wav", "person3": "a.wav"},
                "audio_type": "both",
                "bbox": {
                    "person1": [1, 2, 3],
                    "person2": {"lft": 1, "top": -1, "right": "9", "bottom": math.pi},
                },
            },
        )
    )
    assert "12 mistakes" in message
    for line in (
        "prompt: must be text, not a number",
        "promt: unknown field; did you mean 'prompt'?",
        "cond_image: '.' is not a file",
        f"cond_audio.person1: no such file: tried {str(folder / 'gone.wav')!r} and 'gone.wav'",
        "cond_audio.person2: 'empty.wav' is an empty file",
        "cond_audio.person3: more than 2 speakers are not possible",
        "audio_type: must be 'para' or 'add', not 'both'",
        "bbox.person1: must be four numbers, [top, left, bottom, right]",
        "bbox.person2.lft: unknown field; did you mean 'left'?",
        "bbox.person2.left is missing",
        "bbox.person2.top: lies outside the picture: -1",
        "bbox.person2.right: must be a number, not text",
    ):
        assert line in message


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"cond_video": "clip.mp4"}, "cond_video: give a picture or a video, not both"),
        ({"cond_image": None}, "cond_image is missing"),
        ({"cond_audio": None}, "cond_audio is missing"),
        ({"cond_audio": {}}, "cond_audio.person1 is missing"),
        ({"cond_audio": {"person2": "b.wav"}}, "cond_audio.person1 is missing"),
        ({"cond_audio": {"person1": "None"}}, "nobody speaks"),
        ({"cond_audio": {"person1": "None", "person2": "None"}}, "nobody speaks"),
        ({"cond_audio": "a.wav"}, "cond_audio: must be an object, not text"),
        ({"cond_audio": {"person1": 7}}, "cond_audio.person1: must be a path, not a number"),
        ({"cond_audio": {"person1": " "}}, "must be a path, not empty text"),
        ({"cond_audio": {"person1": "x" * 9999}}, "not a usable path"),
        ({"tts_audio": {"text": "Hello."}}, "tts_audio: the file says by cond_audio already who speaks"),
        (
            {"cond_audio": {}, "tts_audio": {"text": "Hi (s1) there."}},
            "tts_audio.text: nobody says what stands before (s1)",
        ),
        (
            {"cond_audio": {}, "tts_audio": {"text": "Hi.", "human2_voice": "am_adam"}},
            "tts_audio: has two voices, but no",
        ),
        ({"cond_audio": None, "text": "..."}, "text: has no words to speak"),
        ({"cond_audio": None, "text": "Hi.", "audio": "a.wav"}, "text: there is audio already"),
        ({"cond_audio": None, "text": "(s1) Hi. (s2) Ho.", "speakers": [{"voice": "x"}]}, "text: has two people speak"),
        ({"cond_audio": None, "text": "Hi.", "speakers": [{}, {}]}, "text: has nobody but the first speaker speak"),
        ({"cond_audio": None, "speakers": [{"text": "(s1) Hi."}]}, "speakers[0].text: is one speaker's own"),
        ({"prompt": None}, "prompt: must be text, not null"),
        ({"prompt": ["A", "talk"]}, "prompt: must be text, not a list"),
        ({"prompt": "half a pair: \ud83d"}, "prompt: holds a broken character at position 13"),
        ({"bbox": [1, 2, 3, 4]}, "bbox: must be an object, not a list"),
        ({"bbox": {"person1": [5, 5, 5, 9]}}, "bbox.person1: holds no pixel"),
        ({"bbox": {"person1": [5, 5, 5.2, 9]}}, "bbox.person1: holds no pixel"),
        ({"bbox": {"person1": [1, 2, True, 4]}}, "bbox.person1.bottom: must be a number, not true or false"),
        ({"bbox": {"person2": [1, 2, 3, 4]}}, "bbox.person2: there is no second speaker"),
        ({"bbox": {"person3": [1, 2, 3, 4]}}, "bbox.person3: more than 2 speakers"),
        (
            {"cond_audio": {"person1": "a.wav", "person2": "b.wav"}, "bbox": {"person1": [1, 2, 3, 4]}},
            "bbox: give a box for both speakers, or for none",
        ),
        ({"zzz": 1}, "zzz: unknown field; known: image, video, prompt, negative_prompt"),
    ],
)
def test_mistake_in_one_field(folder: Path, changes: dict[str, object], told: str) -> None:
    message = refusal(write(folder, good(**changes)))
    assert told in message
    assert message.startswith(str(folder / "job.json"))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"prompt": "a",\n "cond_image" "b"}', "line 2, column 15"),
        ("", "line 1, column 1"),
        ("[{}]", "holds a list of jobs, where one is wanted"),
        ("3", "holds no JSON object"),
        ('{"prompt": NaN}', "NaN is not a number"),
        ('{"prompt": "a", "prompt": "b"}', "a field is given twice: 'prompt'"),
        ("[" * 100_000, "nested too deeply"),
        ('{"prompt": ' + "9" * 5000 + "}", "a number is too long"),
        ('{"bbox": {"person1": [1, 2, 1e999, 4]}}', "bbox.person1.bottom: must be a finite number"),
    ],
)
def test_text_that_is_no_job(folder: Path, text: str, told: str) -> None:
    assert told in refusal(write(folder, text))


def test_a_byte_order_mark_does_no_harm(folder: Path) -> None:
    path = write(folder, good())
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_job(path).prompt == "A talk."


def test_a_sound_given_as_job_file_is_named_as_such(folder: Path) -> None:
    (folder / "speech.json").write_bytes(b"RIFF\xff\xfe\x00")
    assert "no UTF-8 text (byte 4)" in refusal(folder / "speech.json")
    (folder / "large.json").write_bytes(bytes(2_000_000))
    assert "larger than 1000 kB" in refusal(folder / "large.json")


def test_job_file_that_cannot_be_opened(tmp_path: Path) -> None:
    assert refusal(tmp_path / "gone.json") == f"no such job file: {tmp_path / 'gone.json'}"
    assert str(tmp_path) in refusal(tmp_path)


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="needs a file that this user may not read")
def test_unreadable_sound_is_named(folder: Path) -> None:
    (folder / "a.wav").chmod(0)
    assert "cond_audio.person1: can't read 'a.wav'" in refusal(write(folder, good()))


@pytest.mark.skipif(sys.platform == "win32", reason="no pipes in the file system")
def test_a_pipe_does_not_block(folder: Path) -> None:
    os.mkfifo(folder / "pipe.wav")
    assert "'pipe.wav' is not a file" in refusal(write(folder, good(cond_audio={"person1": "pipe.wav"})))


def test_options_give_the_same_job_as_a_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    raw = good(
        cond_audio={"person1": "a.wav", "person2": "None"},
        bbox={"person1": [2, 1, 4, 3], "person2": [2, 11, 4, 13]},
        audio_type="add",
        negative_prompt="blur",
    )
    flags = JobFlags(
        image=Path("face.png"),
        audio=["a.wav", "none"],
        prompt="A talk.",
        negative_prompt="blur",
        boxes=["1,2,3,4", "11, 2, 13, 4"],
        audio_type="add",
    )
    by_options = job_from_flags(flags)
    by_file = read_job(write(folder, raw))
    assert replace(by_file, reference=by_options.reference, speakers=by_options.speakers) == by_options
    assert [speaker.box for speaker in by_file.speakers] == [speaker.box for speaker in by_options.speakers]
    assert by_options.speakers == (
        Speaker(Path("a.wav"), Box(left=1, top=2, right=3, bottom=4)),
        Speaker(None, Box(left=11, top=2, right=13, bottom=4)),
    )


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"audio": []}, "--audio or --text is missing"),
        ({"image": None}, "--image is missing"),
        ({"image": None, "video": Path("gone.mp4")}, "--video: no such file: 'gone.mp4'"),
        ({"video": Path("clip.mp4")}, "--video: give a picture or a video, not both"),
        ({"audio": ["a.wav", "gone.wav"]}, "--audio (speaker 2): no such file: 'gone.wav'"),
        ({"audio": ["a.wav", "b.wav", "a.wav"]}, "more than 2 speakers"),
        ({"boxes": ["1,2,3"]}, "--box '1,2,3' is not four numbers"),
        ({"boxes": ["1,2,3,x"]}, "--box (speaker 1 bottom): must be a number, not text"),
        ({"boxes": ["1,2,nan,4"]}, "--box (speaker 1 right): must be a finite number"),
        ({"boxes": ["3,2,1,4"]}, "--box (speaker 1): holds no pixel: left 3, top 2, right 1, bottom 4"),
        ({"prompt": "\udcff"}, "--prompt: holds a broken character"),
    ],
)
def test_mistake_in_one_option(folder: Path, monkeypatch: pytest.MonkeyPatch, flags: dict[str, Any], told: str) -> None:
    monkeypatch.chdir(folder)
    given_flags: dict[str, Any] = {"image": Path("face.png"), "audio": ["a.wav"], "prompt": "A talk.", **flags}
    with pytest.raises(InputError) as caught:
        job_from_flags(JobFlags(**given_flags))
    assert told in caught.value.message


NAMES = st.one_of(
    st.sampled_from(["prompt", "cond_image", "cond_video", "cond_audio", "bbox", "person1", "person2", "left", "top"]),
    st.text(max_size=9),
)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9), st.just("face.png"))
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(NAMES, inner, max_size=4), max_leaves=8
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.dictionaries(NAMES, VALUES, max_size=5))
def test_whatever_the_file_holds_it_is_a_job_or_a_told_mistake(folder: Path, changes: dict[str, Any]) -> None:
    path = write(folder, good(**changes))
    try:
        read_job(path)
    except InputError as error:
        told = error.message
    else:
        told = str(path)
    assert told.startswith(str(path))
