"""Between a prepared run and the loading of torch: what is told beforehand, what can't fit, and which GPUs are used."""

import os

from infinitalk_cli.errors import DoesNotFitError
from infinitalk_cli.estimate import Estimate
from infinitalk_cli.footprint import PUBLISHED, JobShape
from infinitalk_cli.hardware import cuda_environment
from infinitalk_cli.job_record import JobRecord
from infinitalk_cli.models.config import DiTConfig
from infinitalk_cli.prepare import PreparedRun
from infinitalk_cli.profiles import AUTO, find_preset, settle
from infinitalk_cli.request import GenerateRequest
from infinitalk_cli.run_choice import estimate_run, find_misfit, read_sizes
from infinitalk_cli.run_reports import LONG_RUN_S, choice_line, estimate_lines, sharing_lines, work_line

DEMO_RAM = "0.8 GB"
"""At most, with examples/single.json on a CPU; an hour of the smallest pictures took as much (benchmarks/)."""


def was_made_before(request: GenerateRequest) -> bool:
    """Whether the output is there, made by the same job."""
    if not request.output.exists():
        return False
    from infinitalk_cli.run_batch import is_done

    return is_done(request)


def nothing_left_note(request: GenerateRequest) -> str:
    """What is said in place of a run, where one has made the video before."""
    return f"{request.output} is there already, made by the same job: nothing is left to do"


def announcements(prepared: PreparedRun) -> list[str]:
    """What a user should know before the run.

    Raises: InputError: if an input can't be read. DoesNotFitError: if the run can't fit here.
    """
    from infinitalk_cli.run_plan import unplayed_note

    predicted = predictions(prepared)  # which looks at the inputs first
    return [*notes(prepared.request), *filter(None, [unplayed_note(prepared.request)]), *predicted]


def predictions(prepared: PreparedRun) -> list[str]:
    """Why this profile, and what the run will take; nothing for the demo. Raises: as `announcements`."""
    from infinitalk_cli.run_plan import cuts_note, plan_job

    request = prepared.request
    planned = plan_job(request)
    if request.weights_dir is None or read_sizes(request.weights_dir) is None:
        return []
    if refusal := misfit(prepared, planned.shape):
        raise refusal
    _, lines = predict(prepared, planned.shape)
    return [choice_line(prepared.choice), *lines, *filter(None, [cuts_note(request)])]


def predict(prepared: PreparedRun, shape: JobShape) -> tuple[Estimate | None, list[str]]:
    """The estimate, if there is one, and how the prediction reads."""
    request, choice, sizes = prepared.request, prepared.choice, judged_sizes(prepared)
    if sizes is None:
        return None, [work_line(shape, request.profile), *demo_lines(prepared)]
    found = estimate_run(choice, request.profile, shape, sizes, num_gpus=request.num_gpus)
    faster_s = None
    if found.seconds is not None and found.seconds > LONG_RUN_S and not request.profile.lora:
        fast = settle(request.profile, choice.said.wishes, request.engine, find_preset("fast"))
        faster_s = estimate_run(choice, fast, shape, sizes, num_gpus=request.num_gpus).seconds
    return found, [*sharing_lines(prepared.gpus), work_line(shape, request.profile), *estimate_lines(found, faster_s)]


def misfit(prepared: PreparedRun, shape: JobShape) -> DoesNotFitError | None:
    """Why the run can't start, if its memory is known not to suffice."""
    sizes = judged_sizes(prepared)
    return find_misfit(prepared.choice, prepared.request.profile, shape, sizes) if sizes else None


def judged_sizes(prepared: PreparedRun) -> DiTConfig | None:
    """The transformer that memory and time go by; None for the demo's.

    None, too, on a GPU that torch knows and NVML does not.
    """
    request = prepared.request
    if prepared.choice.gpu is None and request.device.startswith("cuda"):
        return None
    sizes = read_sizes(request.weights_dir) if request.weights_dir else None
    return sizes or (PUBLISHED if prepared.lacking else None)


def demo_lines(prepared: PreparedRun) -> list[str]:
    """What the demo takes on a CPU, at its own picture sizes; of others nothing is known."""
    request = prepared.request
    own_size = request.profile.size == "demo" and request.picture.width is None
    if request.weights_dir is not None or prepared.choice.gpu is not None or not own_size:
        return []
    return [f"memory: about {DEMO_RAM} of RAM, as measured"]


def bind_gpus(prepared: PreparedRun) -> None:
    """Tie torch, which is not there yet, to the chosen GPUs. Where --device names one, the user has done so."""
    if prepared.gpus and prepared.choice.said.device == AUTO:
        os.environ.update(cuda_environment(prepared.choice.hardware, *prepared.gpus))


def notes(request: GenerateRequest) -> list[str]:
    """What to know before the run: its main choices, and options without effect."""
    job, profile = request.job, request.profile
    who = "1 speaker" if job.num_speakers == 1 else f"{job.num_speakers} speakers"
    if job.is_one_of_several:
        who = "1 speaker, everyone else silent,"
    main = (
        f"{who} from {job.reference.name}, {profile.name} profile, {profile.num_steps} steps, seed {request.seed}"
        f" -> {request.output}"
    )
    return [main, *side_notes(request)]


def side_notes(request: GenerateRequest) -> list[str]:
    """What may not be meant as it was understood."""
    return [*request.job.notes, *foreign_weights_notes(request), *effectless_notes(request)]


def effectless_notes(request: GenerateRequest) -> list[str]:
    """What is said and does nothing for this job."""
    job, source, voice = request.job, request.source, request.voice
    on_a_picture, on_recorded_speech = not job.is_video, not job.read_aloud
    told = {
        "--reference-by-index has no effect on a picture": on_a_picture and request.reference_by_index,
        f"--short-source {source.short_source} has no effect on a picture": on_a_picture
        and source.short_source != "hold",
        "--scenes on has no effect on a picture": on_a_picture and source.scenes == "on",
        "--speed has no effect on recorded speech": on_recorded_speech and voice.speed != 1,
        "--pause has no effect on recorded speech": on_recorded_speech and voice.pause_s != 0,
        "the negative prompt has no effect at a --text-guidance of 1": bool(job.negative_prompt)
        and request.profile.text_guidance_scale == 1,
    }
    return [f"note: {what}" for what, holds in told.items() if holds]


def repetition_note(record: JobRecord) -> str:
    """What is made again, and which of its inputs are not what they were."""
    told = f"{record.video.name} once more, as {record.path} tells"
    if changed := list(record.changed_inputs()):
        told += f"\nnote: it will be another video, as these have changed since: {', '.join(changed)}"
    return told


def foreign_weights_notes(request: GenerateRequest) -> list[str]:
    """A word where the demo does not run on its own weights."""
    if not request.profile.demo_weights or request.weights_dir is None:
        return []
    return ["note: --weights-dir is named, so the demo's settings run on the weights in that folder"]
