"""What is used of prepared speech, and what the finished video plays: stretches, other files, loudness.

The speech that drives the lips and the sound of the video are apart, but on one timeline: a stretch that is cut out is
cut out of both, at the same moment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from math import isinf
from pathlib import Path

import numpy as np

from infinitalk_cli.errors import InputError
from infinitalk_cli.media.audio import Resampler, SoundReader
from infinitalk_cli.media.loudness import LoudnessMeter
from infinitalk_cli.media.pauses import silent_frames
from infinitalk_cli.media.sound_track import SoundPiece, SoundTrack, kept_rate, without_clipping
from infinitalk_cli.media.speech import SPEECH_RATE, ReadOnce, SpeechTracks

FRAMES_A_SECOND = 25

LEAD_S, TAIL_S = Fraction(1, 5), Fraction(2, 5)
"""Silence that stays before the first word and after the last."""


def cut_speech(tracks: SpeechTracks, start_s: Fraction, end_s: Fraction | None) -> SpeechTracks:
    """Only the stretch from `start_s` to `end_s` (None: the end), of what is heard and of what is played.

    Raises: InputError: if nothing lies there.
    """
    end_s = tracks.duration_s if end_s is None else min(end_s, tracks.duration_s)
    if start_s >= end_s:
        raise over_before_its_use(tracks.duration_s, start_s)
    first, last = round(start_s * SPEECH_RATE), round(end_s * SPEECH_RATE)
    waveforms = tuple(waveform[first:last] for waveform in tracks.waveforms)
    return replace(
        tracks,
        waveforms=waveforms,
        num_samples=tuple(len(waveform) for waveform in waveforms),
        duration_s=end_s - start_s,
        sound_track=cut_track(tracks.sound_track, start_s, end_s - start_s),
    )


def over_before_its_use(end_s: Fraction, start_s: Fraction) -> InputError:
    """What to say of speech that ends before the stretch of it that is wished begins."""
    return InputError(
        f"the speech is over at {float(end_s):.2f} s, before its use begins at {float(start_s):.2f} s",
        hint="a smaller --audio-start",
    )


def cut_track(track: SoundTrack, start_s: Fraction, duration_s: Fraction) -> SoundTrack:
    """`duration_s` of a sound track from `start_s` on."""
    return replace(track, skip_s=track.skip_s + start_s, duration_s=duration_s)


def spoken_stretch(tracks: SpeechTracks) -> tuple[Fraction, Fraction]:
    """From shortly before anybody's first word to shortly after the last; all of it if nobody speaks."""
    num_frames = -(-max(tracks.num_samples) * FRAMES_A_SECOND // SPEECH_RATE)
    silent = [silent_frames(ReadOnce(waveform), num_frames) for waveform in tracks.waveforms]
    heard = np.flatnonzero(~np.logical_and.reduce(silent))
    if not len(heard):
        return Fraction(0), tracks.duration_s
    start_s = Fraction(int(heard[0]), FRAMES_A_SECOND) - LEAD_S
    end_s = Fraction(int(heard[-1]) + 1, FRAMES_A_SECOND) + TAIL_S
    return max(Fraction(0), start_s), min(tracks.duration_s, end_s)


def track_of_file(path: Path, duration_s: Fraction) -> SoundTrack:
    """A file as the sound of a video of that length: cut off, or silent from its end on.

    Raises: InputError: if it has no sound.
    """
    return track_of_pieces([SoundPiece(path)], duration_s)


def track_of_pieces(pieces: Sequence[SoundPiece], duration_s: Fraction) -> SoundTrack:
    """Files that sound together, at the highest of their rates. Raises: InputError: if one has no sound."""
    rates, channels = list[int](), list[int]()
    for piece in pieces:
        with SoundReader(piece.path) as reader:
            rates.append(kept_rate(reader.rate))
            channels.append(min(2, reader.num_channels))
    track = SoundTrack(tuple(pieces), max(rates), max(channels), duration_s)
    return without_clipping(track) if len(pieces) > 1 else track


def with_other_files(track: SoundTrack, file_of: Mapping[Path, Path]) -> SoundTrack:
    """The track with other files in the same places, such as the whole mix for the voice alone."""
    pieces = [replace(piece, path=file_of.get(piece.path, piece.path)) for piece in track.pieces]
    return replace(track_of_pieces(pieces, track.duration_s), skip_s=track.skip_s)


def at_loudness(track: SoundTrack, lufs: float) -> SoundTrack:
    """The track at that loudness, or less where it would clip; silence stays as it is. Decodes it twice.

    Loudness is that of the channels' mean, as for the speech.
    """
    meter = LoudnessMeter(SPEECH_RATE)
    mono = (block.mean(axis=1, keepdims=True, dtype=np.float32) for block in track.blocks())
    for block in Resampler(track.rate, SPEECH_RATE, 1).resample(mono):
        meter.add(block[:, 0])
    found = meter.integrated()
    if isinf(found):
        return track
    return without_clipping(replace(track, gain=track.gain * 10 ** ((lufs - found) / 20)))
