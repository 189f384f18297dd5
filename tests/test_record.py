"""The record beside a video: what is in it, and that it makes the video again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import pytest

from infinitalk_cli.errors import InputError
from infinitalk_cli.job_record import RECORD_KEY, content_digest, is_record, job_fields, read_record, record_path
from infinitalk_cli.request import GenerateRequest, Told
from infinitalk_cli.run_record import keep_record, one_line_per_field
from tests.media.made import noise, write_wav
from tests.stand_in import Engine, generate, talk
from tests.test_end_to_end import FAST, PORTRAIT, RATE


def test_a_video_made_again_from_its_record_is_the_same(tmp_path: Path) -> None:
    sound, output = write_wav(tmp_path / "speech.wav", noise(RATE * 9 // 10), RATE), tmp_path / "talk.mp4"
    options = ["--image", str(PORTRAIT), "--audio", str(sound), "-o", str(output), "--cross-fade", *FAST]
    first = talk("generate", *options, "--seed", "-1", "--json")
    assert first.exit_code == 0, first.stderr
    record = json.loads(output.with_suffix(".json").read_text(encoding="utf-8"))
    assert json.loads(first.stdout)["record"] == str(tmp_path / "talk.json")
    assert f"seed {record['seed']} ->" in first.stderr
    assert set(record["seconds"]) == {"speech", "reference", "text", "weights", "video"}
    assert {"torch", "transformers", "talk"} <= set(record["versions"])
    assert record["origins"]["num_steps"] == "--steps"
    assert record["peak_bytes"]["ram"] > 10**8
    assert [chunk["start"] for chunk in record["chunks"]] == [0, 12]
    assert "vae" in record["weights"]
    assert record["made"]["vae_dtype"] == "float32"

    again = talk("generate", str(tmp_path / "talk.json"))
    assert again.exit_code == 0, again.stderr
    assert "another video" not in again.stderr
    assert (tmp_path / "talk-again.mp4").read_bytes() == output.read_bytes()
    drawn = json.loads(talk("preview", str(output), "-o", str(tmp_path / "look.png"), "--json").stdout)
    assert (drawn["width"], drawn["num_frames"], len(drawn["chunks"])) == (64, record["made"]["num_frames"], 2)
    with av.open(str(output)) as file:
        told = json.loads(file.metadata["comment"])
    assert told["job"]["reference"] == PORTRAIT.name
    assert str(tmp_path) not in json.dumps(told)  # videos are passed on
    assert told["seed"] == record["seed"]


def asked(engine: Engine, *arguments: str) -> GenerateRequest:
    """The request of a command."""
    result = generate(*arguments) if "--profile" not in arguments else talk("generate", *arguments)
    assert result.exit_code == 0, result.stderr
    return engine.requests[-1]


def recorded(request: GenerateRequest, path: Path, **changes: Any) -> Path:
    """A record as the engine would write it, without figures."""
    record = {
        RECORD_KEY: 1,
        "video": request.output.name,
        "job": job_fields(request.job),
        "options": dict(request.told.options),
        "inputs": {str(path.absolute()): content_digest(path) for path in (Path("face.png"), Path("a.wav"))},
        "decides": {"seed": str(request.seed)},
    }
    path.write_text(one_line_per_field({**record, **changes}))
    return path


WISHES = (
    *("--seed", "7", "--steps", "4", "--frames", "17", "--motion-frames", "5", "--negative-prompt", ""),
    *("--max-seconds", "2", "--crf", "20", "--cross-fade", "--reanchor", "3", "--fit", "pad"),
    *("--resolution", "64x96", "--lora", "x.safetensors:0.5", "--lora", "x.safetensors", "--apg"),
    *("--teacache-threshold", "0.1", "--audio-start", "0.5", "--drive-loudness", "off", "--color-strength", "0.5"),
)


def test_a_record_restores_job_and_options_and_options_given_now_count(desk: Path, engine: Engine) -> None:
    Path("x.safetensors").write_bytes(b"lora")
    first = asked(engine, "--image", "face.png", "--audio", "a.wav", "--prompt", "Hello.", "-o", "out.mp4", *WISHES)
    record = recorded(first, desk / "out.json")
    again = asked(engine, "out.json", "--profile", "demo")
    whole = replace(first.job, reference=desk / "face.png", speakers=again.job.speakers)
    assert [lora.path.name for lora in again.loras] == ["x.safetensors"] * 2
    assert again.told.repeats == {"seed": "7"}
    assert again.job.speakers[0].audio == desk / "a.wav"
    same = {"output": first.output, "job": first.job, "loras": first.loras, "told": Told()}
    assert replace(again, **same) == replace(first, told=Told())
    assert again.job == whole
    by_video = asked(engine, "out.mp4", "--profile", "demo")
    assert by_video.output == Path("out-again-2.mp4")
    assert replace(by_video, output=again.output) == again
    assert again.output == Path("out-again.mp4")

    other = asked(engine, str(record), "--profile", "demo", "--seed", "42", "--prompt", "Bye.", "-o", "new.mp4")
    assert (other.seed, other.job.prompt, other.output) == (42, "Bye.", Path("new.mp4"))
    assert other.chunks == first.chunks
    assert other.told.origins["seed"] == "--seed"
    assert other.told.origins["crf"] == "record out.json"
    assert asked(engine, "out.json", "--profile", "demo", "--overwrite").output == Path("out.mp4")


def test_a_changed_input_is_told_and_a_missing_one_refused(desk: Path, engine: Engine) -> None:
    recorded(asked(engine, "job.json", "-o", "out.mp4"), desk / "out.json")
    assert "changed" not in generate("out.json").stderr
    Path("a.wav").write_bytes(b"other")
    assert f"changed since: {desk / 'a.wav'}" in generate("out.json").stderr.replace("\n", " ")
    Path("a.wav").unlink()
    refused = generate("out.json")
    assert refused.exit_code == 2
    assert f"gone: {desk / 'a.wav'}" in refused.stderr


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({RECORD_KEY: 2}, "version 2"),
        ({"job": {"prompt": 3}}, "damaged"),
        ({"inputs": [1]}, "damaged"),
        ({"options": {"num_steps": "many"}}, "options.num_steps"),
        ({"options": {"fit": "stretch"}}, "options.fit"),
    ],
)
def test_a_record_that_can_t_be_used_is_refused(desk: Path, engine: Engine, changes: dict[str, Any], told: str) -> None:
    recorded(asked(engine, "job.json", "-o", "out.mp4"), desk / "out.json", **changes)
    refused = generate("out.json")
    assert (refused.exit_code, told in refused.stderr) == (2, True), refused.stderr


def test_half_a_record_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(f'{{\n "{RECORD_KEY}": 1,\n "video": "a')
    assert is_record(path)
    with pytest.raises(InputError, match="damaged"):
        read_record(path)


def test_a_record_never_replaces_another_file(tmp_path: Path) -> None:
    output, own = tmp_path / "a.mp4", tmp_path / "a.json"
    assert record_path(output) == own
    own.write_text('{"prompt": "a job"}')
    assert record_path(output) == tmp_path / "a.mp4.json"
    assert keep_record(output, {RECORD_KEY: 1}) == tmp_path / "a.mp4.json"
    assert record_path(output) == tmp_path / "a.mp4.json"  # it is replaced by the next one
    (tmp_path / "a.mp4.json").write_text("{}")
    assert record_path(output) is None
    with pytest.raises(OSError, match="other files"):
        keep_record(output, {RECORD_KEY: 1})
    assert own.read_text() == '{"prompt": "a job"}'


def test_records_among_jobs_are_passed_over(desk: Path, engine: Engine) -> None:
    recorded(asked(engine, "job.json", "-o", "out.mp4"), desk / "out.json")
    engine.requests.clear()
    assert generate("*.json", "-q").stdout.split() == ["job.mp4"]
    refused = generate("out.json", "out.json")
    assert refused.exit_code == 2
    assert "one at a time: talk generate out.json" in refused.stderr


def test_a_record_has_a_line_for_each_field() -> None:
    record = {RECORD_KEY: 1, "a": {"b": [1, {"c": "ü"}]}, "d": [[1, 2], [3]], "e": {}, "f": []}
    text = one_line_per_field(record)
    assert json.loads(text) == record
    assert '  "b": [1, {"c": "ü"}]\n' in text
    assert len(text.splitlines()) == 12
