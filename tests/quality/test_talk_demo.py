"""`talk demo` with the weights of the package: a short video, measured from its file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from typer.testing import CliRunner

from infinitalk_cli.demo_package import SENTENCE
from infinitalk_cli.main import app
from training.demo.measures import Mouth, change, lip_sync, mouth_openings
from training.demo.speech import levelling_gain
from training.demo.theatre import envelope_of

MOUTH = Mouth(x=60.4, y=72.6, half_width=7.75)
"""Of the package's portrait at 128 x 128."""
SECONDS = 2.28
"""Two chunks, one border."""


@pytest.fixture(scope="module")
def video(trained: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The frames `(T, H, W, 3)` in [0, 1], the record beside them, and what the command said."""
    output = tmp_path_factory.mktemp("demo") / "talk-demo.mp4"
    result = CliRunner().invoke(app, ["demo", "-o", str(output), "--max-seconds", str(SECONDS), "--device", "cpu"])
    assert result.exit_code == 0, result.stderr
    with av.open(str(output)) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    record = json.loads(output.with_suffix(".json").read_text(encoding="utf-8"))
    said = (Path(result.stdout.removesuffix("\n")) == output, "next: talk " in result.stderr)
    return {"frames": frames.astype(np.float32) / 255, "record": record, "said": said}


def envelope() -> NDArray[np.float64]:
    """How far the sentence opens a mouth."""
    with av.open(str(SENTENCE)) as container:
        heard = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    waveform = torch.from_numpy(heard.astype(np.float32) / 32768)
    return envelope_of(waveform * levelling_gain(waveform[None])[0])


def test_the_video_is_as_long_as_asked_for_and_its_path_is_all_that_stdout_has(video: dict[str, Any]) -> None:
    assert len(video["frames"]) == round(SECONDS * 25)
    assert video["said"] == (True, True)


def test_the_lips_follow_the_sentence(video: dict[str, Any]) -> None:
    openings = mouth_openings(video["frames"], MOUTH)
    sync = lip_sync(openings, envelope())
    assert sync.correlation >= 0.85
    assert abs(sync.best_lag) <= 1
    assert abs(lip_sync(openings, envelope()[::-1]).correlation) < 0.5


def test_the_border_of_the_chunks_does_not_show(video: dict[str, Any]) -> None:
    """By the run's own measure, before H.264 starts a chunk with a whole picture."""
    drift = video["record"]["drift"]
    assert drift["num_seams"] == 1
    assert drift["seam_ratio"] <= 1.5


def test_hair_and_background_stay(video: dict[str, Any]) -> None:
    frames = video["frames"]
    assert change(frames[0][:40], frames[-1][:40]) < 0.02
