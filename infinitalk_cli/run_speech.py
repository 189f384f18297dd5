"""From what is said to what the transformer hears: the speakers' features, at a memory that does not grow."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import torch

from infinitalk_cli.media.pauses import pause_weights
from infinitalk_cli.media.reference import VIDEO_FPS
from infinitalk_cli.media.speech import SpeechTracks
from infinitalk_cli.networks import build_audio_encoder
from infinitalk_cli.sampling.conditioning import AudioEmbeds, PausedEmbeds, ReversedTail
from infinitalk_cli.weights import WeightFiles


def num_output_frames(duration_s: Fraction) -> int:
    """Frames of a video as long as the sound."""
    return max(1, round(duration_s * VIDEO_FPS))


def embed_speech(files: WeightFiles, speech: SpeechTracks, *, close_mouth: bool = False) -> tuple[AudioEmbeds, ...]:
    """Each speaker's features, computed window by window when a chunk asks for them, on the CPU.

    Args: close_mouth: lead those of pauses to those of silence.
    """
    encoder = build_audio_encoder(files)
    num_frames = num_output_frames(speech.duration_s)
    streams: Sequence[AudioEmbeds] = [encoder.stream(waveform) for waveform in speech.waveforms]
    if close_mouth:
        streams = [
            PausedEmbeds(stream, encoder.silence(), torch.from_numpy(pause_weights(waveform, stream.num_frames)))
            for stream, waveform in zip(streams, speech.waveforms, strict=True)
        ]
    return tuple(ReversedTail(stream, max(0, num_frames - stream.num_frames)) for stream in streams)
