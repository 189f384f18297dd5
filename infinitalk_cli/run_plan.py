"""What a request amounts to, before it runs: picture size, crop and length, from the headers of its inputs.

Nothing is decoded but the first picture, so the length is what the sound files state; a file that states none is read
to its end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
from PIL import Image

from infinitalk_cli.errors import InputError
from infinitalk_cli.footprint import JobShape
from infinitalk_cli.job import Job
from infinitalk_cli.media.audio import SoundReader
from infinitalk_cli.media.container import open_container
from infinitalk_cli.media.image import BUCKETS, Bucket, CropPlan
from infinitalk_cli.media.reference import VIDEO_FPS, look_at, time_of
from infinitalk_cli.media.scenes import can_find_cuts
from infinitalk_cli.media.sound_choice import over_before_its_use
from infinitalk_cli.media.sound_track import exact_s
from infinitalk_cli.media.source_time import SourceTime
from infinitalk_cli.media.video import VideoReader
from infinitalk_cli.places import speaker_areas
from infinitalk_cli.request import GenerateRequest

FEWEST_FRAMES = 5
"""Fewer are hardly meant: a fifth of a second."""

LEAST_UNPLAYED_S = 0.2
"""So much less of --drive-audio than of the sound is told; encoders differ in padding by less."""

LETTERS_A_SECOND = 15
"""How fast a text is spoken, roughly: 170 words of English a minute."""


@dataclass(frozen=True)
class PlannedJob:
    """Size and length of a video to be, and how its picture is cut. `picture`: the first one of the source; `time`:
    of a source video that is read by time."""

    shape: JobShape
    crop: CropPlan
    picture: Image.Image
    time: SourceTime | None = None

    @property
    def source_width(self) -> int:
        """Pixels of the uncropped picture."""
        return self.picture.width

    @property
    def source_height(self) -> int:
        """Pixels of the uncropped picture."""
        return self.picture.height

    @property
    def crop_box(self) -> tuple[int, int, int, int]:
        """Left, top, right, bottom of what is seen, in pixels of the source."""
        scale_x = self.source_width / self.crop.resized_width
        scale_y = self.source_height / self.crop.resized_height
        left, top = self.crop.left * scale_x, self.crop.top * scale_y
        right, bottom = left + self.crop.width * scale_x, top + self.crop.height * scale_y
        end_x, end_y = min(round(right), self.source_width), min(round(bottom), self.source_height)
        return max(round(left), 0), max(round(top), 0), end_x, end_y


def plan_job(request: GenerateRequest) -> PlannedJob:
    """Look at the inputs of a request. Of scenes only the new starts of a loop are known without looking at pictures.

    Raises: InputError: if an input can't be read, or what it holds can't be meant.
    """
    job = request.job
    check_sounds(request)
    refuse_late_turns(request)
    reader = VideoReader(job.reference) if job.is_video else None
    picture, crop = look_at(job.reference, sizes_of(request), reader, request.picture.fit)
    num_frames = max(1, round(used_s(request, speech_duration_s(request)) * VIDEO_FPS))
    if request.max_seconds is not None:
        num_frames = min(num_frames, max(1, round(request.max_seconds * VIDEO_FPS)))
    time = time_of(reader, request.source.short_source) if reader and not request.reference_by_index else None
    starts = time.cut_frames((), num_frames, VIDEO_FPS) if time and request.source.scenes != "off" else ()
    shape = JobShape(crop.width, crop.height, num_frames, job.num_speakers, VIDEO_FPS, starts)
    planned = PlannedJob(shape, crop, picture, time)
    refuse_unseen(job, planned)
    return planned


def sizes_of(request: GenerateRequest) -> tuple[Bucket, ...]:
    """The picture sizes to choose from: the one that is wished, or those of the profile's set."""
    wished = request.picture
    if wished.width is None or wished.height is None:
        return BUCKETS[request.profile.size]
    return (Bucket(wished.height / wished.width, wished.height, wished.width),)


def refuse_unseen(job: Job, planned: PlannedJob) -> None:
    """Raises: InputError: for a box or mask that can't be meant, or of which the crop leaves nothing."""
    left, top, right, bottom = planned.crop_box
    for number, area in enumerate(speaker_areas(job, planned.source_height, planned.source_width), start=1):
        if not area[top:bottom, left:right].any():
            raise InputError(
                f"nothing of the place of speaker {number} is seen in the video: it shows {left}, {top}, {right}, "
                f"{bottom} (left, top, right, bottom) of the picture",
                hint="make it larger, or crop the picture around the speakers; `talk preview` draws it",
            )


def check_sounds(request: GenerateRequest) -> None:
    """Open every file whose sound is used. Raises: InputError: if one has none, or none of the wished stretch."""
    job, wishes = request.job, request.sound
    for path in (*job.recordings, *wishes.files, *((job.reference,) if wishes.output_sound == "source" else ())):
        SoundReader(path).close()
    start_s = exact_s(wishes.start_s)
    if not start_s or job.read_aloud or start_s < speech_duration_s(request):
        return
    if start_s >= (end_s := speech_duration_s(request, decoded_duration_s)):  # decoded, as a header may be wrong
        raise over_before_its_use(end_s, start_s)


def cuts_note(request: GenerateRequest) -> str:
    """A word where the number of chunks is not known before the run has looked for scene cuts; "" elsewhere."""
    scenes = request.source.scenes
    if not request.job.is_video or request.reference_by_index or scenes == "off":
        return ""
    if scenes == "auto" and not can_find_cuts():
        return ""
    return "note: each scene cut that the run finds may add a chunk; --dry-run looks for them and counts"


