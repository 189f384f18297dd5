"""The job that the options of a command name: of a file, of a record, or of the options alone."""

from dataclasses import replace
from typing import Any

from infinitalk_cli.errors import InputError
from infinitalk_cli.job import DEFAULT_PROMPT, Job, JobFlags, job_from_flags, read_job
from infinitalk_cli.job_media import media_hint
from infinitalk_cli.job_record import is_record, read_record
from infinitalk_cli.options import GenerateOptions


def job_words(options: GenerateOptions) -> list[str]:
    """The arguments that name jobs. Raises: InputError: if they are pictures and sounds."""
    given = [] if options.input_json is None else [str(options.input_json), *(options.more or ())]
    if len(given) > 1 and (meant := media_hint(given)):
        raise InputError(f"{', '.join(given)}: pictures and sounds are named by options", hint=meant)
    return given


def refuse_nothing(options: GenerateOptions) -> None:
    """Raises: InputError: if the options name nothing to make a video of, or more than one job."""
    if len(given := job_words(options)) > 1:
        raise InputError(f"one job at a time, not {', '.join(given)}", hint="talk generate takes several")
    if not (options.input_json or options.image or options.video or options.audio):
        raise InputError(
            "nothing to make a video of: name a picture and speech, or a job file",
            hint="talk generate --image face.png --audio speech.wav, or: talk generate job.json\n"
            "      talk generate --help has all options",
        )


def read_options_job(options: GenerateOptions) -> Job:
    """The job of the file, where the options may say its texts anew; or the job of the options alone."""
    refuse_nothing(options)
    audio_type = options.audio_type.value if options.audio_type else None
    if options.input_json is None:
        flags = JobFlags(
            image=options.image,
            video=options.video,
            audio=options.audio or (),
            prompt=DEFAULT_PROMPT if options.prompt is None else options.prompt,
            negative_prompt=options.negative_prompt,
            boxes=options.box or (),
            text=options.text,
            masks=options.mask or (),
            turns=options.turns,
            audio_type=audio_type or "para",
        )
        return job_from_flags(flags)
    refuse_doubled(options)
    if options.record or is_record(options.input_json):
        return replace((options.record or read_record(options.input_json)).job, **said_anew(options))
    return read_job(options.input_json, said_anew(options))


def said_anew(options: GenerateOptions) -> dict[str, Any]:
    """What options say of a job in a file's place."""
    audio_type = options.audio_type.value if options.audio_type else None
    texts = {"prompt": options.prompt, "negative_prompt": options.negative_prompt, "audio_type": audio_type}
    return {name: text for name, text in texts.items() if text is not None}


def refuse_doubled(options: GenerateOptions) -> None:
    """Raises: InputError: for options that say what a job file says."""
    fixed = {"--image": options.image, "--video": options.video, "--audio": options.audio, "--box": options.box}
    fixed |= {"--mask": options.mask, "--turns": options.turns, "--text": options.text}
    if doubled := [option for option, value in fixed.items() if value]:
        refuse_media(options)
        where = f"the job file {options.input_json}" if options.input_json else "the job"
        raise InputError(f"{', '.join(doubled)}: {where} says that already", hint="give one of them")


def refuse_media(options: GenerateOptions) -> None:
    """Raises: InputError: if a picture, video or sound stands where a job file belongs, beside options of a job."""
    if options.input_json is None:
        return
    named = [path for path in (options.input_json, options.image, options.video, *(options.audio or ())) if path]
    speech = '--text "..."' if options.text else "--audio speech.wav"
    if media_hint([str(options.input_json)]):
        told = f"{options.input_json} is no job file: a picture, video or sound is named by an option"
        raise InputError(told, hint=media_hint([str(path) for path in named], speech))


def with_sound_of(job: Job, options: GenerateOptions) -> GenerateOptions:
    """The options with what the job says of its sound, save where an option was given."""
    said = {name: value for name, value in job.sound_said.options().items() if name not in options.given}
    return replace(options, **said)
