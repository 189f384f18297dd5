"""The jobs and media of `examples`: whole, sensible, small, and explained."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from infinitalk_cli.job import read_job

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.parametrize(
    ("name", "num_speakers", "is_video"),
    [("single.json", 1, False), ("two_speakers.json", 2, False), ("dub_video.json", 1, True)],
)
def test_example_is_a_good_job(name: str, num_speakers: int, is_video: bool) -> None:
    job = read_job(EXAMPLES / name)
    assert (job.num_speakers, job.is_video) == (num_speakers, is_video)
    with av.open(str(job.reference)) as container:
        picture = next(container.decode(video=0))
    for speaker in job.speakers:
        assert speaker.audio is not None
        with av.open(str(speaker.audio)) as container:
            sound = np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], axis=1)
            assert 2.5 < sound.shape[1] / container.streams.audio[0].rate < 6.0
        assert sound.std() > 500  # speech, not silence, in 16-bit steps
        if speaker.box is not None:
            assert 0 <= speaker.box.left < speaker.box.right <= picture.width
            assert 0 <= speaker.box.top < speaker.box.bottom <= picture.height


def test_example_of_a_dialogue_from_text_is_a_good_job() -> None:
    job = read_job(EXAMPLES / "dialogue_from_text.json")
    assert [line.speaker for line in job.dialogue] == [0, 1]
    assert job.read_aloud == (0, 1)
    assert [speaker.voice for speaker in job.speakers] == ["af_heart", "am_adam"]
    assert all(speaker.box for speaker in job.speakers)


def test_dubbing_example_is_as_long_as_its_speech() -> None:
    job = read_job(EXAMPLES / "dub_video.json")
    assert job.speakers[0].audio is not None
    lengths: list[float] = []
    for path in (job.reference, job.speakers[0].audio):
        with av.open(str(path)) as container:
            assert container.duration is not None
            lengths.append(container.duration / av.time_base)
    assert lengths[0] >= lengths[1]


def test_example_files_stay_small() -> None:
    sizes = {path.name: path.stat().st_size for path in (EXAMPLES / "media").iterdir()}
    assert sizes
    assert all(size <= 300_000 for size in sizes.values()), sizes


def test_every_example_file_is_explained() -> None:
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for path in [*EXAMPLES.glob("*.json"), *(EXAMPLES / "media").iterdir()]:
        assert path.name in readme