def refuse_late_turns(request: GenerateRequest) -> None:
    """Raises: InputError: for turns that begin when their recording is over, with the first one's line in its file."""
    job, driving = request.job, driving_files(request)
    for recording in job.recordings:
        heard = driving[recording]
        turns = [turn for speaker in job.speakers if speaker.audio == recording for turn in speaker.turns]
        last_s = max((turn.start_s for turn in turns), default=None)
        if last_s is None or last_s < sound_duration_s(heard) or last_s < (end_s := decoded_duration_s(heard)):
            continue  # decoded, as a header may be wrong
        late = sorted((turn for turn in turns if turn.start_s >= end_s), key=lambda turn: turn.start_s)
        where = "turns" if job.turns_file is None else f"{job.turns_file} line {late[0].line}"
        others = f" ({len(late)} turns do)" if len(late) > 1 else ""
        raise InputError(
            f"{where}: a turn begins at {late[0].start_s:.2f} s, but {heard} is over at {float(end_s):.2f} s{others}",
            hint="the times of turns are those of the recording, from its start",
        )


def driving_files(request: GenerateRequest) -> dict[Path, Path]:
    """The file that moves the lips for each recording: itself, or what --drive-audio names."""
    recordings = request.job.recordings
    return dict(zip(recordings, request.sound.drive_audio or recordings, strict=True))


def unplayed_note(request: GenerateRequest) -> str:
    """A word where the sound goes on when --drive-audio is over; "" elsewhere. Raises: as `speech_duration_s`."""
    if not request.sound.drive_audio or request.sound.output_sound != "speech" or request.sound.output_audio:
        return ""
    heard_s = used_s(request, speech_duration_s(request))
    wished_s = used_s(request, speech_duration_s(request, of_recordings=True))
    left_s = float((wished_s if request.max_seconds is None else min(wished_s, exact_s(request.max_seconds))) - heard_s)
    if left_s < LEAST_UNPLAYED_S:
        return ""
    names = ", ".join(path.name for path in request.sound.drive_audio)
    follow = f"the lips follow {names} for {float(heard_s):.2f} s"
    return f"note: {follow}: the video ends there, {left_s:.2f} s of the sound are left out"


def short_note(num_frames: int, fps: int) -> str:
    """A word on a sound that is too short to be meant; "" for others."""
    if num_frames >= FEWEST_FRAMES:
        return ""
    many = "1 frame" if num_frames == 1 else f"{num_frames} frames"
    return f"note: the video will have {many} ({num_frames / fps:.2f} s), as the sound is that short"


def used_s(request: GenerateRequest, whole_s: Fraction) -> Fraction:
    """How much of the speech is used, by --audio-start and --audio-end; silence that is trimmed is not looked for."""
    end_s = whole_s if request.sound.end_s is None else min(whole_s, exact_s(request.sound.end_s))
    return max(Fraction(0), end_s - exact_s(request.sound.start_s))


def speech_duration_s(
    request: GenerateRequest, length_of: Callable[[Path], Fraction] | None = None, *, of_recordings: bool = False
) -> Fraction:
    """From the start of the video to the end of the last one's speech, of a text about.

    Args: length_of: tells the seconds of a sound file; None for `sound_duration_s`. of_recordings: go by what is
    played, not by what moves the lips.
    Raises: InputError: if a sound can't be read.
    """
    job, length_of, driving = request.job, length_of or sound_duration_s, driving_files(request)
    heard = [(speaker, speaker.audio) for speaker in job.speakers if speaker.audio is not None]
    found = [(speaker, length_of(path if of_recordings else driving[path])) for speaker, path in heard]
    found += [(job.speakers[number], text_duration_s(request, number)) for number in job.read_aloud]
    if job.audio_type == "para" or job.num_speakers == 1:
        return max(exact_s(speaker.start_s) + length_s for speaker, length_s in found)
    silent_s = (job.num_speakers - len(found)) * found[0][1]  # a silent speaker takes the other one's time
    return sum((length_s for _, length_s in found), silent_s)


def sound_duration_s(path: Path) -> Fraction:
    """Length of a sound file. Raises: InputError: if it has no sound or can't be read."""
    with open_container(path, "a sound file") as container:
        for stream in container.streams.audio:
            if stream.duration is not None and stream.time_base is not None:
                return stream.duration * stream.time_base
        if container.streams.audio and container.duration is not None:
            return Fraction(container.duration, av.time_base)
    return decoded_duration_s(path)


def decoded_duration_s(path: Path) -> Fraction:
    """The same, exactly: by decoding all of it."""
    with SoundReader(path) as reader:
        return Fraction(sum(len(block) for block in reader.blocks()), reader.rate)


def text_duration_s(request: GenerateRequest, number: int) -> Fraction:
    """About how long a speaker's track of a text will be, by its letters; in a dialogue, all of it."""
    job, letters_a_second = request.job, LETTERS_A_SECOND * request.voice.speed
    if job.dialogue:
        letters = sum(len(line.text) for line in job.dialogue)
        return Fraction(letters / letters_a_second + request.voice.pause_s * (len(job.dialogue) - 1))
    speaker = job.speakers[number]
    if speaker.text is not None:
        return Fraction(len(speaker.text) / letters_a_second)
    return Fraction(max(turn.start_s + len(turn.text) / letters_a_second for turn in speaker.turns))
