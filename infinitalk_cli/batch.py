"""Many jobs in one command: all are checked first, then made one after the other with one load of the networks.

A job that fails does not stop the others; what failed is told again at the end, with exit code 8. Ctrl-C stops all. A
GPU that fails stops all too: no process can use it any more that did so when it failed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from infinitalk_cli.console import Console
from infinitalk_cli.errors import (
    DoesNotFitError,
    EnvironmentUnfitError,
    GpuFailedError,
    InputError,
    InterruptedRunError,
    PartialBatchError,
    TalkError,
    WeightsError,
)
from infinitalk_cli.job_list import DEFAULT_NAME, ListedJob, list_jobs, name_videos
from infinitalk_cli.options import DEFAULT_OUTPUT, GenerateOptions
from infinitalk_cli.options_job import job_words, refuse_doubled, said_anew
from infinitalk_cli.prepare import PreparedRun, a_seed, options_said, prepare_run
from infinitalk_cli.profiles import AUTO

if TYPE_CHECKING:
    from infinitalk_cli.run_batch import WarmNetworks

GO_ON = "the same command with --skip-existing --resume makes what is missing, and goes on in what is begun"

TO_MEND = (InputError, EnvironmentUnfitError, WeightsError, DoesNotFitError)
"""Failures that come again until somebody mends what they name."""

MANY_JOBS = 20
"""To look at so many takes a moment, in which something should be said."""


@dataclass(frozen=True)
class Failure:
    """A job that was not made, and why."""

    job: ListedJob
    error: Exception

    @property
    def exit_code(self) -> int:
        """What the command would have ended with, had this been the only job."""
        return self.error.exit_code if isinstance(self.error, TalkError) else 1

    @property
    def line(self) -> str:
        """The failure in the table at the end."""
        told = self.error.message if isinstance(self.error, TalkError) else f"{type(self.error).__name__}: {self.error}"
        first, *more = told.removeprefix(f"{self.job.name}: ").splitlines() or [""]
        return f"{self.job.name}: exit {self.exit_code}, {first}{' ...' if more else ''}"


Perform = Callable[[PreparedRun, GenerateOptions, Console, "WarmNetworks | None"], None]


def run_batch(
    options: GenerateOptions, console: Console, bind: Callable[[PreparedRun], None], perform: Perform
) -> None:
    """Make every job that the options name.

    Args: bind: ties torch, which is not there yet, to the GPUs of a run. perform: makes one video and says so.
    Raises: InputError: if the list itself is wrong. PartialBatchError: if a job failed. InterruptedRunError: by Ctrl-C.
    """
    refuse_doubled(options)
    jobs = list_jobs(job_words(options))
    ready, failures = prepare_all(jobs, options, console)
    if ready and not options.dry_run:
        bind(ready[0][1])
    warm = warm_networks(ready) if ready and not options.dry_run else None
    for number, (job, prepared) in enumerate(ready, start=1):
        console.note(f"job {number} of {len(ready)}: {job.name}")
        try:
            perform(prepared, options, console, warm)
        except InterruptedRunError as error:
            left = f"; {len(ready) - number} not begun" if number < len(ready) else ""
            raise InterruptedRunError(f"{job.name}: {error.message}{left}", hint=GO_ON) from error
        except GpuFailedError as error:
            failures.append(tell(Failure(job, error), console))
            failures += [Failure(other, GpuFailedError("not begun: the GPU had failed")) for other, _ in ready[number:]]
            break
        except Exception as error:
            failures.append(tell(Failure(job, error), console))
            if warm:
                warm.forget()
    if failures:
        raise told_again(failures, len(jobs), dry_run=options.dry_run)


def told_again(failures: Sequence[Failure], num_jobs: int, *, dry_run: bool) -> PartialBatchError:
    """All failures together, as the error of the batch."""
    what, hint = "failed", GO_ON
    if any(isinstance(failure.error, TO_MEND) for failure in failures):
        hint = f"mend what is named above first; then {GO_ON}"
    if all(isinstance(failure.error, TO_MEND) for failure in failures) and len(failures) == num_jobs:
        hint = "no job can be made as it stands: mend what is named above, then give the same command again"
    if dry_run:
        what, hint = "would fail", ""
    lines = [f"{len(failures)} of {num_jobs} jobs {what}:", *(failure.line for failure in failures)]
    return PartialBatchError("\n  ".join(lines), hint=hint)


def prepare_all(
    jobs: Sequence[ListedJob], options: GenerateOptions, console: Console
) -> tuple[list[tuple[ListedJob, PreparedRun]], list[Failure]]:
    """Check every job, its pictures and sounds included, before the first one is made.

    Raises: InputError: if the names of the videos can't be.
    """
    from infinitalk_cli.run_plan import plan_job

    template = DEFAULT_NAME if options.output == DEFAULT_OUTPUT else str(options.output)
    seeds = [a_seed(options) for _ in jobs]
    profile = str(options_said(options).value("profile", AUTO))
    ready, failures = list[tuple[ListedJob, PreparedRun]](), list[Failure]()
    outputs = name_videos(jobs, template, seeds, profile)
    if len(jobs) >= MANY_JOBS:
        console.note(f"checking {len(jobs)} jobs")
    for job, seed, output in zip(jobs, seeds, outputs, strict=True):
        own = replace(options, input_json=None, more=None, seed=seed, output=output)
        try:
            prepared = prepare_run(own, job.read(said_anew(options)))
            plan_job(prepared.request)
            ready.append((job, prepared))
        except TalkError as error:
            failures.append(tell(Failure(job, error), console))
    return ready, failures


def tell(failure: Failure, console: Console) -> Failure:
    """Say a failure when it happens: in words, and with --json as an object."""
    error, name = failure.error, failure.job.name
    if isinstance(error, TalkError):
        named = error if error.message.startswith(name) else type(error)(f"{name}: {error.message}", hint=error.hint)
        console.error(named)
    else:
        console.unexpected(error)
    if console.as_json:
        console.result("", {"job": failure.job.name, "error": failure.line, "exit_code": failure.exit_code})
    return failure


def warm_networks(ready: Sequence[tuple[ListedJob, PreparedRun]]) -> WarmNetworks:
    """What the runs share. Torch loads here."""
    from infinitalk_cli.run_batch import WarmNetworks

    return WarmNetworks([prepared.request for _, prepared in ready])
