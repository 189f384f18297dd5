"""What is to be made: one picture or video, one prompt, one or two voices.

A job comes from a file (`read_job`) or from options (`job_from_flags`); both go through the same checks and give the
same frozen `Job`. A mistake is told with its file and field, all mistakes at once. The contents of pictures and sounds
are the media package's business; here a file need only be there. Subtitles alone are read, as they say who speaks when.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from infinitalk_cli.dialogue import MAX_SPEAKERS, Line, parse_dialogue
from infinitalk_cli.errors import InputError
from infinitalk_cli.job_file import parse_job, read_text
from infinitalk_cli.job_media import is_video_file
from infinitalk_cli.job_messages import OPTIONS, Source, problem_of
from infinitalk_cli.job_sound import SoundSaid
from infinitalk_cli.subtitles import BadSubtitles, NamedTurn, Turn, read_turns, share_out

if TYPE_CHECKING:
    from infinitalk_cli.job_schema import BoxForm, JobForm

AudioType = Literal["para", "add"]

DEFAULT_PROMPT = "A person talks to the camera."

NOBODY_NAMED = "note: {} names nobody, so one speaker says it all; of two, lines begin with 'Anna: ' and 'Ben: '"
"""`{}`: the subtitle file."""


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels of the source picture, upright as one sees it; `right` and `bottom` lie outside."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True)
class Speaker:
    """Somebody in the picture, and what they say.

    `audio`: a sound file or a video with sound, None for one who keeps silent or whose speech is made of text.
    `box`, `mask`: where they are; the mask is a picture, white where the speaker is. Neither: the default half, or
    with `everywhere_else` all that is not the other speaker. `start_s`: when their speech begins. `turns`: they hear
    only these stretches of `audio`; or, without one, the words to speak. `text`, `voice`: speech to be made.
    """

    audio: Path | None
    box: Box | None = None
    mask: Path | None = None
    everywhere_else: bool = False
    start_s: float = 0.0
    turns: tuple[Turn, ...] = ()
    text: str | None = None
    voice: str | None = None
    name: str = ""


@dataclass(frozen=True)
class Job:
    """One video to make.

    `reference`: the picture or video. `speakers`: the left one first, where nothing says where they are. With one face
    chosen of several, the second speaker is everyone else, and silent. `audio_type`: "para" for voices at the same
    time, "add" for one after the other. `negative_prompt`: None for the built-in one, "" for none.
    `dialogue`: what they say in turn, where their speech is made from one text. `turns_file`: where the turns were
    read; `notes`: what was understood in a way that may not be meant. Both are for messages alone. `sound_said`:
    options that the file says in the user's place.
    """

    reference: Path
    prompt: str
    speakers: tuple[Speaker, ...]
    audio_type: AudioType = "para"
    negative_prompt: str | None = None
    is_video: bool = False
    dialogue: tuple[Line, ...] = ()
    turns_file: Path | None = None
    notes: tuple[str, ...] = ()
    sound_said: SoundSaid = field(default_factory=SoundSaid)

    @property
    def read_aloud(self) -> tuple[int, ...]:
        """The numbers, from 0, of the speakers whose speech is made from text."""
        if self.dialogue:
            return tuple(sorted({line.speaker for line in self.dialogue}))
        return tuple(
            number
            for number, speaker in enumerate(self.speakers)
            if speaker.audio is None and (speaker.text is not None or speaker.turns)
        )

    @property
    def recordings(self) -> tuple[Path, ...]:
        """The sound files, each once."""
        return tuple(dict.fromkeys(speaker.audio for speaker in self.speakers if speaker.audio is not None))

    @property
    def num_speakers(self) -> int:
        """How many there are, silent ones too."""
        return len(self.speakers)

    @property
    def is_one_of_several(self) -> bool:
        """Whether one face was chosen, and the others keep silent."""
        return any(speaker.everywhere_else for speaker in self.speakers)


@dataclass(frozen=True)
class JobFlags:
    """A job as options give it. Paths start at the working directory.

    `audio`: a path per speaker, "none" for a silent one; with `turns` one path for all. `boxes`, `masks`:
    "left,top,right,bottom" or a picture per speaker, or nothing. `text`: to be spoken, instead of `audio`.
    """

    image: Path | None = None
    video: Path | None = None
    audio: Sequence[str] = ()
    prompt: str = DEFAULT_PROMPT
    negative_prompt: str | None = None
    boxes: Sequence[str] = ()
    masks: Sequence[Path] = ()
    turns: Path | None = None
    text: str | None = None
    audio_type: AudioType = "para"


def read_job(path: Path, overrides: Mapping[str, str] | None = None) -> Job:
    """Read a job file. Relative paths in it start at its folder, then at the working directory.

    Args: overrides: fields of the file that the user says anew.
    Raises: InputError: with every mistake, its field, and for broken JSON its line and column.
    """
    return job_of_fields(parse_job(read_text(path), path), str(path), path.parent, overrides)


def job_of_fields(
    fields: Mapping[str, Any], name: str, folder: Path, overrides: Mapping[str, str] | None = None
) -> Job:
    """The job of parsed fields, which came from `name` in `folder`. Raises: InputError: as `read_job`."""
    return _checked({**fields, **(overrides or {})}, Source(name), (folder, Path()))


def job_from_flags(flags: JobFlags) -> Job:
    """Make a job of options. Raises: InputError: with every mistake and its option."""
    if flags.boxes and flags.masks:
        raise InputError(
            "--box and --mask together don't say whose place is which: give boxes for all speakers, or masks for all",
            hint='one of each goes in a job file: "speakers": [{"audio": "a.wav", "box": [...]}, {"audio": "b.wav", '
            '"mask": "b.png"}]',
        )
    audio, turns = flags.audio, flags.turns
    given: dict[str, Sequence[Any]] = {
        "audio": () if turns else ["None" if path.lower() == "none" else path for path in audio],
        "box": [_box_of_text(text) for text in flags.boxes],
        "mask": [str(path) for path in flags.masks],
    }
    if turns and len(audio) > 1:
        raise InputError("--turns says who speaks when in one --audio, but there are more", hint="give one --audio")
    num_speakers = max(len(values) for values in given.values())
    if num_speakers > MAX_SPEAKERS:
        raise InputError(f"more than {MAX_SPEAKERS} speakers: give --audio (and --box or --mask) once or twice")
    raw = {
        "prompt": flags.prompt,
        "negative_prompt": flags.negative_prompt,
        "image": None if flags.image is None else str(flags.image),
        "video": None if flags.video is None else str(flags.video),
        "audio": audio[0] if turns and audio else None,
        "turns": None if turns is None else str(turns),
        "text": flags.text,
        "audio_type": flags.audio_type,
        "speakers": [_fields_of(given, number) for number in range(num_speakers)] or None,
    }
    return _checked(raw, OPTIONS, (Path(),))


def _fields_of(given: Mapping[str, Sequence[Any]], number: int) -> dict[str, Any]:
    """What was given for one speaker."""
    return {name: values[number] for name, values in given.items() if number < len(values)}


def _checked(raw: Mapping[str, Any], source: Source, folders: tuple[Path, ...]) -> Job:
    """The job of raw fields. `folders`: in which relative paths are looked up, the first one first."""
    from pydantic import ValidationError

    from infinitalk_cli.job_relations import relation_problems
    from infinitalk_cli.job_schema import JobForm
    from infinitalk_cli.job_values import Lookup

    if raw.get("tts_audio") is not None and raw.get("cond_audio") == {}:  # as the reference programs write it
        raw = {name: value for name, value in raw.items() if name != "cond_audio"}
    problems = list(relation_problems(raw))
    try:
        form = JobForm.model_validate(raw, context=Lookup(folders=folders))
    except ValidationError as error:
        problems += [problem_of(detail) for detail in error.errors(include_url=False)]
    else:
        if not problems:
            try:
                return _job_of(form)
            except BadSubtitles as error:
                problems.append(("turns", f"{form.turns}: {error}"))
    raise source.refusal(problems)


def _job_of(form: JobForm) -> Job:
    """The job of a form without mistakes. Raises: BadSubtitles: for a file of turns that can't be used."""
    reference = form.image or form.video or form.cond_image or form.cond_video
    assert reference is not None  # relation_problems has seen to it
    dialogue = parse_dialogue(form.spoken) if form.spoken else ()
    turns = () if form.turns is None else _turns_of_file(form.turns)
    speakers = _persons(form) if form.cond_audio or form.tts_audio else _speakers(form, dialogue, turns)
    if len(speakers) == 1 and (speakers[0].box or speakers[0].mask):
        speakers = (*speakers, Speaker(audio=None, everywhere_else=True))
    return Job(
        reference=reference,
        prompt=form.prompt,
        speakers=speakers,
        audio_type=form.audio_type,
        negative_prompt=form.negative_prompt,
        is_video=is_video_file(reference),
        dialogue=dialogue,
        turns_file=form.turns,
        notes=(NOBODY_NAMED.format(form.turns),) if turns and not any(named.name for named in turns) else (),
        sound_said=form.sound,
    )


