"""The speech of a run that is given as text: spoken into a file per speaker, which then goes the way of a recording."""

from __future__ import annotations

import shutil
import wave
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from infinitalk_cli.errors import InputError
from infinitalk_cli.job import Job, Speaker
from infinitalk_cli.media.synthesis import SYNTHESIS_RATE, Synthesizer, load_kokoro, load_voice
from infinitalk_cli.request import GenerateRequest, kept_speech
from infinitalk_cli.speech_mark import mark_speech
from infinitalk_cli.voices import VoiceFiles, language_of

Samples = npt.NDArray[np.float32]


def speak_job(request: GenerateRequest, work_dir: Path, device: torch.device) -> Job:
    """The job with a sound file for every speaker whose speech was text; other jobs as they are.

    Raises: InputError: if nothing is heard of a text. WeightsError, EnvironmentUnfitError: if it can't be spoken.
    """
    files = request.voice_files
    if files is None:
        return request.job
    network = load_kokoro(files.config, files.network, device)
    synthesizer = Synthesizer(network, speed=request.voice.speed, seed=request.seed)
    tracks = spoken_tracks(request, synthesizer, files)
    speakers = list(request.job.speakers)
    for number, track in tracks.items():
        if not track.any():
            raise InputError(f"the text of speaker {number + 1} gives no sound", hint="is it in the voice's language?")
        path = write_wav(work_dir / f"spoken{number + 1}.wav", track)
        speakers[number] = replace(speakers[number], audio=path, text=None, turns=())
    return replace(request.job, speakers=tuple(speakers), dialogue=())


def spoken_tracks(request: GenerateRequest, synthesizer: Synthesizer, files: VoiceFiles) -> Mapping[int, Samples]:
    """What each speaker of a text says, `(n,)` at `SYNTHESIS_RATE`, by number from 0.

    In a dialogue all tracks are equally long, and silent while the other one speaks.
    """
    job = request.job

    def speak(number: int, text: str) -> Samples:
        path = files.voices[number]
        assert path is not None  # every speaker of a text has a voice
        return synthesizer.speak(text, load_voice(path), language_of(path))

    if job.dialogue:
        lines = [(line.speaker, speak(line.speaker, line.text)) for line in job.dialogue]
        return in_turns(lines, request.voice.pause_s)
    tracks = dict[int, Samples]()
    for number in job.read_aloud:
        speaker = job.speakers[number]
        if speaker.text is not None:
            tracks[number] = speak(number, speaker.text)
        else:
            tracks[number] = at_times(speaker, [speak(number, turn.text) for turn in speaker.turns])
    return tracks


def in_turns(lines: Sequence[tuple[int, Samples]], pause_s: float) -> Mapping[int, Samples]:
    """One line after the other, each on its speaker's track. `lines`: speaker and sound, in order."""
    pause = round(pause_s * SYNTHESIS_RATE)
    starts = np.cumsum([0, *(len(sound) + pause for _, sound in lines)])
    tracks = {number: np.zeros(int(starts[-1]) - pause, np.float32) for number, _ in lines}
    for start, (number, sound) in zip(starts, lines, strict=False):
        tracks[number][start : start + len(sound)] = sound
    return tracks


def at_times(speaker: Speaker, sounds: Sequence[Samples]) -> Samples:
    """A speaker's turns at the times that subtitles gave them, later where the turn before takes longer."""
    end, placed = 0, list[tuple[int, Samples]]()
    for turn, sound in zip(speaker.turns, sounds, strict=True):
        start = max(end, round(turn.start_s * SYNTHESIS_RATE))
        placed.append((start, sound))
        end = start + len(sound)
    track = np.zeros(end, np.float32)
    for start, sound in placed:
        track[start : start + len(sound)] = sound
    return track


def keep_tracks(request: GenerateRequest, spoken: Job) -> tuple[Path, ...]:
    """Copy the spoken tracks beside the finished video; where they are. `spoken`: the job that `speak_job` made."""
    paths = kept_speech(request)
    for number, path in zip(request.job.read_aloud, paths, strict=True):
        track = spoken.speakers[number].audio
        assert track is not None
        mark_speech(track)
        shutil.copyfile(track, path)
    return paths


def write_wav(path: Path, samples: Samples) -> Path:
    """Write `(n,)` samples as 16-bit mono at `SYNTHESIS_RATE`."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SYNTHESIS_RATE)
        file.writeframes((samples.clip(-1, 1) * 32767).round().astype("<i2").tobytes())
    return path
