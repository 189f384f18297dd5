"""`talk` as a user meets it: options, exit codes, and which stream says what. The engine is a stand-in here."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

import infinitalk_cli
from infinitalk_cli import errors
from infinitalk_cli.job import DEFAULT_PROMPT, Box, Speaker
from infinitalk_cli.main import app
from infinitalk_cli.progress import OnProgress, Progress
from infinitalk_cli.request import GenerateRequest, GenerateResult, LoraFile
from tests.media.made import noise, write_sound, write_wav


@dataclass
class Engine:
    """Takes the runner's place: keeps the requests, and answers or fails as told."""

    requests: list[GenerateRequest] = field(default_factory=list)
    failure: BaseException | None = None

    def generate(
        self, request: GenerateRequest, on_progress: OnProgress, on_note: Callable[[str], None], warm: object = None
    ) -> GenerateResult:
        self.requests.append(request)
        on_note("note: from the engine")
        on_progress(Progress(stage="video", chunk=1, num_chunks=1))
        if self.failure is not None:
            raise self.failure
        request.output.parent.mkdir(exist_ok=True)
        request.output.write_bytes(b"mp4")
        return GenerateResult(request.output, width=64, height=96, num_frames=70, fps=25, num_chunks=3, elapsed_s=9.0)

    @property
    def request(self) -> GenerateRequest:
        """The only request there was."""
        assert len(self.requests) == 1
        return self.requests[0]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    """A stand-in for the runner module."""
    stand_in, module = Engine(), ModuleType("infinitalk_cli.runner")
    setattr(module, "generate", stand_in.generate)  # noqa: B010  a module has no such declared attribute
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(infinitalk_cli, "runner", module, raising=False)
    return stand_in


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with inputs and without weights."""
    Image.new("RGB", (96, 64)).save(tmp_path / "face.png")
    write_sound(tmp_path / "clip.mp4", noise(1600), 16_000, "aac", picture=True)
    for name in ("a.wav", "b.wav"):
        write_wav(tmp_path / name, noise(16_000), 16_000)
    (tmp_path / "job.json").write_text(
        json.dumps({"prompt": "A talk.", "cond_image": "face.png", "cond_audio": {"person1": "a.wav"}})
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TALK_DEBUG", raising=False)
    monkeypatch.setenv("TALK_WEIGHTS_DIR", str(tmp_path / "no-weights"))
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


def talk(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def generate(*arguments: str) -> Result:
    """A run with the demo profile, which needs no weights."""
    return talk("generate", *arguments, "--profile", "demo")


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def lay_plain_weights(root: Path) -> None:
    """Empty files under the names of a MultiTalk download."""
    base = [f"diffusion_pytorch_model-0000{number}-of-00007.safetensors" for number in range(1, 8)]
    base += ["config.json", "google/umt5-xxl/tokenizer.json", "Wan2.1_VAE.pth", "models_t5_umt5-xxl-enc-bf16.pth"]
    base += ["models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"]
    speech = ["config.json", "preprocessor_config.json", "model.safetensors"]
    names = [f"Wan2.1-I2V-14B-480P/{name}" for name in base] + [f"chinese-wav2vec2-base/{name}" for name in speech]
    for name in [*names, "MeiGen-MultiTalk/multitalk.safetensors"]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


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


def test_one_face_of_several_is_told(desk: Path, engine: Engine) -> None:
    result = generate("--image", "face.png", "--audio", "a.wav", "--box", "10,20,30,40")
    assert "1 speaker, everyone else silent, from face.png" in result.stderr
    assert engine.request.job.num_speakers == 2


@pytest.mark.parametrize("option", ["--reference-by-index", "--short-source loop", "--scenes on"])
@pytest.mark.parametrize("dry_run", [[], ["--dry-run"]])
def test_options_without_effect_are_told(desk: Path, engine: Engine, option: str, dry_run: list[str]) -> None:
    result = generate("--image", "face.png", "--audio", "a.wav", *option.split(), *dry_run)
    assert f"note: {option} has no effect on a picture" in result.stderr
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


def test_missing_weights_exit_4_with_files_and_command(desk: Path, engine: Engine) -> None:
    result = talk("generate", "job.json", "--profile", "default")
    assert (result.exit_code, result.stdout, engine.requests) == (4, "", [])
    assert "16 weight files are missing" in result.stderr
    assert str(Path("InfiniteTalk/single/infinitetalk.safetensors")) in result.stderr
    assert "hint: talk download --speakers 1" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["gone.json"], "no such job file: gone.json"),
        (["job.json", "--frames", "80"], "--frames must be 4n + 1 and at least 5, such as 77 or 81, not 80"),
        (["job.json", "--motion-frames", "33"], "--motion-frames must be less than --frames"),
        (["job.json", "--steps", "0"], "--steps must be at least 1"),
        (["job.json", "--steps", "many"], "--steps"),
        (["job.json", "--size", "481"], "480"),
        (["job.json", "--crf", "99"], "--crf"),
        (["job.json", "--device", "gpu"], "--device must be auto, cpu, cuda or cuda:N"),
        (["job.json", "--lora", "gone.safetensors"], "--lora: no such file: gone.safetensors"),
        (["job.json", "-o", "talk.avi"], "must end in .mp4"),
        (["job.json", "-o", "new/face.png/talk.avi"], "must end in .mp4"),
        (["job.json", "--image", "face.png", "--audio", "a.wav"], "--image, --audio: the job file job.json says that"),
        (["--image", "face.png"], "--audio: is missing: the recorded speech"),
        (["--image", "face.png", "--audio", "gone.wav"], "--audio (speaker 1): no such file: 'gone.wav'"),
        (["--image", "face.png", *(["--audio", "a.wav"] * 3)], "more than 2 speakers"),
        (["job.json", "--nonsense"], "--nonsense"),
    ],
)
def test_wrong_input_exits_2_and_writes_nothing(desk: Path, engine: Engine, arguments: list[str], told: str) -> None:
    before = files_of(desk)
    result = generate(*arguments)
    assert (result.exit_code, result.stdout, engine.requests) == (2, "", [])
    assert told in result.stderr
    assert "Traceback" not in result.stderr
    assert files_of(desk) == before


def test_wrong_options_are_told_before_missing_weights(desk: Path, engine: Engine) -> None:
    assert talk("generate", "job.json", "--frames", "80").exit_code == 2


def test_an_unknown_profile_is_named_with_the_nearest(desk: Path, engine: Engine) -> None:
    result = talk("generate", "job.json", "--profile", "dmeo")
    assert result.exit_code == 2
    assert "hint: did you mean 'demo'?" in result.stderr


def test_an_output_that_is_there_is_kept(desk: Path, engine: Engine) -> None:
    (desk / "output.mp4").write_bytes(b"precious")
    result = generate("job.json")
    assert result.exit_code == 2
    assert "output.mp4 is already there: --overwrite replaces it" in result.stderr
    assert (desk / "output.mp4").read_bytes() == b"precious"
    assert generate("job.json", "--overwrite").exit_code == 0


@pytest.mark.parametrize(
    ("options", "fate", "told"),
    [
        ([], "refused", "the run would be refused:\n  output.mp4 is already there"),
        (["--overwrite"], "replaced", "--overwrite would replace what is there: output.mp4"),
        (["--skip-existing"], "refused", "the run would be refused"),
        (["-o", "part.mp4"], "refused", "part.part holds finished pieces of an earlier run: --resume goes on"),
        (["-o", "part.mp4", "--resume"], "resumed", "--resume would go on behind what is in part.part"),
        (["-o", "free.mp4"], "new", ""),
    ],
)
def test_a_dry_run_says_what_becomes_of_the_output(
    desk: Path, engine: Engine, options: list[str], fate: str, told: str
) -> None:
    Path("output.mp4").write_bytes(b"precious")
    Path("part.part").mkdir()
    Path("part.part/0001.mp4").write_bytes(b"piece")
    before = files_of(desk)
    result = generate("job.json", "--dry-run", "--json", *options)
    assert result.exit_code == 0
    assert json.loads(result.stdout)["output"] == fate
    assert told in result.stderr
    assert files_of(desk) == before


def test_pieces_of_an_earlier_run_are_told_before_anything_is_loaded(desk: Path, engine: Engine) -> None:
    Path("output.part").mkdir()
    Path("output.part/0001.mp4").write_bytes(b"piece")
    refused = generate("job.json")
    assert (refused.exit_code, engine.requests) == (2, [])
    assert "output.part holds finished pieces of an earlier run: --resume goes on" in refused.stderr
    assert generate("job.json", "--resume").exit_code == 0


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.wav", []),
        ("face.png", []),
        ("mix.wav", ["--output-audio", "mix.wav"]),
        ("voice.wav", ["--drive-audio", "voice.wav"]),
    ],
)
def test_media_that_can_t_be_read_are_told_before_anything_is_loaded(
    desk: Path, engine: Engine, name: str, options: list[str]
) -> None:
    Path(name).write_bytes(b"neither picture nor sound")
    result = generate("job.json", *options)
    assert (result.exit_code, engine.requests) == (2, [])
    assert name in result.stderr


def test_speech_that_is_over_before_its_use_is_told_before_anything_is_loaded(desk: Path, engine: Engine) -> None:
    result = generate("job.json", "--audio-start", "1.5", "--dry-run")
    assert result.exit_code == 2
    assert "the speech is over at 1.00 s, before its use begins at 1.50 s" in result.stderr


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "each scene cut that the run finds may add one"),
        (["--short-source", "loop"], "each scene cut that the run finds and each new start of the loop may add one"),
        (["--scenes", "off"], ""),
    ],
)
def test_scene_cuts_are_said_not_to_be_counted(
    desk: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch, options: list[str], told: str
) -> None:
    monkeypatch.setattr("infinitalk_cli.run_plan.can_find_cuts", lambda: True)
    result = generate("--video", "clip.mp4", "--audio", "a.wav", "--dry-run", *options)
    assert result.exit_code == 0, result.stderr
    assert told in result.stderr
    assert ("by length alone" in result.stderr) == bool(told)


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (errors.InputError("why"), 2),
        (errors.EnvironmentUnfitError("why"), 3),
        (errors.WeightsError("why"), 4),
        (errors.OutOfGpuMemoryError("why"), 5),
        (errors.DoesNotFitError("why"), 6),
        (errors.MediaError("why"), 7),
        (errors.PartialBatchError("why"), 8),
        (errors.InterruptedRunError("why"), 130),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_kind_of_error_has_its_exit_code(desk: Path, engine: Engine, failure: errors.TalkError, code: int) -> None:
    failure.hint = "what next"
    engine.failure = failure
    result = generate("job.json")
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.endswith("error: why\nhint: what next\n")


def test_ctrl_c_exits_130(desk: Path, engine: Engine) -> None:
    engine.failure = KeyboardInterrupt()
    result = generate("job.json")
    assert result.exit_code == 130
    assert result.stderr.endswith("error: stopped\n")


@pytest.mark.parametrize("debug", [False, True])
def test_an_unexpected_error_exits_1_and_says_how_to_see_more(
    desk: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch, debug: bool
) -> None:
    if debug:
        monkeypatch.setenv("TALK_DEBUG", "1")
    engine.failure = ZeroDivisionError("by zero")
    result = generate("job.json")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "error: unexpected: ZeroDivisionError: by zero\nhint: --debug shows where" in result.stderr
    assert ("Traceback" in result.stderr) == debug


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


def test_python_m_starts_the_same_command() -> None:
    said = subprocess.run([sys.executable, "-m", "infinitalk_cli", "--version"], capture_output=True, text=True)
    assert said.stdout == CliRunner().invoke(app, ["--version"]).stdout
    assert said.returncode == 0