def _persons(form: JobForm) -> tuple[Speaker, ...]:
    """The speakers of `cond_audio` or `tts_audio`, and `bbox`."""
    sounds, boxes, said = form.cond_audio, form.bbox, form.tts_audio
    if said is not None:
        voices = [said.human1_voice, said.human2_voice][: said.num_speakers]
        text = said.text if said.num_speakers == 1 else None
        return tuple(
            Speaker(audio=None, box=_box_of(getattr(boxes, f"person{number}", None)), text=text, voice=voice)
            for number, voice in enumerate(voices, start=1)
        )
    assert sounds is not None
    names = ["person1", "person2"] if "person2" in sounds.model_fields_set else ["person1"]
    return tuple(Speaker(audio=getattr(sounds, name), box=_box_of(getattr(boxes, name, None))) for name in names)


def _speakers(form: JobForm, dialogue: Sequence[Line], turns: Sequence[NamedTurn]) -> tuple[Speaker, ...]:
    """The speakers of `speakers`; of `audio`, `turns` or `text` alone, where these tell enough."""
    from infinitalk_cli.job_schema import SpeakerForm

    num_named = min(MAX_SPEAKERS, len({named.name.casefold() for named in turns if named.name}))
    num_named = max([num_named, *(line.speaker + 1 for line in dialogue)])
    forms = form.speakers or (SpeakerForm(),) * max(1, num_named)
    shared = share_out(turns, [each.name for each in forms], len(forms)) if turns else ((),) * len(forms)
    return tuple(
        Speaker(
            audio=form.audio or each.audio,
            box=_box_of(each.box),
            mask=each.mask,
            start_s=each.start,
            turns=own,
            text=each.text if dialogue or form.text is None else form.text,
            voice=each.voice,
            name=each.name,
        )
        for each, own in zip(forms, shared, strict=True)
    )


def _turns_of_file(path: Path) -> tuple[NamedTurn, ...]:
    try:
        return read_turns(read_text(path, "subtitle file"))
    except InputError as error:
        raise BadSubtitles(error.message.removeprefix(f"{path} ")) from error


def _box_of(form: BoxForm | None) -> Box | None:
    if form is None:
        return None
    return Box(left=round(form.left), top=round(form.top), right=round(form.right), bottom=round(form.bottom))


def _box_of_text(text: str) -> object:
    """A box as an option gives it; what is no number stays text, for the checks to find."""
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 4:
        raise InputError(f"--box {text!r} is not four numbers", hint=OPTIONS.box)
    return dict(zip(("left", "top", "right", "bottom"), (_number(part) for part in parts), strict=True))


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
