"""Jobs whose speech is text, in the forms of the reference programs and ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from infinitalk_cli.dialogue import Line
from infinitalk_cli.job import Box, read_job
from tests.test_job import PNG, good, write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a picture and a sound."""
    (tmp_path / "face.png").write_bytes(PNG)
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    return tmp_path


def test_reference_form_of_speech_from_text_is_read(folder: Path) -> None:
    said = {"text": "(s1) Hello. (s2) Hi.", "human1_voice": "weights/af_heart.pt", "human2_voice": "am_adam"}
    job = read_job(
        write(folder, good(cond_audio={}, tts_audio=said, bbox={"person1": [0, 0, 9, 9], "person2": [0, 9, 9, 20]}))
    )
    assert job.dialogue == (Line(0, "Hello."), Line(1, "Hi."))
    assert [speaker.voice for speaker in job.speakers] == ["weights/af_heart.pt", "am_adam"]
    assert [speaker.box for speaker in job.speakers] == [Box(0, 0, 9, 9), Box(9, 0, 20, 9)]
    assert job.read_aloud == (0, 1)
    alone = read_job(write(folder, good(cond_audio={}, tts_audio={"text": "Hello.", "human1_voice": "af_sky"})))
    assert [(speaker.text, speaker.voice) for speaker in alone.speakers] == [("Hello.", "af_sky")]


def test_text_of_a_job_is_one_speaker_s_or_a_dialogue(folder: Path) -> None:
    alone = read_job(write(folder, good(cond_audio=None, text="Hello.")))
    assert ([speaker.text for speaker in alone.speakers], alone.dialogue, alone.read_aloud) == (["Hello."], (), (0,))
    speakers = [{"voice": "bf_emma"}, {"voice": "am_adam"}]
    both = read_job(write(folder, good(cond_audio=None, text="(s2) Hi. (s1) Hello.", speakers=speakers)))
    assert [(speaker.text, speaker.voice) for speaker in both.speakers] == [(None, "bf_emma"), (None, "am_adam")]
    assert both.dialogue == (Line(1, "Hi."), Line(0, "Hello."))
    assert len(read_job(write(folder, good(cond_audio=None, text="(s2) Hi. (s1) Hello."))).speakers) == 2


def test_one_speaker_may_be_recorded_and_the_other_speak_a_text(folder: Path) -> None:
    speakers = [{"audio": "a.wav"}, {"text": "Hello.", "voice": "am_adam"}]
    job = read_job(write(folder, good(cond_audio=None, speakers=speakers)))
    assert (job.read_aloud, job.speakers[1].audio) == ((1,), None)
