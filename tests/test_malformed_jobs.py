"""Malformed jobs, made from the published form: a told mistake, never a traceback or a file at the output's name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from infinitalk_cli import runner
from infinitalk_cli.errors import InputError
from infinitalk_cli.job_schema import JobForm
from infinitalk_cli.main import app
from tests.media.made import noise, write_wav

FILES = ("face.png", "mask.png", "square.png", "a.wav", "b.wav", "talk.srt", "broken.srt", "cut.wav", "gone.png", ".")
READ = "everything was read"
NO_VOICES = "the speech synthesis is not complete"
"""Of a job whose only fault is that its text would be spoken, by voices that are not there."""
Strategy = st.SearchStrategy[Any]

JUNK: Strategy = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.sampled_from(FILES), st.just({})
)
SCHEMA: dict[str, Any] = JobForm.model_json_schema()


def values_of(schema: dict[str, Any]) -> Strategy:
    """Values of a part of the schema, and some that are not."""
    return st.one_of(_proper(schema), _proper(schema), _proper(schema), JUNK)


def _proper(schema: dict[str, Any]) -> Strategy:
    if "$ref" in schema:
        return st.deferred(lambda: _proper(SCHEMA["$defs"][schema["$ref"].rsplit("/", 1)[1]]))
    if "anyOf" in schema:
        return st.one_of([_proper(kind) for kind in schema["anyOf"]])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    match schema.get("type"):
        case "object":
            return objects_of(schema)
        case "array":
            return st.lists(values_of(schema["items"]), max_size=schema.get("maxItems", 2) + 1)
        case "number":
            return st.one_of(st.integers(-2, 80), st.floats(0, 2))
        case "string":
            return st.sampled_from(FILES) if schema.get("format") == "path" else st.sampled_from(["Anna", "Ben", ""])
        case _:
            return JUNK


def objects_of(schema: dict[str, Any]) -> Strategy:
    """Some of the fields of an object, and now and then one that is none."""
    fields = {name: values_of(part) for name, part in schema.get("properties", {}).items()}
    some = st.fixed_dictionaries({}, optional={**fields, "nonsense": JUNK})
    return some.map(lambda chosen: {name: chosen[name] for name in list(chosen)[:6]})


def jobs() -> Strategy:
    """Whole jobs: often with a picture and a sound, so that mistakes further in are reached."""
    begun = st.sampled_from(
        [{}, {"image": "face.png"}, {"image": "face.png", "audio": "a.wav"}, {"image": "face.png", "speakers": []}]
    )
    speakers = _proper(SCHEMA["properties"]["speakers"])
    whole = st.builds(lambda first, then: {**first, **then}, begun, objects_of(SCHEMA))
    spoken = st.builds(lambda listed: {"image": "face.png", "speakers": listed}, speakers)
    return st.one_of(whole, spoken)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good and bad files that jobs may name."""
    home = tmp_path_factory.mktemp("malformed")
    Image.new("RGB", (64, 32), "white").save(home / "face.png")
    Image.new("L", (64, 32), 255).save(home / "mask.png")
    Image.new("L", (32, 32), 255).save(home / "square.png")
    for name in ("a.wav", "b.wav"):
        write_wav(home / name, noise(1600), 16_000)
    (home / "cut.wav").write_bytes((home / "a.wav").read_bytes()[:30])
    (home / "talk.srt").write_text("1\n00:00:00,000 --> 00:00:00,050\nAnna: Hello.\n")
    (home / "broken.srt").write_text("1\n00:00:09,000 --> 00:00:01,000\nAnna: Hello.\n")
    return home


def refuse(folder: Path, monkeypatch: pytest.MonkeyPatch, job: object) -> str:
    """Run a job up to the networks, which are not made; whatever it is, there must be an answer and no file."""

    def stop(*_: object) -> None:
        raise InputError(READ)

    with monkeypatch.context() as patched:
        patched.chdir(folder)
        patched.setenv("TALK_WEIGHTS_DIR", str(folder / "weights"))
        patched.setattr(runner, "find_weights", stop)
        (folder / "job.json").write_text(json.dumps(job))
        before = sorted(folder.iterdir())
        result = CliRunner().invoke(app, ["generate", "job.json", "--profile", "demo", "-o", "out.mp4", "-q"])
    assert result.exit_code == (4 if NO_VOICES in result.stderr else 2), result.stderr
    assert result.stderr.startswith("error: ")
    assert "unexpected" not in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert sorted(folder.iterdir()) == before
    return result.stderr


WITHIN = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]


@settings(max_examples=60, deadline=None, suppress_health_check=WITHIN)
@given(job=jobs())
def test_malformed_jobs_are_told(folder: Path, monkeypatch: pytest.MonkeyPatch, job: object) -> None:
    refuse(folder, monkeypatch, job)


@pytest.mark.slow
def test_200_malformed_jobs_are_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    @settings(max_examples=300, deadline=None, suppress_health_check=WITHIN)
    @given(job=jobs())
    def refuse_each(job: object) -> None:
        told.append(refuse(folder, monkeypatch, job))

    refuse_each()
    assert sum(READ not in message and NO_VOICES not in message for message in told) >= 200


def test_what_is_good_gets_as_far_as_the_networks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert READ in refuse(folder, monkeypatch, {"image": "face.png", "audio": "a.wav"})
    assert READ not in refuse(folder, monkeypatch, {"image": "face.png", "audio": "cut.wav"})
