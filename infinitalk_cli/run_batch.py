"""What the jobs of a batch share: the networks of the job before, the prompts of those to come, marks of what is done.

The text encoder is as large as the transformer, so it reads the prompts of all jobs before the transformer comes; they
wait on the disk. A job's mark is a digest of everything said about it and of its input files. It stands in the comment
of the mp4, so that a later run can tell whether a video that is there is the one it would make.
"""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from av.error import FFmpegError

from infinitalk_cli.errors import InputError
from infinitalk_cli.estimate import JobShape
from infinitalk_cli.media.container import open_container
from infinitalk_cli.progress import OnNote
from infinitalk_cli.request import GenerateRequest
from infinitalk_cli.run_networks import load_networks
from infinitalk_cli.run_resume import described
from infinitalk_cli.run_transformer import NetworkSources
from infinitalk_cli.sampling.stream import Networks

MARK_DIGITS = 16


class WarmNetworks:
    """The networks of one request, for the next one with the same weights and settings.

    Attributes: requests: all of the batch. num_loads: how often networks were read from their files.
    """

    def __init__(self, requests: Sequence[GenerateRequest] = ()) -> None:
        self.requests = requests
        self.num_loads = 0
        self._key: object = None
        self._networks: Networks | None = None

    @property
    def others(self) -> Sequence[GenerateRequest]:
        """Whose prompts are to be read while no networks are loaded yet."""
        return () if self._networks else self.requests

    def load(self, sources: NetworkSources, shape: JobShape, on_note: OnNote) -> Networks:
        """The networks of a request: those that are here, or new ones, once the old ones are gone.

        Pictures of another size need other room beside the networks, so that these are placed anew.
        """
        room = (shape.width, shape.height, shape.num_speakers)
        files, device, request = sources.files, sources.device, sources.request
        key = (files, request.loras, request.profile, request.resident_parameters, device, request.num_gpus, room)
        if self._networks is None or key != self._key or request.num_gpus > 1:
            self.forget()
            self._networks, self._key = load_networks(sources, shape, on_note), key
            self.num_loads += 1
        return self._networks

    def forget(self) -> None:
        """Give the networks' memory back, as after a failure: who knows in which state they are."""
        self._networks = self._key = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def job_mark(request: GenerateRequest) -> str:
    """A few words that only the same job with the same settings and input files has."""
    said = json.dumps(sorted(described(request, "")))
    return f"job {hashlib.sha256(said.encode()).hexdigest()[:MARK_DIGITS]}"


def is_done(request: GenerateRequest) -> bool:
    """Whether the output is there and was made by the same job."""
    if not request.output.is_file():
        return False
    return job_mark(request) in comment_of(request.output)


def comment_of(path: Path) -> str:
    """What an mp4 says about itself; nothing if it is none."""
    try:
        with open_container(path, "a video") as container:
            return container.metadata.get("comment", "")
    except (InputError, FFmpegError):
        return ""
