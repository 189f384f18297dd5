"""A picture of a job before it runs: who is where, what is cut off, who speaks when, in which chunks.

Everything comes from the headers of the inputs and the first picture, drawn with Pillow: no torch, no weights. Above is
the source picture, dimmed where the crop cuts it off, with each speaker's place in their colour; below a bar of each
speaker's speech on the time axis, and the chunks under it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont, PngImagePlugin, UnidentifiedImageError

from infinitalk_cli.errors import InputError, MediaError
from infinitalk_cli.job import Job
from infinitalk_cli.media.sound_track import exact_s
from infinitalk_cli.places import Area, speaker_areas
from infinitalk_cli.progress import OnNote
from infinitalk_cli.request import GenerateRequest
from infinitalk_cli.run_plan import PlannedJob, plan_job, sound_duration_s, text_duration_s
from infinitalk_cli.run_scenes import with_scenes
from infinitalk_cli.sampling.chunk_plan import plan_chunks
from infinitalk_cli.sampling.settings import SamplingSettings

COLORS = ((255, 140, 0), (30, 144, 255))
PAPER, INK, GREY = (24, 24, 28), (235, 235, 235), (120, 120, 128)
WIDTH, TALLEST, MARGIN, ROW = 960, 720, 16, 26
"""Of the preview, of the picture in it, and of what is around, in pixels."""
TINT, DIMMED = 0.35, 0.35
MOST_LABELLED_CHUNKS = 24
MARK = "talk preview"
"""Written into our PNGs: only these are replaced without asking."""


Stretches = tuple[tuple[float, float], ...]
"""Starts and ends in seconds."""


@dataclass(frozen=True)
class Preview:
    """What a job amounts to. `speech`: each speaker's stretches in seconds; `chunks`: start and end in seconds."""

    planned: PlannedJob
    areas: tuple[Area, ...]
    speech: tuple[Stretches, ...]
    chunks: tuple[tuple[float, float], ...]

    @property
    def seconds(self) -> float:
        """Length of the video."""
        return self.planned.shape.num_frames / self.planned.shape.fps


def look_ahead(request: GenerateRequest, on_note: OnNote) -> Preview:
    """Read what a job says and shows. Raises: InputError, EnvironmentUnfitError: as the run would."""
    planned = with_scenes(request, plan_job(request), on_note)
    shape, profile = planned.shape, request.profile
    settings = SamplingSettings(
        engine=request.engine,
        chunk_frames=profile.chunk_frames,
        motion_frames=profile.motion_frames,
        max_frames=shape.num_frames,
    )
    found = plan_chunks([shape.num_frames] * request.job.num_speakers, settings, shape.cuts)
    return Preview(
        planned=planned,
        areas=speaker_areas(request.job, planned.source_height, planned.source_width),
        speech=tuple(used_of(own, request) for own in speech_of(request)),
        chunks=tuple(
            ((chunk.start + chunk.keep.start) / shape.fps, (chunk.start + chunk.keep.stop) / shape.fps)
            for chunk in found
        ),
    )


def used_of(stretches: Stretches, request: GenerateRequest) -> Stretches:
    """The part of them that --audio-start and --audio-end leave, on the timeline of the video."""
    first_s, last_s = request.sound.start_s, request.sound.end_s
    cut = [(max(start_s, first_s), end_s if last_s is None else min(end_s, last_s)) for start_s, end_s in stretches]
    return tuple((start_s - first_s, end_s - first_s) for start_s, end_s in cut if start_s < end_s)


def speech_of(request: GenerateRequest) -> tuple[Stretches, ...]:
    """When each speaker speaks: their turns, or from the start to the end of their sound, of a text about.

    Of a dialogue nobody knows it before it is spoken.
    """
    told, end_s, job = list[Stretches](), 0.0, request.job
    for number, speaker in enumerate(job.speakers):
        spoken = number in job.read_aloud and not job.dialogue
        if speaker.turns:
            told.append(tuple((turn.start_s, turn.end_s) for turn in speaker.turns))
        elif speaker.audio is not None or spoken:
            start_s = end_s if job.audio_type == "add" else float(exact_s(speaker.start_s))
            length_s = sound_duration_s(speaker.audio) if speaker.audio else text_duration_s(request, number)
            end_s = start_s + float(length_s)
            told.append(((start_s, end_s),))
        else:
            told.append(())
    return tuple(told)


