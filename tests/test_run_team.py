"""A whole run over two processes: the same video as with one, and a word when that can't be."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
import torch.distributed as dist

from infinitalk_cli import runner
from infinitalk_cli.errors import InputError
from infinitalk_cli.job import JobFlags, job_from_flags
from infinitalk_cli.profiles import find_profile
from infinitalk_cli.request import GenerateRequest, check_shares
from tests.media.made import noise, write_wav

PORTRAIT = Path(__file__).parent.parent / "examples" / "media" / "portrait.jpg"
RATE = 16_000


def two_speakers(folder: Path, **settings: Any) -> GenerateRequest:
    """A short job with two speakers, of which two chunks become a second."""
    sounds = [write_wav(folder / f"{name}.wav", noise(RATE, 1), RATE) for name in ("a", "b")]
    job = job_from_flags(JobFlags(image=PORTRAIT, audio=[str(path) for path in sounds], prompt="Two people talk."))
    profile = replace(find_profile("demo"), chunk_frames=17, motion_frames=5, num_steps=7)
    return GenerateRequest(job, folder / "talk.mp4", profile, device="cpu", overwrite=True, **settings)


def frames_of(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="teams are for NCCL, which is there on Linux alone")
def test_two_processes_make_the_video_of_one(tmp_path: Path) -> None:
    request = two_speakers(tmp_path, crf=0, step_cache_threshold=1.0)
    made: list[np.ndarray[Any, np.dtype[np.uint8]]] = []
    for num_gpus in (1, 2):
        runner.generate(replace(request, num_gpus=num_gpus))
        made.append(frames_of(request.output))
    assert made[0].shape == made[1].shape
    off = np.abs(made[0].astype(int) - made[1].astype(int))  # of 255; a last bit may round to the next colour
    assert (off.mean() < 0.02, off.max() <= 8) == (True, True), (off.mean(), off.max())
    assert not dist.is_initialized()


@pytest.mark.slow
def test_more_gpus_than_heads_can_be_shared_among_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--gpus 5: the model's .* heads can't be divided equally"):
        runner.generate(two_speakers(tmp_path, num_gpus=5))
    assert not (tmp_path / "talk.mp4").exists()
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(("num_gpus", "hint"), [(3, "--gpus 2 or 4 or 5 or 8"), (7, "--gpus 2 or 4 or 5 or 8")])
def test_refusal_names_the_numbers_that_divide_the_heads(num_gpus: int, hint: str) -> None:
    with pytest.raises(InputError, match=f"--gpus {num_gpus}: the model's 40 attention heads") as raised:
        check_shares(num_gpus, 40)
    assert raised.value.hint == hint


def test_numbers_that_divide_the_heads_pass() -> None:
    for num_gpus in (1, 2, 4, 5, 8):
        check_shares(num_gpus, 40)
