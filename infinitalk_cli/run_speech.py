"""From recordings to what the transformer hears, the speakers' features, and to what the video plays.

The first is computed window by window, the second decoded as it is written, so memory does not grow with the length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import torch

from infinitalk_cli.job import Job
from infinitalk_cli.media.pauses import pause_weights
from infinitalk_cli.media.reference import VIDEO_FPS
from infinitalk_cli.media.sound_choice import (
    at_loudness,
    cut_speech,
    cut_track,
    spoken_stretch,
    track_of_file,
    with_other_files,
)
from infinitalk_cli.media.sound_track import SoundTrack, exact_s
from infinitalk_cli.media.speech import ReadOnce, SpeechTracks, prepare_speech
from infinitalk_cli.networks import build_audio_encoder
from infinitalk_cli.request import GenerateRequest
from infinitalk_cli.sampling.conditioning import AudioEmbeds, PausedEmbeds, ReversedTail
from infinitalk_cli.weights import WeightFiles
from infinitalk_cli.wishes import SoundWishes


def num_output_frames(duration_s: Fraction) -> int:
    """Frames of a video as long as the sound."""
    return max(1, round(duration_s * VIDEO_FPS))


def read_speech(request: GenerateRequest, job: Job, work_dir: Path) -> tuple[SpeechTracks, SoundTrack | None]:
    """The speech of a job and the sound of its video, None for a video without.

    Args: job: the request's, with every text spoken. work_dir: for the prepared speech.
    Raises: InputError: if a file is unusable.
    """
    wishes = request.sound
    driving = dict(zip(job.recordings, wishes.drive_audio, strict=True)) if wishes.drive_audio else {}
    speech = prepare_speech(
        [speaker.audio and driving.get(speaker.audio, speaker.audio) for speaker in job.speakers],
        work_dir,
        job.audio_type,
        starts_s=[speaker.start_s for speaker in job.speakers],
        turns=[[(turn.start_s, turn.end_s) for turn in speaker.turns] for speaker in job.speakers],
        lufs=wishes.drive_lufs(is_made_of_text=len(request.job.read_aloud) > 0),
    )
    if driving:
        played = {heard: recording for recording, heard in driving.items()}
        speech = replace(speech, sound_track=with_other_files(speech.sound_track, played))
    if wishes.start_s or wishes.end_s is not None:
        end_s = None if wishes.end_s is None else exact_s(wishes.end_s)
        speech = cut_speech(speech, exact_s(wishes.start_s), end_s)
    if wishes.trim_silence:
        speech = cut_speech(speech, *spoken_stretch(speech))
    return speech, output_sound(wishes, job, speech)


def output_sound(wishes: SoundWishes, job: Job, speech: SpeechTracks) -> SoundTrack | None:
    """What the video plays. A file in place of the speech is cut as the speech is; the source's sound goes with its
    pictures, which start at its start."""
    if wishes.output_sound == "none":
        return None
    track = speech.sound_track
    if wishes.output_sound == "source":
        track = track_of_file(job.reference, track.duration_s)
    elif wishes.output_audio is not None:
        track = cut_track(track_of_file(wishes.output_audio, track.duration_s), track.skip_s, track.duration_s)
    return track if wishes.output_loudness is None else at_loudness(track, wishes.output_loudness)


def embed_speech(files: WeightFiles, speech: SpeechTracks, *, close_mouth: bool = False) -> tuple[AudioEmbeds, ...]:
    """Each speaker's features, computed window by window when a chunk asks for them, on the CPU.

    Args: close_mouth: lead those of pauses to those of silence.
    """
    encoder = build_audio_encoder(files)
    num_frames = num_output_frames(speech.duration_s)
    waveforms = [ReadOnce(waveform) for waveform in speech.waveforms]
    streams: Sequence[AudioEmbeds] = [encoder.stream(waveform) for waveform in waveforms]
    if close_mouth:
        streams = [
            PausedEmbeds(stream, encoder.silence(), torch.from_numpy(pause_weights(waveform, stream.num_frames)))
            for stream, waveform in zip(streams, waveforms, strict=True)
        ]
    return tuple(ReversedTail(stream, max(0, num_frames - stream.num_frames)) for stream in streams)
