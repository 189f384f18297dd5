"""Our own form of a job: `speakers` with places, starts and turns."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infinitalk_cli.errors import InputError
from infinitalk_cli.job import DEFAULT_PROMPT, Box, Job, JobFlags, Speaker, job_from_flags, read_job
from infinitalk_cli.subtitles import Turn

PNG = b"\x89PNG\r\n\x1a\n" + bytes(8)
SRT = """1
00:00:00,000 --> 00:00:01,500
Anna: Have you seen
the harbour?

2
00:00:01,500 --> 00:00:02,000
Ben: I have.
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a picture, two masks, three sounds and subtitles."""
    monkeypatch.chdir(tmp_path)
    for name in ("two.png", "left.png", "right.png"):
        Path(name).write_bytes(PNG)
    for name in ("a.wav", "b.wav", "both.wav"):
        Path(name).write_bytes(b"RIFF")
    Path("talk.srt").write_text(SRT)
    return tmp_path


def read(**fields: object) -> Job:
    path = Path("job.json")
    path.write_text(json.dumps({"image": "two.png", **fields}))
    return read_job(path)


def refusal(**fields: object) -> str:
    with pytest.raises(InputError) as caught:
        read(**fields)
    assert caught.value.exit_code == 2
    return caught.value.message


def test_a_picture_and_a_sound_are_enough() -> None:
    assert read(audio="a.wav") == Job(Path("two.png"), DEFAULT_PROMPT, (Speaker(Path("a.wav")),))


def test_speakers_have_sounds_places_and_starts() -> None:
    job = read(
        speakers=[
            {"audio": "a.wav", "box": [1, 2, 30, 40]},
            {"audio": "b.wav", "mask": "right.png", "start": 1.5},
        ]
    )
    assert job.speakers == (
        Speaker(Path("a.wav"), Box(left=1, top=2, right=30, bottom=40)),
        Speaker(Path("b.wav"), mask=Path("right.png"), start_s=1.5),
    )
    assert not job.is_one_of_several


def test_four_numbers_are_as_one_sees_them_and_names_mean_what_they_say() -> None:
    named = {"top": 2, "left": 1, "bottom": 40, "right": 30}
    assert read(speakers=[{"audio": "a.wav", "box": named}]) == read(
        speakers=[{"audio": "a.wav", "box": [1, 2, 30, 40]}]
    )


@pytest.mark.parametrize("place", [{"box": [1, 2, 30, 40]}, {"mask": "left.png"}])
def test_one_speaker_with_a_place_leaves_everyone_else_silent(place: dict[str, Any]) -> None:
    job = read(speakers=[{"audio": "a.wav", **place}])
    assert job.num_speakers == 2
    assert job.is_one_of_several
    assert job.speakers[1] == Speaker(audio=None, everywhere_else=True)


def test_the_reference_programs_form_chooses_one_face_too() -> None:
    job = read(image=None, cond_image="two.png", cond_audio={"person1": "a.wav"}, bbox={"person1": [2, 1, 40, 30]})
    assert job.speakers == (Speaker(Path("a.wav"), Box(1, 2, 30, 40)), Speaker(None, everywhere_else=True))


def test_turns_share_one_sound_out_among_the_speakers_as_they_come() -> None:
    job = read(audio="both.wav", turns="talk.srt")
    assert job.speakers == (
        Speaker(Path("both.wav"), turns=(Turn(0.0, 1.5, "Have you seen the harbour?"),)),
        Speaker(Path("both.wav"), turns=(Turn(1.5, 2.0, "I have."),)),
    )


def test_names_say_whose_turns_are_whose() -> None:
    job = read(audio="both.wav", turns="talk.srt", speakers=[{"name": "ben"}, {"name": "Anna"}])
    assert [speaker.turns[0].start_s for speaker in job.speakers] == [1.5, 0.0]


def test_options_say_the_same() -> None:
    in_file = read(audio="both.wav", turns="talk.srt", speakers=[{"mask": "left.png"}, {"mask": "right.png"}])
    flags = JobFlags(
        image=Path("two.png"), audio=["both.wav"], masks=[Path("left.png"), Path("right.png")], turns=Path("talk.srt")
    )
    assert job_from_flags(flags) == in_file


def test_an_editor_may_be_told_the_schema() -> None:
    assert read(audio="a.wav", **{"$schema": "../docs/job.schema.json"}) == read(audio="a.wav")


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"speakers": []}, "speakers: is empty: name at least one speaker"),
        ({"speakers": [{"audio": "a.wav"}] * 3}, "speakers: more than 2 speakers are not possible"),
        ({"speakers": {"audio": "a.wav"}}, "speakers: must be a list, not an object"),
        ({"speakers": ["a.wav"]}, "speakers[0]: must be an object, not text"),
        ({"speakers": [{"audoi": "a.wav"}]}, "speakers[0].audoi: unknown field; did you mean 'audio'?"),
        ({"speakers": [{"audio": "gone.wav"}]}, "speakers[0].audio: no such file: 'gone.wav'"),
        ({"speakers": [{"audio": "a.wav", "start": -1}]}, "speakers[0].start: must be seconds from 0 to a day, not -1"),
        ({"speakers": [{"audio": "a.wav", "start": 1e9}]}, "speakers[0].start: must be seconds from 0 to a day"),
        ({"speakers": [{"audio": "a.wav", "start": "1"}]}, "speakers[0].start: must be a number, not text"),
        ({"speakers": [{"audio": "a.wav", "box": [1, 2, 3]}]}, "speakers[0].box: must be four numbers, [left, top,"),
        ({"speakers": [{"audio": "a.wav", "box": {"lft": 1}}]}, "speakers[0].box.lft: unknown field; did you mean"),
        (
            {"speakers": [{"audio": "a.wav", "box": [1, 2, 3, 4], "mask": "left.png"}]},
            "speakers[0].mask: give a box or a mask, not both",
        ),
        ({"speakers": [{"audio": "None"}, {}]}, "speakers: nobody speaks"),
        (
            {"speakers": [{"audio": "a.wav", "mask": "left.png"}, {"audio": "b.wav"}]},
            "speakers[1].box: give a box or mask for both speakers, or for none",
        ),
        ({"audio": "a.wav", "speakers": [{}, {}]}, "audio: is one sound for two speakers: turns says who speaks when"),
        ({"audio": "a.wav", "speakers": [{"audio": "b.wav"}]}, "speakers[0].audio: there is one sound for all (audio)"),
        ({"audio": "a.wav", "cond_audio": {"person1": "a.wav"}}, "audio: the file says by cond_audio already who"),
        ({"audio": "a.wav", "bbox": {"person1": [1, 2, 3, 4]}}, "bbox: goes with cond_audio"),
        ({"image": None, "audio": "a.wav"}, "image is missing"),
        ({"audio": "a.wav", "video": "two.png"}, "video: give a picture or a video, not both"),
        (
            {"audio": "both.wav", "turns": "talk.srt", "speakers": [{"name": "Anna"}, {}]},
            "speakers: give a name to both speakers, or to none",
        ),
        (
            {"audio": "both.wav", "turns": "talk.srt", "speakers": [{"name": "Anna"}, {"name": "Eve"}]},
            "turns: talk.srt: line 8: 'Ben' is not one of Anna, Eve",
        ),
        (
            {"audio": "both.wav", "turns": "talk.srt", "speakers": [{"start": 1}, {}]},
            "speakers[0].start: turns says already when everyone speaks",
        ),
        (
            {"audio_type": "add", "speakers": [{"audio": "a.wav"}, {"audio": "b.wav", "start": 1}]},
            "audio_type: one after the other (add) leaves no room for start",
        ),
        ({"audio": "both.wav", "turns": "two.png"}, "turns: two.png"),
        ({"audio": "a.wav", "drive_audio": ["b.wav"] * 3}, "drive_audio: must be a path, or a list of up to 2"),
        ({"audio": "a.wav", "drive_audio": "gone.wav"}, "drive_audio: no such file: 'gone.wav'"),
        ({"audio": "a.wav", "output_audio": "gone.wav"}, "output_audio: no such file: 'gone.wav'"),
        (
            {"audio": "a.wav", "drive_loudness": "loud"},
            "drive_loudness: must be a number of LUFS such as -23, off or auto",
        ),
        (
            {"audio": "a.wav", "output_loudness": "auto"},
            "output_loudness: must be a number of LUFS such as -23, off, not",
        ),
        ({"audio": "a.wav", "output_loudness": -99}, "output_loudness: must be from -60 to -5 LUFS, not -99"),
        ({"audio": "a.wav", "audio_start": -1}, "audio_start: must be seconds from 0 to a day, not -1"),
        ({"audio": "a.wav", "trim_silence": "yes"}, "trim_silence: must be true or false, not text"),
    ],
)
def test_mistake_in_one_field(fields: dict[str, Any], told: str) -> None:
    message = refusal(**fields)
    assert message.startswith("job.json: ")
    assert told in message


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"audo": "a.wav"}, "job.json: audo: unknown field; did you mean 'audio'?"),
        ({"imag": "two.png", "image": None, "audio": "a.wav"}, "job.json: imag: unknown field; did you mean 'image'?"),
        ({"speekers": [{"audio": "a.wav"}]}, "job.json: speekers: unknown field; did you mean 'speakers'?"),
        ({"speakers": [{"audo": "a.wav"}]}, "job.json: speakers[0].audo: unknown field; did you mean 'audio'?"),
        ({"$schema": "job.schema.json"}, "job.json: audio or text is missing: the recorded speech"),
    ],
)
def test_a_misspelt_field_is_the_only_mistake(fields: dict[str, Any], told: str) -> None:
    assert refusal(**fields).startswith(told)
    assert "mistakes" not in refusal(**fields)


@pytest.mark.parametrize(
    ("fields", "hint"),
    [
        ({"speakers": [{"audio": "a.wav", "box": [1, 2, 3]}]}, '"box": [120, 80, 360, 420]'),
        ({"audio": "both.wav", "turns": "two.png"}, "'Anna: Hello.'"),
        ({"audio": None}, "a job: {"),
        ({"audio": "gone.wav"}, ""),
    ],
)
def test_a_hint_helps_against_the_mistake_at_hand(fields: dict[str, Any], hint: str) -> None:
    with pytest.raises(InputError) as caught:
        read(**fields)
    assert hint in caught.value.hint if hint else caught.value.hint == ""


@pytest.mark.parametrize(
    ("flags", "told", "hint"),
    [
        (JobFlags(boxes=["1,2,3"]), "--box '1,2,3' is not four numbers", "--box 120,80,360,420, which are left"),
        (JobFlags(boxes=["9,9,1,1"]), "--box (speaker 1): holds no pixel", "--box 120,80,360,420"),
        (JobFlags(boxes=["1,2,3,4"], masks=[Path("left.png")]), "--box and --mask together", '"mask"'),
        (JobFlags(turns=Path("two.png")), "--turns: two.png: is no subtitle file", "'Anna: Hello.'"),
        (
            JobFlags(audio=["a.wav", "b.wav"], boxes=["1,2,3,4"]),
            "--box (speaker 2): give a box or mask for both",
            "--box",
        ),
        (JobFlags(image=None), "--image is missing", "talk generate --image face.png"),
    ],
)
def test_options_are_told_as_such(flags: JobFlags, told: str, hint: str) -> None:
    given = flags if told.startswith("--image") else replace(flags, image=Path("two.png"))
    with pytest.raises(InputError) as caught:
        job_from_flags(given if given.audio else replace(given, audio=["a.wav"]))
    assert caught.value.message.startswith(told)
    assert hint in caught.value.hint


def test_subtitles_without_names_are_one_speaker_s_and_that_is_said() -> None:
    Path("alone.srt").write_text("00:00:00,000 --> 00:00:01,000\nOne.\n")
    job = read(audio="both.wav", turns="alone.srt")
    assert job.num_speakers == 1
    assert "alone.srt names nobody" in job.notes[0]
    assert read(audio="both.wav", turns="talk.srt").notes == ()
