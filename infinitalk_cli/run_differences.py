"""What makes one run another video than an earlier one, in a user's words: `--seed: 42 then, 7 now`.

What decides the frames is kept by the names of our own fields, files by their digest (`run_resume.job_identity`). Here
fields become the options that set them, and files their name, size and time, which are kept beside for this alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from infinitalk_cli.media.reference import VIDEO_FPS

LONGEST_SHOWN = 40
"""Characters of a text that are shown of it."""

BOX_SIDES = ("left", "top", "right", "bottom")

FIELDS = {
    "num_steps": "--steps",
    "chunk_frames": "--frames",
    "multitalk_motion_frames": "--motion-frames",
    "text_guidance_scale": "--text-guidance",
    "audio_guidance_scale": "--audio-guidance",
    "step_cache_threshold": "--teacache-threshold",
    "reanchor_every": "--reanchor",
    "start_s": "--audio-start",
    "end_s": "--audio-end",
    "close_mouth": "--close-mouth-in-pauses",
    "output_sound": "--output-audio",
    "output_audio": "--output-audio",
    "pause_s": "--pause",
    "width": "--resolution",
    "height": "--resolution",
    "prompt": "the prompt",
    "negative_prompt": "the negative prompt",
    "reference": "the picture or video",
    "dtype": "numbers of the transformer",
    "lora": "the speed LoRA of the profile",
    "lora_scale": "the scale of the profile's speed LoRA",
    "device": "computed on",
    "torch": "torch",
    "scenes from frames": "scene cuts",
}
"""Fields of the request and its parts that are no option, or one of another name."""

NUMBERED = {
    "loras": "--lora",
    "drive_audio": "--drive-audio",
    "voices": "--voice",
    "dialogue": "the text",
}
"""Fields with several values."""

OF_A_SPEAKER = {"audio": "sound", "start_s": "start", "everywhere_else": "place"}
NETWORKS = {
    "dit": "transformer",
    "adapter": "speech adapter",
    "text": "text encoder",
    "tokenizer": "tokenizer",
    "image": "image encoder",
    "vae": "video VAE",
    "audio": "speech encoder",
}
"""By the first word of a weight file's name."""


@dataclass(frozen=True)
class Side:
    """One of two runs. `decides`: what decides its frames, by field. `files`: of those that are files: NAME, FACTS."""

    decides: Mapping[str, str]
    files: Mapping[str, str] = field(default_factory=dict[str, str])


def differences(then: Side, now: Side) -> Iterator[str]:
    """A line for each difference, nothing for equal runs."""
    groups = dict[str, list[str]]()
    for name in sorted(then.decides.keys() | now.decides.keys()):
        told_otherwise = name == "job.is_video" or (name.endswith(".scale") and not is_on_both(name, then, now))
        if then.decides.get(name) != now.decides.get(name) and not told_otherwise:
            groups.setdefault(label(name), []).append(name)
    counts = [num_speakers(side) for side in (then, now)]
    if counts[0] != counts[1]:
        yield f"speakers: {counts[0]} then, {counts[1]} now"
        groups = {told: names for told, names in groups.items() if not told.endswith(f"of speaker {max(counts)}")}
    for told, names in groups.items():
        yield f"{told}: {words(names, then, now)}"


def is_on_both(name: str, then: Side, now: Side) -> bool:
    """Whether both runs have a value of that name."""
    return name in then.decides and name in now.decides


def label(name: str) -> str:
    """What a user calls a field: an option, or a part of the job."""
    if speaker := re.match(r"job\.speakers (\d+)\.(\w+)", name):
        return f"{OF_A_SPEAKER.get(speaker[2], speaker[2])} of speaker {speaker[1]}"
    if name.startswith("weights."):
        what = re.split(r"[_ ]", name.removeprefix("weights."))[0]
        return f"weights of the {NETWORKS[what]}" if what in NETWORKS else f"--{what}"
    if name.startswith("voice_files."):
        return "the voice's files"
    *_, last = re.sub(r"(loras \d+)\.path", r"\1", name).split(".")
    if last == "scale":
        return "the scale of " + label(name.removesuffix(".scale"))
    if numbered := re.search(r"(\w+) (\d+)", name):
        told = NUMBERED.get(numbered[1], numbered[1])
        return f"{told} {numbered[2]}" if told.startswith("--") else told
    return FIELDS.get(last, "--" + last.replace("_", "-"))


def num_speakers(side: Side) -> int:
    """How many a run has."""
    return len({found[1] for name in side.decides if (found := re.match(r"job\.speakers (\d+)\.", name))})


def words(names: list[str], then: Side, now: Side) -> str:
    """How the values of fields that make one thing differ."""
    name = names[0]
    if name.startswith("weights."):
        return weights_words(names, then, now)
    if re.search(r"\.turns |dialogue |^voice_files", name):
        return "not the same as then"
    file = next((each for each in names if each in then.files or each in now.files), name)
    if file in then.files and file in now.files:
        return file_words(then.files[file], now.files[file])
    if re.fullmatch(r"[0-9a-f]{64}", then.decides.get(name, "")) and name not in then.files:  # by an older version
        return "another file, or changed since"
    return f"{value(name, then)} then, {value(name, now)} now"


def file_words(then: str, now: str) -> str:
    """How two files differ, each as NAME, FACTS."""
    (name, _, before), (name_now, _, after) = then.rpartition(", "), now.rpartition(", ")
    if name != name_now:
        return f"{name} then, {name_now} now"
    if before == after:
        return f"{name} has other content than then, of the same size and time"
    return f"{name} has changed since: {before} then, {after} now"


def weights_words(names: list[str], then: Side, now: Side) -> str:
    """How weight files differ, which are known by their size and a digest."""
    if len(names) > 1:
        return "other files now"
    before, after = (side.decides.get(names[0], "none").partition(", ")[0] for side in (then, now))
    return "another file of the same size now" if before == after else f"{before} then, {after} now"


def value(name: str, side: Side) -> str:
    """What a field holds on one side, or the fields around it that make one thing."""
    if ".box" in name:
        box = name[: name.index(".box") + len(".box")]
        sides = [side.decides.get(f"{box}.{each}") for each in BOX_SIDES]
        return "none" if None in sides else ", ".join(map(str, sides))
    if label(name) == "--resolution":
        sides = [side.decides.get(f"picture.{each}", "None") for each in ("width", "height")]
        return "not set" if "None" in sides else "x".join(sides)
    if label(name) == "--output-audio":
        sound = side.decides.get("sound.output_sound", "not set")
        return side.files.get("sound.output_audio", sound).rpartition(", ")[0] or sound
    if name in side.files:
        return side.files[name].rpartition(", ")[0]
    held = side.decides.get(name)
    if held is None or held == "None":
        return "none" if name == "scenes from frames" else "not set"
    if name == "scenes from frames":
        return ", ".join(f"{int(frame) / VIDEO_FPS:.2f}" for frame in held.split(", ")) + " s"
    if re.fullmatch(r"job\.(negative_)?prompt|.*\.text", name):
        return repr(held if len(held) <= LONGEST_SHOWN else held[:LONGEST_SHOWN] + "...")
    return {"True": "on", "False": "off"}.get(held, held)
