"""What can go wrong for a user, each kind with its exit code.

A `TalkError` carries a message that says what failed and where, and a hint that says what to do next. The command line
prints both and exits with `exit_code`; a script can tell the kinds apart without reading text. Failed assertions and
every other exception are our own mistakes and end with exit code 1.
"""

from __future__ import annotations

from typing import ClassVar


class TalkError(Exception):
    """Base of the errors that a user can mend. `message`: what and where; `hint`: what to do next."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class InputError(TalkError):
    """The job, an option or an input file is not usable."""

    exit_code = 2


class EnvironmentUnfitError(TalkError):
    """A package, a driver or the operating system does not fit."""

    exit_code = 3


class GpuFailedError(EnvironmentUnfitError):
    """The GPU or its driver failed in the middle of a run; this process can't use it any more."""


class WeightsError(TalkError):
    """Weights are missing, damaged or of another model."""

    exit_code = 4


class OutOfGpuMemoryError(TalkError):
    """The GPU ran out of memory during a run."""

    exit_code = 5


class DoesNotFitError(TalkError):
    """Known before the start: the job needs more memory or disk than there is."""

    exit_code = 6


class MediaError(TalkError):
    """A medium that was readable at the start fails in the middle, or the output cannot be written."""

    exit_code = 7


class PartialBatchError(TalkError):
    """Some jobs of a batch failed; the others are done."""

    exit_code = 8


class InterruptedRunError(TalkError):
    """The user stopped the run; what was finished is kept."""

    exit_code = 130
