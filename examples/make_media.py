"""Makes the example media: two pictures and two videos of invented people, and synthesised speech.

`python examples/make_media.py` writes everything into `examples/media`; names as arguments make only those files, for
example `portrait.jpg`. Needs the package's own dependencies and, for speech, the program espeak-ng. `listener.mp4`
takes six minutes on one core, a picture one.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from math import pi, sin
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from portrait_render import Camera, develop, render
from portrait_shapes import Person, Pose

MEDIA = Path(__file__).parent / "media"
JPEG_QUALITY = 88
STILL_SUPERSAMPLING = 2.0
VIDEO_SUPERSAMPLING = 1.25
VIDEO_SIZE = 448
VIDEO_FPS = 30
VIDEO_FRAMES = 100
SHOT_SIZE = 256
SHOT_FRAMES = 42

WOMAN = Person(
    skin=(0.60, 0.37, 0.275),
    hair=(0.055, 0.025, 0.013),
    iris=(0.10, 0.16, 0.14),
    cloth=(0.04, 0.11, 0.17),
    lips=(0.42, 0.135, 0.13),
    long_hair=True,
    jaw=0.92,
    brow=0.85,
    pose=Pose(yaw=0.10, tilt=-0.03, gaze=(-0.09, 0.0)),
)
MAN = Person(
    skin=(0.46, 0.265, 0.175),
    hair=(0.018, 0.013, 0.010),
    iris=(0.11, 0.055, 0.022),
    cloth=(0.13, 0.135, 0.14),
    lips=(0.33, 0.14, 0.115),
    long_hair=False,
    jaw=1.12,
    brow=1.4,
    stubble=0.5,
)


def still(people: tuple[Person, ...], camera: Camera, width: int, height: int) -> Image.Image:
    """People as a photograph of `width` x `height`."""
    large = render(people, camera, int(STILL_SUPERSAMPLING * width), int(STILL_SUPERSAMPLING * height))
    return with_grain(scaled(develop(large), width, height))


def scaled(pixels: NDArray[np.uint8], width: int, height: int) -> Image.Image:
    """A picture that was rendered larger, so that edges become smooth."""
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BOX)


def with_grain(image: Image.Image, strength: float = 1.6) -> Image.Image:
    """A little noise, as a sensor has; it also hides the steps of smooth backgrounds."""
    values = np.asarray(image, np.float32)
    noise = np.random.default_rng(0).standard_normal(values.shape[:2])[..., None] * strength
    return Image.fromarray((values + noise).clip(0, 255).round().astype(np.uint8))


def make_portrait(path: Path) -> None:
    still((WOMAN,), Camera(), 768, 768).save(path, quality=JPEG_QUALITY)


def make_two_people(path: Path) -> None:
    """The woman on the left, the man on the right, each turned a little to the other."""
    left = replace(WOMAN, position=(-1.48, -0.12, 0.0), pose=Pose(yaw=0.22, tilt=-0.04, gaze=(-0.02, 0.0)))
    right = replace(MAN, position=(1.48, 0.04, 0.0), pose=Pose(yaw=-0.22, tilt=0.03, gaze=(0.02, 0.0)))
    still((left, right), Camera(height=4.0), 1024, 640).save(path, quality=JPEG_QUALITY)


def make_video(path: Path) -> None:
    """The man listening: the camera moves past him, he follows it with his eyes, blinks and nods a little."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=VIDEO_FPS, options={"crf": "21", "preset": "slow"})
        stream.width = stream.height = VIDEO_SIZE
        stream.pix_fmt = "yuv420p"
        for index in range(VIDEO_FRAMES):
            frame = av.VideoFrame.from_ndarray(video_frame(index), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def video_frame(index: int) -> NDArray[np.uint8]:
    time = index / VIDEO_FPS
    way = index / (VIDEO_FRAMES - 1) * 2 - 1  # -1 to 1
    blink = max(max(0.0, 1 - abs(time - at) / 0.12) for at in (0.8, 2.4))
    pose = Pose(
        yaw=0.10 * way + 0.03 * sin(2 * pi * time / 2.6),
        nod=0.03 * sin(2 * pi * time / 1.9),
        tilt=0.02 * sin(2 * pi * time / 3.1),
        gaze=(0.10 * way, 0.0),
        blink=blink,
    )
    camera = Camera(position=(1.1 * way, -0.1, 8.9), target=(0.12 * way, -0.38, 0.0), height=4.1)
    size = int(VIDEO_SUPERSAMPLING * VIDEO_SIZE)
    pixels = develop(render((replace(MAN, pose=pose),), camera, size, size, shift=0.16 * way))
    return np.asarray(scaled(pixels, VIDEO_SIZE, VIDEO_SIZE))


def speak(voice: str, text: str, *, speed: int = 150, pitch: int = 50) -> Callable[[Path], None]:
    """A maker of a 16-bit mono WAV file, 22,050 Hz, in a voice of espeak-ng."""

    def make(path: Path) -> None:
        program = shutil.which("espeak-ng")
        if program is None:
            raise SystemExit("espeak-ng is not installed: apt-get install espeak-ng")
        arguments = ["-v", voice, "-s", str(speed), "-p", str(pitch), "-w", str(path), text]
        subprocess.run([program, *arguments], check=True)

    return make


def paint_mask(left: int, right: int) -> Callable[[Path], None]:
    """A maker of a mask for `two_people.jpg` at half its size: a head and shoulders between two columns."""

    def make(path: Path) -> None:
        mask = Image.new("L", (512, 320))
        pen, middle = ImageDraw.Draw(mask), (left + right) // 2
        pen.ellipse((middle - 75, 25, middle + 75, 235), fill=255)
        pen.rounded_rectangle((left, 225, right, 360), radius=50, fill=255)
        mask.save(path)

    return make


def join_speech(path: Path) -> None:
    """What the two people say, one after the other in one recording."""
    with av.open(str(path), "w") as target:
        stream = target.add_stream("flac", rate=22_050, layout="mono")
        for name in ("speech_left.wav", "speech_right.wav"):
            with av.open(str(MEDIA / name)) as source:
                for frame in source.decode(audio=0):
                    frame.pts = None
                    target.mux(stream.encode(frame))
        target.mux(stream.encode(None))


def make_two_shots(path: Path) -> None:
    """The man of `listener.mp4`, then a cut to a slow pan over the woman of `portrait.jpg`, with a sound of its own."""
    with av.open(str(path), "w") as target, av.open(str(MEDIA / "speech_left.wav")) as sound:
        picture = target.add_stream("libx264", rate=VIDEO_FPS, options={"crf": "23", "preset": "slow"})
        picture.width = picture.height = SHOT_SIZE
        picture.pix_fmt = "yuv420p"
        voice = target.add_stream("aac", rate=22_050, layout="mono")
        for image in two_shots():
            target.mux(picture.encode(av.VideoFrame.from_image(image)))
        target.mux(picture.encode())
        for frame in sound.decode(audio=0):
            if frame.time < 2 * SHOT_FRAMES / VIDEO_FPS:
                target.mux(voice.encode(frame))
        target.mux(voice.encode(None))


def two_shots() -> Iterator[Image.Image]:
    """The frames, `SHOT_FRAMES` of each shot."""
    with av.open(str(MEDIA / "listener.mp4")) as source:
        for frame in islice(source.decode(video=0), SHOT_FRAMES):
            yield frame.to_image().resize((SHOT_SIZE, SHOT_SIZE), Image.Resampling.LANCZOS)
    with Image.open(MEDIA / "portrait.jpg") as portrait:
        for number in range(SHOT_FRAMES):
            left = 2 * number
            yield portrait.resize((SHOT_SIZE, SHOT_SIZE), Image.Resampling.LANCZOS, box=(left, 40, left + 640, 680))


MAKERS: dict[str, Callable[[Path], None]] = {
    "speech.wav": speak("en-us+f3", "Hello! I was only a picture. Now I can tell you anything you like.", speed=158),
    "speech_left.wav": speak("en-us+f3", "Have you heard? They taught us both to speak.", speed=155),
    "speech_right.wav": speak("en-gb+m3", "I have. And we even take turns, most of the time.", speed=150, pitch=40),
    "speech_dub.wav": speak("en-gb+m3", "This is my face, but the words are new.", speed=145, pitch=40),
    "portrait.jpg": make_portrait,
    "two_people.jpg": make_two_people,
    "listener.mp4": make_video,
    "mask_left.png": paint_mask(32, 254),
    "mask_right.png": paint_mask(262, 488),
    "conversation.flac": join_speech,
    "two_shots.mp4": make_two_shots,
}


def main(names: list[str]) -> None:
    MEDIA.mkdir(exist_ok=True)
    for name in names or MAKERS:
        MAKERS[name](MEDIA / name)
        print(f"{name}: {(MEDIA / name).stat().st_size // 1000} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
