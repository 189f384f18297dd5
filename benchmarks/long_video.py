"""Does memory grow with the video? One minute and an hour with the demo weights, each in a process of its own.

    python -m benchmarks.long_video [--minutes 60] [--folder FOLDER]

The picture is as small as the networks allow and made in one step a chunk, so that an hour of it is soon done.
Frames and sound must be exact to the frame and the sample, and the peak of the RAM (all that the system counts as the
process's, mapped files included) within 100 MB of the minute's. POSIX only: the system's count is asked for there.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import wave
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

RATE = 16_000
ALLOWED_GROWTH_BYTES = 100_000_000
PORTRAIT = Path(__file__).parent.parent / "examples" / "media" / "portrait.jpg"
OPTIONS = (
    *("--profile", "demo", "--resolution", "64x64", "--steps", "1", "--motion-frames", "1"),
    *("--audio-guidance", "1", "--text-guidance", "1", "--device", "cpu", "--progress", "none", "--overwrite"),
)


@dataclass(frozen=True)
class Measured:
    """One run. `peak_bytes`: most memory that was the process's; `num_samples`: of the mp4's sound, by its index."""

    minutes: float
    seconds: float
    peak_bytes: int
    num_frames: int
    num_samples: int
    file_bytes: int

    @property
    def is_exact(self) -> bool:
        """Whether sound and frames have the length that the recording has."""
        return (self.num_frames, self.num_samples) == (round(self.minutes * 1500), round(self.minutes * 60 * RATE))


def write_speech(path: Path, minutes: float) -> None:
    """Noise that comes and goes twice a second, written a second at a time."""
    rng, swell = np.random.default_rng(0), np.sin(np.linspace(0, 4 * np.pi, RATE, endpoint=False)) ** 2
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        for start in range(0, round(minutes * 60 * RATE), RATE):
            length = min(RATE, round(minutes * 60 * RATE) - start)
            file.writeframes((rng.normal(0, 3000, RATE) * swell)[:length].astype("<i2").tobytes())


def measure(folder: Path, minutes: float) -> Measured:
    """Make a video of noise of this length and look at it. Raises: SystemExit: if the run fails."""
    speech, output = folder / "speech.wav", folder / "talk.mp4"
    write_speech(speech, minutes)
    arguments = ["generate", "--image", str(PORTRAIT), "--audio", str(speech), "-o", str(output), *OPTIONS]
    begun_s = time.monotonic()
    run = subprocess.Popen([sys.executable, "-m", "infinitalk_cli", *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(run.pid, 0)
    run.returncode = os.waitstatus_to_exitcode(status)
    if run.returncode:
        raise SystemExit(f"the run of {minutes:g} minutes failed")
    peak_bytes = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    with av.open(str(output)) as file:
        num_frames = sum(1 for packet in file.demux(video=0) if packet.size)
        num_samples = round(
            (file.streams.audio[0].duration or 0) * Fraction(file.streams.audio[0].time_base or 0) * RATE
        )
    return Measured(minutes, time.monotonic() - begun_s, peak_bytes, num_frames, num_samples, output.stat().st_size)


def main() -> None:
    """Measure, print a table and one line of JSON; exit code 1 if something is not as it must be."""
    parser = argparse.ArgumentParser(description="memory of a long video against that of a minute")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--folder", type=Path, default=None, help="for the files, instead of a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        runs = [measure(Path(folder), minutes) for minutes in (1, options.minutes)]
    for run in runs:
        print(
            f"{run.minutes:g} min: {run.seconds:.0f} s, peak {run.peak_bytes / 1e6:.0f} MB, {run.num_frames} frames, "
            f"{run.num_samples} samples, {run.file_bytes / 1e6:.1f} MB"
        )
    growth_bytes = runs[1].peak_bytes - runs[0].peak_bytes
    print(f"growth: {growth_bytes / 1e6:.0f} MB")
    print(json.dumps([asdict(run) for run in runs]))
    if growth_bytes > ALLOWED_GROWTH_BYTES or not all(run.is_exact for run in runs):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
