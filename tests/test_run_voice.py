"""Texts of a job spoken into a track per speaker, with a network that says a number of samples per letter."""

from __future__ import annotations

import wave
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infinitalk_cli import run_voice
from infinitalk_cli.dialogue import Line
from infinitalk_cli.errors import InputError
from infinitalk_cli.job import Job, Speaker
from infinitalk_cli.profiles import find_profile
from infinitalk_cli.request import GenerateRequest, check_request
from infinitalk_cli.run_voice import keep_tracks, speak_job
from infinitalk_cli.subtitles import Turn
from infinitalk_cli.voices import VoiceFiles
from infinitalk_cli.wishes import VoiceWishes

PER_LETTER = 240
"""Samples at 24 kHz: 10 ms."""


class Letters:
    """A synthesizer of steady tones: 0.1 for the first speaker's voice, 0.2 for the second's."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def speak(self, text: str, voice: float, language: str) -> np.ndarray:
        assert language in "ab"
        return np.full(len(text) * PER_LETTER, voice, np.float32) if text != "..." else np.zeros(0, np.float32)


@pytest.fixture(autouse=True)
def letters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_voice, "load_kokoro", lambda *_: None)
    monkeypatch.setattr(run_voice, "load_voice", lambda path: {"af_one": 0.1, "bm_two": 0.2}[path.stem])
    monkeypatch.setattr(run_voice, "Synthesizer", Letters)


def request_of(
    folder: Path, *speakers: Speaker, dialogue: tuple[Line, ...] = (), pause_s: float = 0
) -> GenerateRequest:
    job = Job(folder / "face.png", "", speakers, dialogue=dialogue)
    files = VoiceFiles(folder / "c", folder / "n", (Path("af_one.pt"), Path("bm_two.pt")))
    voice = VoiceWishes(pause_s=pause_s)
    return GenerateRequest(job, folder / "talk.mp4", find_profile("demo"), voice=voice, voice_files=files)


def spoken(request: GenerateRequest, folder: Path) -> list[list[tuple[float, int]]]:
    """Each speaker's track as (level, letters long) of its stretches."""
    import torch

    job = speak_job(request, folder, torch.device("cpu"))
    tracks = list[list[tuple[float, int]]]()
    for speaker in job.speakers:
        assert speaker.audio is not None
        with wave.open(str(speaker.audio)) as file:
            assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (24_000, 1, 2)
            samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(float) / 32767
        edges = [0, *(np.flatnonzero(np.diff(samples)) + 1), len(samples)]
        tracks.append([(round(float(samples[a]), 2), (b - a) // PER_LETTER) for a, b in pairwise(edges)])
    return tracks


def test_dialogue_alternates_with_silence_between_turns_and_tracks_of_one_length(tmp_path: Path) -> None:
    lines = (Line(0, "abc"), Line(1, "defgh"), Line(0, "ij"))
    request = request_of(tmp_path, Speaker(None), Speaker(None), dialogue=lines)
    assert spoken(request, tmp_path) == [[(0.1, 3), (0.0, 5), (0.1, 2)], [(0.0, 3), (0.2, 5), (0.0, 2)]]
    request = request_of(tmp_path, Speaker(None), Speaker(None), dialogue=lines, pause_s=0.02)
    assert spoken(request, tmp_path) == [[(0.1, 3), (0.0, 9), (0.1, 2)], [(0.0, 5), (0.2, 5), (0.0, 4)]]


def test_each_speaker_s_own_text_and_a_recording_stand_side_by_side(tmp_path: Path) -> None:
    recording = run_voice.write_wav(tmp_path / "a.wav", np.full(5 * PER_LETTER, 0.5, np.float32))
    request = request_of(tmp_path, Speaker(recording), Speaker(None, text="abcd"))
    assert request.job.read_aloud == (1,)
    assert spoken(request, tmp_path) == [[(0.5, 5)], [(0.2, 4)]]


def test_words_of_subtitles_are_spoken_at_their_times_or_once_there_is_room(tmp_path: Path) -> None:
    turns = (Turn(0.02, 0.03, "abc"), Turn(0.03, 0.2, "de"), Turn(0.1, 0.2, "f"))
    assert spoken(request_of(tmp_path, Speaker(None, turns=turns)), tmp_path) == [
        [(0.0, 2), (0.1, 5), (0.0, 3), (0.1, 1)]
    ]


def test_text_without_a_sound_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the text of speaker 1 gives no sound"):
        spoken(request_of(tmp_path, Speaker(None, text="...")), tmp_path)


def test_tracks_are_kept_beside_the_video_and_nothing_else_is_replaced_there(tmp_path: Path) -> None:
    import torch

    (tmp_path / "work").mkdir()
    (tmp_path / "face.png").write_bytes(b"picture")
    lines = (Line(0, "abc"), Line(1, "de"))
    request = request_of(tmp_path, Speaker(None), Speaker(None), dialogue=lines)
    job = speak_job(request, tmp_path / "work", torch.device("cpu"))
    assert keep_tracks(request, job) == (tmp_path / "talk.s1.wav", tmp_path / "talk.s2.wav")
    assert (tmp_path / "talk.s2.wav").read_bytes() == (tmp_path / "work" / "spoken2.wav").read_bytes()
    with pytest.raises(InputError, match=r"talk\.s1\.wav, where the spoken text is kept, is already there"):
        check_request(request)
    check_request(replace(request, overwrite=True))
    (tmp_path / "talk.s2.wav").write_bytes(b"a recording")
    with pytest.raises(InputError, match=r"talk\.s2\.wav is already there.*never replaced"):
        check_request(replace(request, overwrite=True))
    own = request_of(tmp_path, Speaker(tmp_path / "talk.wav"), Speaker(None, text="abc"))
    (tmp_path / "talk.wav").write_bytes(b"a recording")
    with pytest.raises(InputError, match=r"talk\.wav, where the spoken text is kept, is an input of the job") as told:
        check_request(own)
    assert "--overwrite replaces" not in told.value.message
    with pytest.raises(InputError, match=r"talk\.wav, where the spoken text is kept, is an input of the job"):
        check_request(replace(own, overwrite=True))
    alone = request_of(tmp_path, Speaker(None, text="abc"))
    assert keep_tracks(alone, speak_job(alone, tmp_path / "work", torch.device("cpu"))) == (tmp_path / "talk.wav",)