def draw(job: Job, preview: Preview, lines: Sequence[str]) -> Image.Image:
    """The picture of a preview. `lines`: of text between the picture and the time axis."""
    seen = draw_places(job, preview)
    height = seen.height + ROW * (len(lines) + len(job.speakers) + 2) + 3 * MARGIN
    canvas = Image.new("RGB", (WIDTH, height), PAPER)
    canvas.paste(seen, ((WIDTH - seen.width) // 2, MARGIN))
    pen, top = ImageDraw.Draw(canvas), seen.height + 2 * MARGIN
    for line in lines:
        pen.text((MARGIN, top), line, fill=INK, font=font(17))
        top += ROW
    draw_times(pen, job, preview, top)
    return canvas


def draw_places(job: Job, preview: Preview) -> Image.Image:
    """The source picture with its crop and its speakers."""
    source = preview.planned.picture
    scale = min((WIDTH - 2 * MARGIN) / source.width, TALLEST / source.height)
    size = (max(1, round(source.width * scale)), max(1, round(source.height * scale)))
    picture = source.resize(size, Image.Resampling.BILINEAR)
    left, top, right, bottom = (round(side * scale) for side in preview.planned.crop_box)
    dimmed = Image.blend(Image.new("RGB", size, PAPER), picture, DIMMED)
    dimmed.paste(picture.crop((left, top, right, bottom)), (left, top))
    pen = ImageDraw.Draw(dimmed)
    pen.rectangle((left, top, right - 1, bottom - 1), outline=INK, width=2)
    for number, (speaker, area) in enumerate(zip(job.speakers, preview.areas, strict=False)):
        if not speaker.everywhere_else:
            tint(dimmed, area, number)
            at = ImageDraw.Draw(dimmed)
            rows, columns = np.nonzero(area)
            label(at, (columns.min() * scale + 6, rows.min() * scale + 6), title(job, number), number)
    return dimmed


def tint(picture: Image.Image, area: Area, number: int) -> None:
    """Colour an area and its outline."""
    mask = Image.fromarray(area.astype(np.uint8) * 255).resize(picture.size, Image.Resampling.NEAREST)
    flat = Image.new("RGB", picture.size, COLORS[number])
    picture.paste(flat, mask=mask.point([round(value * TINT) for value in range(256)]))
    picture.paste(flat, mask=ImageChops.subtract(mask, mask.filter(ImageFilter.MinFilter(5))))


def title(job: Job, number: int) -> str:
    """Who a speaker is and what they are heard from."""
    speaker, is_spoken = job.speakers[number], number in job.read_aloud
    who = speaker.name or f"speaker {number + 1}"
    if speaker.everywhere_else:
        return "everyone else: silent"
    return f"{who}: {speaker.audio.name if speaker.audio else 'text' if is_spoken else 'silent'}"


def label(pen: ImageDraw.ImageDraw, at: tuple[float, float], text: str, number: int) -> None:
    """Text on a plate of a speaker's colour."""
    pen.rectangle(pen.textbbox(at, text, font=font(17)), fill=COLORS[number], outline=COLORS[number], width=4)
    pen.text(at, text, fill=(0, 0, 0), font=font(17))


def draw_times(pen: ImageDraw.ImageDraw, job: Job, preview: Preview, top: int) -> None:
    """A bar for the speech of each, and the chunks, over the length of the video."""
    begin, width = MARGIN, WIDTH - 2 * MARGIN

    def x(seconds: float) -> float:
        return begin + width * min(seconds, preview.seconds) / preview.seconds

    for number, stretches in enumerate(preview.speech):
        pen.line((begin, top + ROW - 4, begin + width, top + ROW - 4), fill=GREY)
        for start_s, end_s in stretches:
            if start_s < preview.seconds:
                pen.rectangle((x(start_s), top + 2, max(x(end_s), x(start_s) + 1), top + ROW - 5), fill=COLORS[number])
        pen.text((begin + 4, top + 3), title(job, number), fill=INK, font=font(14), stroke_width=2, stroke_fill=PAPER)
        top += ROW
    for number, (start_s, end_s) in enumerate(preview.chunks):
        pen.rectangle((x(start_s), top + 3, x(end_s) - 1, top + ROW - 4), outline=GREY)
        if len(preview.chunks) <= MOST_LABELLED_CHUNKS:
            pen.text((x(start_s) + 4, top + 5), f"{number + 1}", fill=INK, font=font(12))
    top += ROW
    pen.text((begin, top), "0 s", fill=GREY, font=font(14))
    end = f"{preview.seconds:.2f} s"
    pen.text((begin + width - pen.textlength(end, font=font(14)), top), end, fill=GREY, font=font(14))


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own letters, so that a preview looks the same everywhere."""
    return ImageFont.load_default(size)


def save(image: Image.Image, path: Path, *, overwrite: bool) -> None:
    """Write the PNG; an earlier preview is replaced, anything else only with `overwrite`.

    Raises: InputError: if something else is there. MediaError: if it can't be written.
    """
    if path.is_dir():
        raise InputError(f"the preview must end in .png, but {path} is a folder", hint=f"-o {path / 'preview.png'}")
    if path.suffix.lower() != ".png":
        raise InputError(f"the preview must end in .png, not {path.name!r}", hint="-o preview.png")
    if path.exists() and not (overwrite or is_preview(path)):
        raise InputError(f"{path} is already there, and no preview", hint="--overwrite replaces it, -o names another")
    mark = PngImagePlugin.PngInfo()
    mark.add_text("Software", MARK)
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(part, format="PNG", pnginfo=mark)
        os.replace(part, path)  # noqa: PTH105  one name for both systems
    except OSError as error:
        part.unlink(missing_ok=True)
        raise MediaError(f"the preview can't be written to {path}: {error.strerror or error}") from error


def is_preview(path: Path) -> bool:
    """Whether a file is one of ours."""
    try:
        with Image.open(path) as image:
            return image.info.get("Software") == MARK
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError):
        return False
