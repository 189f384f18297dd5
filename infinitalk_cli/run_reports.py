"""How a chosen profile and a prediction read: lines for the terminal, records for `--json`. Nothing is decided here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from infinitalk_cli.console import duration
from infinitalk_cli.estimate import ASSUMED_READ_BYTES_PER_S, Estimate, num_chunks, passes_per_step
from infinitalk_cli.footprint import JobShape
from infinitalk_cli.hardware import Gpu
from infinitalk_cli.profiles import Profile
from infinitalk_cli.request import Fate
from infinitalk_cli.run_choice import RunChoice

if TYPE_CHECKING:
    from infinitalk_cli.run_plan import PlannedJob

LONG_RUN_S = 1800.0
"""From here on a faster preset is worth a line."""


def choice_line(run: RunChoice) -> str:
    """Which profile, and why."""
    return f"{run.base.name} profile: {'; '.join(run.choice.reasons)}"


def sharing_lines(gpus: Sequence[Gpu]) -> list[str]:
    """Which GPUs share the work; nothing for one."""
    if len(gpus) < 2:
        return []
    return ["GPUs that share every pass: " + ", ".join(f"{gpu.label} ({gpu.name})" for gpu in gpus)]


def work_line(shape: JobShape, profile: Profile) -> str:
    """What is to be computed."""
    chunks, passes = work_record(shape, profile).values()
    many = "1 chunk" if chunks == 1 else f"{chunks} chunks"
    return f"{shape.num_frames / shape.fps:.2f} s at {shape.width} x {shape.height}: {many} of {passes} passes"


def work_record(shape: JobShape, profile: Profile) -> dict[str, object]:
    """The same for programs."""
    passes = profile.num_steps * passes_per_step(profile)
    return {"num_chunks": num_chunks(shape.num_frames, profile, shape.cuts), "passes_per_chunk": passes}


def estimate_lines(found: Estimate, faster_s: float | None = None) -> list[str]:
    """The prediction. `faster_s`: of the same job with the fast preset, None if that is no news."""
    memory = f"{_gb(found.ram_bytes)} of RAM"
    if found.vram_bytes is not None:
        memory = f"{_gb(found.vram_bytes)} of GPU memory, {memory}"
    lines = [f"estimate: {memory}; {_time(found)} ({found.basis})"]
    if found.stages:
        lines.append("of it " + ", ".join(f"{name} {duration(seconds)}" for name, seconds in found.stages.items()))
    if found.vram_bytes is not None:
        lines.append(f"{found.num_resident} of {found.num_blocks} transformer blocks stay on the GPU")
    if found.num_read:
        lines.append(reading_line(found))
    if faster_s is not None:
        lines.append(f"with --preset fast about {duration(faster_s)}, by the same estimate")
    return lines


def reading_line(found: Estimate) -> str:
    """What it means that RAM is too short for the streamed blocks."""
    which = f"{found.num_read} of {found.num_blocks} blocks"
    rate = f"an assumed {ASSUMED_READ_BYTES_PER_S / 1e9:g} GB/s"
    effect = "while others compute"
    if found.read_wait_s is not None:
        effect = f"about {found.read_wait_s:.0f} s more per pass" if found.read_wait_s >= 1 else "hidden by computing"
    return (
        f"{which} are read from the disk in every pass, as RAM has no room for them: {found.read_s:.0f} s at {rate},"
        f" {effect}"
    )


def plan_text(run: RunChoice, planned: PlannedJob, lines: Sequence[str]) -> str:
    """The whole of `--dry-run`. `lines`: the prediction."""
    return "\n".join([choice_line(run), seen_line(planned), *lines])


def seen_line(planned: PlannedJob) -> str:
    """What of the picture the video shows."""
    crop, size = planned.crop, f"picture: {planned.source_width} x {planned.source_height}"
    if crop.resized_height < crop.height:
        return f"{size}, all of it seen, {-crop.top} pixels of the video filled up above and as many below"
    if crop.resized_width < crop.width:
        return f"{size}, all of it seen, {-crop.left} pixels of the video filled up on either side"
    return f"{size}, seen of it: {', '.join(map(str, planned.crop_box))} (left, top, right, bottom)"


def plan_record(
    run: RunChoice, planned: PlannedJob, found: Estimate | None, gpus: Sequence[Gpu] = (), output: Fate = "new"
) -> dict[str, object]:
    """The same for programs. `output`: what the run would do about what is there."""
    shape = planned.shape
    return {
        "profile": run.base.name,
        "gpu": run.gpu.label if run.gpu else None,
        "gpus": [gpu.label for gpu in gpus],
        "reasons": list(run.choice.reasons),
        "width": shape.width,
        "height": shape.height,
        "num_frames": shape.num_frames,
        "crop_box": list(planned.crop_box),
        "output": output,
        "estimate": {**asdict(found), "seconds": found.seconds, "stages_s": found.stages} if found else None,
    }


def _time(found: Estimate) -> str:
    return f"about {duration(sum(found.stages.values()))}" if found.stages else "no time predicted"


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB"
