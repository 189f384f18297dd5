"""`talk` as a user meets it: options, exit codes, and which stream says what. The engine is a stand-in here."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from typer.testing import CliRunner

import infinitalk_cli
from infinitalk_cli import errors
from infinitalk_cli.job import DEFAULT_PROMPT, Box, Speaker
from infinitalk_cli.main import app
from infinitalk_cli.request import LoraFile
from infinitalk_cli.wishes import SoundWishes
from tests.stand_in import Engine, generate, lay_plain_weights, talk


def test_a_job_file_becomes_a_video_and_stdout_is_its_path(desk: Path, engine: Engine) -> None:
    result = generate("job.json", "-o", "out/talk.mp4")
    assert (result.exit_code, result.stdout) == (0, f"{Path('out/talk.mp4')}\n")
    assert engine.request.job.prompt == "A talk."
    assert engine.request.job.speakers == (Speaker(Path("a.wav")),)
    assert engine.request.weights_dir is None
    assert (desk / "out" / "talk.mp4").exists()


def test_stderr_tells_the_choices_the_progress_and_the_next_command(desk: Path, engine: Engine) -> None:
    result = generate("job.json")
    for part in (
        "1 speaker from face.png, demo profile, 8 steps, seed 42 -> output.mp4",
        "note: from the engine",
        "[  0%] video: chunk 1/1",
        "2.80 s of 64 x 96 at 25 fps, made in 0:09 with the demo weights",
        "next: talk doctor",
    ):
        assert part in result.stderr
    assert all(len(line) <= 80 for line in result.stderr.splitlines())


def test_quiet_prints_the_path_alone(desk: Path, engine: Engine) -> None:
    result = generate("job.json", "--quiet")
    assert (result.stdout, result.stderr) == ("output.mp4\n", "")


def test_progress_can_be_an_object_per_line(desk: Path, engine: Engine) -> None:
    result = generate("job.json", "--progress", "json", "--quiet")
    events = [json.loads(line) for line in result.stderr.splitlines()]
    assert [(event["stage"], event["chunk"], event["num_chunks"]) for event in events] == [("video", 1, 1)]
    assert result.stdout == "output.mp4\n"


def test_progress_can_be_left_out(desk: Path, engine: Engine) -> None:
    result = generate("job.json", "--progress", "none")
    assert "video:" not in result.stderr
    assert "note: from the engine" in result.stderr


def test_debug_shows_where_an_error_comes_from(desk: Path, engine: Engine) -> None:
    engine.failure = ZeroDivisionError("by zero")
    assert "Traceback" in generate("job.json", "--debug").stderr


def test_json_prints_one_object(desk: Path, engine: Engine) -> None:
    result = generate("job.json", "--json", "--seed", "7")
    assert json.loads(result.stdout) == {
        "output": "output.mp4",
        "width": 64,
        "height": 96,
        "num_frames": 70,
        "fps": 25,
        "duration_s": 2.8,
        "num_chunks": 3,
        "elapsed_s": 9.0,
        "ram_peak_bytes": None,
        "vram_peak_bytes": None,
        "drift": {},
        "record": None,
        "skipped": False,
        "seed": 7,
        "engine": "infinitetalk",
        "profile": "demo",
    }


def test_options_alone_make_a_job(desk: Path, engine: Engine) -> None:
    voices = ["--audio", "a.wav", "--audio", "none", "--box", "1,2,3,4", "--box", "5,6,7,8", "--audio-type", "add"]
    assert generate("--video", "clip.mp4", *voices, "--negative-prompt", "").exit_code == 0
    job = engine.request.job
    assert job.speakers == (Speaker(Path("a.wav"), Box(1, 2, 3, 4)), Speaker(None, Box(5, 6, 7, 8)))
    assert (job.reference, job.is_video, job.audio_type, job.negative_prompt) == (Path("clip.mp4"), True, "add", "")
    assert job.prompt == "A person talks to the camera."


def test_prompts_on_the_command_line_win_over_the_job_file(desk: Path, engine: Engine) -> None:
    generate("job.json", "--prompt", "Another.", "--negative-prompt", "blur")
    assert (engine.request.job.prompt, engine.request.job.negative_prompt) == ("Another.", "blur")


@pytest.mark.parametrize(("options", "prompt"), [(["--prompt", "Said."], "Said."), ([], DEFAULT_PROMPT)])
def test_a_job_file_may_leave_the_prompt_out(desk: Path, engine: Engine, options: list[str], prompt: str) -> None:
    (desk / "job.json").write_text('{"cond_image": "face.png", "cond_audio": {"person1": "a.wav"}}')
    assert generate("job.json", *options).exit_code == 0
    assert engine.request.job.prompt == prompt


def test_a_failing_run_leaves_no_folder_behind(desk: Path, engine: Engine) -> None:
    engine.failure = errors.InputError("face.png is no picture")
    assert generate("job.json", "-o", "out/talk.mp4").exit_code == 2
    assert not (desk / "out").exists()


def test_every_setting_reaches_the_engine(desk: Path, engine: Engine) -> None:
    (desk / "speed.safetensors").touch()
    sampling = ["--steps", "8", "--shift", "2", "--text-guidance", "1", "--audio-guidance", "2", "--seed", "7"]
    chunks = ["--frames", "49", "--motion-frames", "5", "--size", "720", "--quant", "int8", "--max-seconds", "2.5"]
    rest = ["--crf", "20", "--apg", "--teacache", "--color-strength", "0.5", "--reference-by-index", "--device", "cpu"]
    lora = ["--lora", "speed.safetensors:0.8", "--lora", "speed.safetensors", "--engine", "multitalk", "--overwrite"]
    assert generate("job.json", *sampling, *chunks, *rest, *lora).exit_code == 0
    request, profile = engine.request, engine.request.profile
    assert (profile.num_steps, profile.shift, profile.text_guidance_scale, profile.audio_guidance_scale) == (8, 2, 1, 2)
    assert (profile.chunk_frames, profile.motion_frames, profile.size, profile.quant) == (49, 5, "720", "int8")
    assert (request.seed, request.max_seconds, request.crf, request.apg, request.device) == (7, 2.5, 20, True, "cpu")
    assert (request.step_cache_threshold, request.color_strength, request.reference_by_index) == (0.2, 0.5, True)
    assert request.loras == (LoraFile(Path("speed.safetensors"), 0.8), LoraFile(Path("speed.safetensors"), 1.0))
    assert (request.engine, request.overwrite) == ("multitalk", True)


def test_a_teacache_threshold_turns_teacache_on(desk: Path, engine: Engine) -> None:
    generate("job.json", "--teacache-threshold", "0.3")
    assert engine.request.step_cache_threshold == 0.3


def test_unsaid_settings_are_the_profiles(desk: Path, engine: Engine) -> None:
    generate("job.json")
    request = engine.request
    assert (request.profile.name, request.profile.size, request.engine) == ("demo", "demo", "infinitetalk")
    assert (request.step_cache_threshold, request.loras, request.max_seconds) == (None, (), None)


def test_a_negative_seed_is_replaced_by_a_random_one_that_is_told(desk: Path, engine: Engine) -> None:
    first, second = generate("job.json", "--seed", "-1"), generate("job.json", "--seed", "-1", "--overwrite")
    seeds = [request.seed for request in engine.requests]
    assert len(set(seeds)) == 2
    for seed, result in zip(seeds, (first, second), strict=True):
        assert seed >= 0
        assert f"seed {seed}" in result.stderr
    assert generate("job.json", "--seed", "-5").exit_code == 2


def test_one_face_of_several_is_told(desk: Path, engine: Engine) -> None:
    result = generate("--image", "face.png", "--audio", "a.wav", "--box", "10,20,30,40")
    assert "1 speaker, everyone else silent, from face.png" in result.stderr
    assert engine.request.job.num_speakers == 2


SOUND = {
    "drive_audio": "b.wav",
    "output_audio": "none",
    "drive_loudness": -20,
    "output_loudness": "off",
    "audio_start": 0.25,
    "audio_end": 0.75,
    "trim_silence": True,
    "close_mouth_in_pauses": True,
}


def test_a_job_file_says_its_sound_and_options_go_first(desk: Path, engine: Engine) -> None:
    (desk / "jobs").mkdir()
    (desk / "b.wav").rename(desk / "jobs" / "b.wav")
    (desk / "jobs" / "loud.json").write_text(json.dumps({"image": "face.png", "audio": "a.wav", **SOUND}))
    result = generate("jobs/loud.json", "--audio-start", "0.5", "--output-loudness", "-16")
    assert result.exit_code == 0, result.stderr
    assert engine.request.sound == SoundWishes(
        output_sound="none",
        drive_audio=(Path("jobs/b.wav"),),
        drive_loudness=-20.0,
        output_loudness=-16.0,
        start_s=0.5,
        end_s=0.75,
        trim_silence=True,
        close_mouth=True,
    )
    told = engine.request.told
    assert (told.options["audio_start"], told.origins["audio_start"]) == (0.5, "--audio-start")
    assert (told.options["audio_end"], told.origins["audio_end"]) == (0.75, "the job")
    assert told.options["drive_audio"] == [str(Path("jobs/b.wav").absolute())]


def test_jobs_of_a_list_say_their_sound_each_for_itself(desk: Path, engine: Engine) -> None:
    job = {"image": "face.png", "audio": "a.wav"}
    Path("two.jsonl").write_text(f"{json.dumps({**job, **SOUND})}\n{json.dumps(job)}")
    assert generate("two.jsonl").exit_code == 0
    assert [request.sound.end_s for request in engine.requests] == [0.75, None]


@pytest.mark.parametrize(
    ("words", "strength", "origin"),
    [
        (["--image", "face.png"], 1.0, "default of a picture"),
        (["--video", "clip.mp4"], 0.5, "default of a video"),
        (["--video", "clip.mp4", "--color-strength", "0.8"], 0.8, "--color-strength"),
    ],
)
def test_colors_are_held_as_the_source_asks_for(
    desk: Path, engine: Engine, words: list[str], strength: float, origin: str
) -> None:
    assert generate(*words, "--audio", "a.wav").exit_code == 0
    request = engine.request
    assert (request.color_strength, request.told.options["color_strength"]) == (strength, strength)
    assert request.told.origins["color_strength"] == origin


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("--reference-by-index", "--reference-by-index has no effect on a picture"),
        ("--short-source loop", "--short-source loop has no effect on a picture"),
        ("--scenes on", "--scenes on has no effect on a picture"),
        ("--pause 2", "--pause has no effect on recorded speech"),
        ("--speed 1.5", "--speed has no effect on recorded speech"),
        ("--negative-prompt dark --text-guidance 1", "the negative prompt has no effect at a --text-guidance of 1"),
    ],
)
@pytest.mark.parametrize("dry_run", [[], ["--dry-run"]])
def test_what_has_no_effect_is_told(desk: Path, engine: Engine, said: str, told: str, dry_run: list[str]) -> None:
    result = generate("--image", "face.png", "--audio", "a.wav", *said.split(), *dry_run)
    assert f"note: {told}" in result.stderr
    assert result.exit_code == 0


def test_weights_say_which_engine_runs(desk: Path, engine: Engine) -> None:
    lay_plain_weights(desk / "weights")
    result = talk("generate", "job.json", "--weights-dir", "weights", "--profile", "default")
    assert result.exit_code == 0
    assert (engine.request.engine, engine.request.profile.motion_frames) == ("multitalk", 25)
    assert engine.request.weights_dir == Path("weights")
    assert "next: the same with --seed 43 -o output-43.mp4" in result.stderr


def test_demo_profile_runs_on_named_weights_too(desk: Path, engine: Engine) -> None:
    lay_plain_weights(desk / "weights")
    generate("job.json", "--weights-dir", "weights")
    assert (engine.request.weights_dir, engine.request.profile.name) == (Path("weights"), "demo")


def test_version_is_data() -> None:
    result = talk("--version")
    assert (result.exit_code, result.stdout) == (0, f"talk {infinitalk_cli.__version__}\n")


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["generate", "-h"], ["generate", "--help"]])
def test_help_starts_with_examples_and_fits_80_columns(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERMINAL_WIDTH", "80")
    result = talk(*arguments)
    assert "talk generate --image face.png --audio speech.wav" in result.output
    assert result.output.index("Examples:") < result.output.index("--help  ")
    assert all(len(line.rstrip()) <= 80 for line in result.output.splitlines())


def test_paragraphs_of_the_help_flow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERMINAL_WIDTH", "80")
    shown = [line.strip() for line in talk("demo", "--help").output.splitlines()]
    begun = next(index for index, line in enumerate(shown) if line.startswith("It runs every stage"))
    paragraph = shown[begun : shown.index("", begun)]
    for line, following in pairwise(paragraph):
        assert len(line) + 1 + len(following.split()[0]) > 76, line


def test_python_m_starts_the_same_command() -> None:
    said = subprocess.run([sys.executable, "-m", "infinitalk_cli", "--version"], capture_output=True, text=True)
    assert said.stdout == CliRunner().invoke(app, ["--version"]).stdout
    assert said.returncode == 0
