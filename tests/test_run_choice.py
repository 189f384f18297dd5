"""What was said in all places and the machine become one profile; a run that can't fit is refused with numbers."""

from __future__ import annotations

import json
import wave
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from infinitalk_cli import prepare, profiles_commands
from infinitalk_cli.bench_store import measured_flops_per_s, store_bench
from infinitalk_cli.estimate import SHARE_IN_TEAM
from infinitalk_cli.main import app
from infinitalk_cli.profiles import PRESETS, PROFILES
from infinitalk_cli.run_choice import Said, choose_run, values_of
from infinitalk_cli.settings_files import Setting
from tests.hardware_fixtures import hardware
from tests.stand_in import lay_plain_weights

PUBLISHED_CONFIG = {"dim": 5120, "ffn_dim": 13824, "freq_dim": 256, "num_heads": 40, "num_layers": 40}
Talk = Callable[..., Result]


def said(device: str = "auto", **values: object) -> Said:
    return Said({key: Setting(value, f"--{key}") for key, value in values.items()}, device)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a picture, two seconds of sound and files under the names of published bf16 weights."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (300, 200)).save("face.png")
    with wave.open("speech.wav", "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(16_000)
        sound.writeframes(bytes(2 * 16_000 * 8))
    lay_plain_weights(tmp_path / "weights")
    (tmp_path / "weights/Wan2.1-I2V-14B-480P/config.json").write_text(json.dumps(PUBLISHED_CONFIG))
    monkeypatch.setattr("infinitalk_cli.settings_files.user_config_path", lambda: tmp_path / "user.toml")
    monkeypatch.setattr("infinitalk_cli.bench_store.bench_folder", lambda: tmp_path / "bench")
    for name in ("TALK_WEIGHTS_DIR", "TALK_STEPS", "TALK_PRESET", "TALK_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def talk_on(monkeypatch: pytest.MonkeyPatch) -> Talk:
    """Runs `talk` as if on a recorded machine."""

    def run(machine: str, *arguments: str, **changes: int) -> Result:
        seen = hardware(machine, **changes)  # pyright: ignore[reportArgumentType]
        for module in (prepare, profiles_commands):
            monkeypatch.setattr(module, "detect_hardware", lambda: seen)
        return CliRunner().invoke(app, arguments)

    return run


DRY = ("generate", "--image", "face.png", "--audio", "speech.wav", "--dry-run")


def test_a_dry_run_says_what_would_run_and_writes_nothing(desk: Path, talk_on: Talk) -> None:
    before = set(desk.rglob("*"))
    result = talk_on("h200", *DRY)
    assert result.exit_code == 0, result.stderr
    for part in (
        "h200 profile: NVIDIA H200 has a row of its own",
        "picture: 300 x 200, seen of it:",
        "8.00 s at 768 x 512: 4 chunks of 120 passes",
        "of GPU memory",
        "roofline prediction, not a measurement",
        "40 of 40 transformer blocks stay on the GPU",
    ):
        assert part in result.stdout
    assert set(desk.rglob("*")) == before


def test_a_dry_run_with_little_ram_says_what_is_read_in_every_pass(desk: Path, talk_on: Talk) -> None:
    result = talk_on("rtx4060-laptop-8gb", *DRY)
    assert result.exit_code == 0, result.stderr
    assert "RAM is too short to stream all: blocks that find no room in it are read" in result.stdout
    assert (
        "22 of 40 blocks are read from the disk in every pass, as RAM has no room for them: 10 s at an assumed"
        in result.stdout
    )
    record = json.loads(talk_on("rtx4060-laptop-8gb", *DRY, "--json").stdout)
    assert record["estimate"]["num_read"] == 22
    assert record["refused"] is None
    result = talk_on("rtx4060-laptop-8gb", *DRY, "--quant", "none")
    assert result.exit_code == 6
    assert "this fits: --quant fp8" in result.stderr


def test_a_dry_run_where_a_video_is_there_prints_its_plan_and_refuses_as_the_run_would(
    desk: Path, talk_on: Talk
) -> None:
    (desk / "output.mp4").write_bytes(b"precious")
    result = talk_on("rtx4090-desktop", *DRY)
    assert result.exit_code == 2
    assert "rtx-4090 profile" in result.stdout
    assert "output.mp4 is already there: --overwrite replaces it" in result.stderr
    assert talk_on("rtx4090-desktop", *DRY, "--overwrite").exit_code == 0
    assert (desk / "output.mp4").read_bytes() == b"precious"


def test_a_dry_run_in_json(desk: Path, talk_on: Talk) -> None:
    record = json.loads(talk_on("h200", *DRY, "--json", "--max-seconds", "2").stdout)
    assert (record["profile"], record["gpu"], record["num_frames"]) == ("h200", "0", 50)
    assert record["estimate"]["num_chunks"] == 1
    assert len(record["crop_box"]) == 4


def test_a_dry_run_names_the_gpus_that_share_the_work(desk: Path, talk_on: Talk) -> None:
    alone = json.loads(talk_on("a100-80-pair", *DRY, "--json").stdout)
    assert alone["gpus"] == [alone["gpu"]]
    result = talk_on("a100-80-pair", *DRY, "--gpus", "2", "--gpu", "1")
    name = "NVIDIA A100 80GB PCIe"
    assert f"GPUs that share every pass: 1 ({name}), 0 ({name})" in result.stdout
    assert "2 GPUs, each at 91%" in result.stdout
    shared = json.loads(talk_on("a100-80-pair", *DRY, "--gpus", "2", "--json").stdout)
    assert shared["estimate"]["pass_s"] == pytest.approx(alone["estimate"]["pass_s"] / 2 / SHARE_IN_TEAM)
    assert shared["estimate"]["ram_bytes"] > alone["estimate"]["ram_bytes"]


@pytest.mark.parametrize(
    ("machine", "arguments", "exit_code", "told"),
    [
        ("h200", ("--gpus", "2"), 3, "--gpus 2: this machine has 1 GPU that could share the work"),
        ("no-gpu-laptop", ("--gpus", "2", "--profile", "demo"), 3, "--gpus 2: this machine has no GPU"),
        ("a100-80-pair", ("--gpus", "4"), 3, "--gpus 4: this machine has 2 GPUs"),
        ("a100-40-mig", ("--gpus", "2"), 3, "MIG instances don't count"),
        ("a100-80-pair", ("--gpus", "2", "--device", "cuda:1"), 2, "--gpus 2 does not go with --device cuda:1"),
        ("a100-80-pair", ("--gpus", "0"), 2, "--gpus"),
    ],
)
def test_gpus_that_cannot_share_are_refused(
    desk: Path, talk_on: Talk, machine: str, arguments: tuple[str, ...], exit_code: int, told: str
) -> None:
    result = talk_on(machine, *DRY, *arguments)
    assert (result.exit_code, told in result.stderr) == (exit_code, True), result.stderr


def test_a_long_run_is_told_what_the_fast_preset_would_take(desk: Path, talk_on: Talk) -> None:
    assert "with --preset fast about" not in talk_on("h200", *DRY).stdout
    result = talk_on("rtx3090-desktop", *DRY, "--quant", "none", available_ram_bytes=60 * 10**9)
    assert "with --preset fast about" in result.stdout


def test_a_bench_on_this_machine_replaces_the_vendors_figure(desk: Path, talk_on: Talk) -> None:
    store_bench({"gpu": "NVIDIA H200", "results": [{"name": "bf16", "median_s": 3.0, "tflop": 1800.0}]})
    result = talk_on("h200", *DRY)
    assert "from `talk bench` on this machine" in result.stdout
    assert "prediction" not in result.stdout


@pytest.mark.parametrize("more", [(), ("--dry-run",), ("--dry-run", "--json")], ids=["run", "dry run", "JSON"])
def test_what_cannot_fit_exits_6_with_the_number_and_what_would(
    desk: Path, talk_on: Talk, more: tuple[str, ...]
) -> None:
    result = talk_on("rtx3060-12gb", *DRY[:-1], *more, "--profile", "default", available_ram_bytes=30 * 10**9)
    assert result.exit_code == 6
    assert "GB of RAM, 30.0 GB are free" in result.stderr
    assert "hint: this fits: --quant int8" in result.stderr
    if "--json" in more:
        record = json.loads(result.stdout)
        assert "GB of RAM, 30.0 GB are free" in record["refused"]
        assert record["estimate"]["ram_bytes"] > 30e9
    else:
        assert ("8.00 s at 768 x 512: 4 chunks of 120 passes" in result.stdout) == bool(more)
        assert ("GB of GPU memory" in result.stdout) == bool(more)


def test_the_form_that_is_there_is_taken(desk: Path, talk_on: Talk) -> None:
    result = talk_on("rtx4090-desktop", *DRY, available_ram_bytes=60 * 10**9)
    assert result.exit_code == 0, result.stderr
    assert "bfloat16 weights are there, others are not" in result.stdout


def test_weights_that_are_not_there_exit_4_with_the_preferred_form(desk: Path, talk_on: Talk) -> None:
    result = talk_on("rtx4090-desktop", *DRY[:-1], "--weights-dir", "nowhere")
    assert result.exit_code == 4
    assert "--quant fp8" in result.stderr


def test_a_dry_run_before_the_download_goes_by_the_published_sizes(desk: Path, talk_on: Talk) -> None:
    result = talk_on("rtx4090-desktop", *DRY, "--weights-dir", "nowhere")
    assert result.exit_code == 0, result.stderr
    assert "3 chunks of 120 passes" in result.stdout
    assert "GB of GPU memory" in result.stdout
    assert "published sizes are taken; talk download --speakers 1 --quant fp8" in result.stderr


def test_the_time_is_told_stage_by_stage(desk: Path, talk_on: Talk) -> None:
    result = talk_on("h200", *DRY)
    assert "of it text 0:" in result.stdout
    record = json.loads(talk_on("h200", *DRY, "--json").stdout)["estimate"]
    assert list(record["stages_s"]) == ["text", "loading", "passes", "encoding and decoding"]
    assert sum(record["stages_s"].values()) > record["seconds"] > 0


def test_stages_that_were_measured_here_replace_the_assumptions(desk: Path, talk_on: Talk) -> None:
    def stages() -> dict[str, float]:
        return json.loads(talk_on("h200", *DRY, "--json").stdout)["estimate"]["stages_s"]

    before = stages()
    results = [
        {"name": "load", "median_s": 1.0, "tflop": 0.01},
        {"name": "VAE encode, float32", "median_s": 100.0, "tflop": 0},
        {"name": "VAE decode, float32", "median_s": 100.0, "tflop": 0},
    ]
    store_bench({"gpu": "NVIDIA H200", "size": [448, 896], "results": results})
    after = stages()
    assert after["loading"] == pytest.approx(before["loading"] / 10)
    assert after["encoding and decoding"] == pytest.approx(4 * 200 * 768 * 512 / (448 * 896))
    assert after["passes"] == before["passes"]


def test_without_a_gpu_a_run_is_refused_and_the_demo_named(desk: Path, talk_on: Talk) -> None:
    result = talk_on("no-gpu-laptop", *DRY)
    assert result.exit_code == 3
    assert "this machine shows no NVIDIA GPU" in result.stderr
    assert "--profile demo runs here" in result.stderr


def test_the_lora_of_a_preset_must_be_there(desk: Path, talk_on: Talk) -> None:
    result = talk_on("h200", *DRY, "--preset", "fast")
    assert result.exit_code == 4
    assert "talk download --quant none --lora lightx2v" in result.stderr
    name = "lightx2v_I2V_14B_480p_cfg_step_distill_rank64_bf16.safetensors"
    (desk / "weights" / name).touch()
    result = talk_on("h200", *DRY, "--preset", "fast")
    assert "4 chunks of 4 passes" in result.stdout


def test_origins_follow_option_variable_project_user(
    desk: Path, talk_on: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    (desk / "talk.toml").write_text('preset = "balanced"\n')
    (desk / "user.toml").write_text('size = "720"\npreset = "fast"\n')
    monkeypatch.setenv("TALK_STEPS", "6")
    record = json.loads(talk_on("h200", "profiles", "show", "auto", "--json").stdout)
    values = {name: (found["value"], found["origin"]) for name, found in record["values"].items()}
    assert values["num_steps"] == (6, "TALK_STEPS")
    assert values["size"] == ("720", f"{desk / 'user.toml'}, line 1")
    assert values["shift"] == (2.0, "preset balanced")
    assert values["quant"] == ("none", "profile h200")


def test_another_size_brings_its_shift_and_says_so() -> None:
    run = choose_run(said(size="720", preset="fast"), hardware("h200"))
    assert {name: (value, origin) for name, value, origin in values_of(run)}["shift"] == (11.0, "size 720")


def test_what_the_machine_changed_is_told() -> None:
    run = choose_run(said(), hardware("rtx5090-windows", free_vram_bytes=20 * 10**9))
    origins = {name: origin for name, _, origin in values_of(run)}
    assert origins["num_persistent_param_in_dit"] == "this machine"
    assert origins["quant"] == "profile rtx-5090"


def test_a_named_profile_is_told_how_much_stays_on_the_gpu() -> None:
    run = choose_run(said(profile="default", quant="fp8"), hardware("h200", free_vram_bytes=20 * 10**9))
    assert 0 < (run.profile("infinitetalk").num_persistent_param_in_dit or 0) < 18e9
    assert "blocks, the others are streamed" in run.choice.reasons[-1]


def test_the_demo_takes_no_settings_of_files() -> None:
    settings = {
        "profile": Setting("demo", "--profile"),
        "steps": Setting(2, "--steps"),
        "size": Setting("720", "talk.toml, line 1"),
        "preset": Setting("fast", "talk.toml, line 2"),
    }
    profile = choose_run(Said(settings), hardware("h200")).profile("infinitetalk")
    assert (profile.size, profile.num_steps, profile.lora) == ("demo", 2, "")


def test_a_dry_run_of_the_demo_says_chunks_and_memory(desk: Path, talk_on: Talk) -> None:
    result = talk_on("no-gpu-laptop", *DRY, "--profile", "demo")
    assert result.exit_code == 0, result.stderr
    assert "8.00 s at 160 x 96: 8 chunks of 8 passes" in result.stdout
    assert "memory: about 0.8 GB of RAM" in result.stdout
    larger = talk_on("no-gpu-laptop", *DRY, "--profile", "demo", "--resolution", "640x480", "--steps", "2")
    assert "8.00 s at 640 x 480: 8 chunks of 2 passes" in larger.stdout
    assert "memory" not in larger.stdout
    record = json.loads(talk_on("no-gpu-laptop", *DRY, "--profile", "demo", "--json").stdout)
    assert (record["num_chunks"], record["passes_per_chunk"], record["refused"]) == (8, 8, None)


def test_a_demo_asked_for_in_a_file_runs_without_a_gpu(desk: Path, talk_on: Talk) -> None:
    (desk / "talk.toml").write_text('profile = "demo"\nsteps = 40\n')
    result = talk_on("no-gpu-laptop", *DRY)
    assert result.exit_code == 0, result.stderr
    assert "demo profile" in result.stdout


def test_a_gpu_that_only_torch_knows_is_not_judged(desk: Path, talk_on: Talk) -> None:
    result = talk_on("no-gpu-laptop", *DRY, "--profile", "default", "--device", "cuda")
    assert result.exit_code == 0, result.stderr
    assert "estimate" not in result.stdout
    assert talk_on("no-gpu-laptop", *DRY, "--profile", "default").exit_code == 6


def test_a_device_by_number_is_that_of_cuda() -> None:
    run = choose_run(said("cuda:1"), hardware("rtx3060-and-4090"))
    assert run.gpu is not None
    assert run.gpu.name.endswith("4090")
    assert choose_run(said("cpu"), hardware("h200")).gpu is None


def test_profiles_can_be_listed(talk_on: Talk) -> None:
    record = json.loads(talk_on("h200", "profiles", "ls", "--json").stdout)
    assert [profile["name"] for profile in record["profiles"]] == [profile.name for profile in PROFILES]
    assert [preset["name"] for preset in record["presets"]] == [preset.name for preset in PRESETS]


def test_an_unknown_profile_is_named_with_the_nearest(talk_on: Talk) -> None:
    result = talk_on("h200", "profiles", "show", "rtx-409")
    assert result.exit_code == 2
    assert "did you mean 'rtx-4090' or " in result.stderr


def test_bench_results_are_kept_by_name_and_form(tmp_path: Path) -> None:
    first = {"name": "bf16", "median_s": 2.0, "tflop": 1000.0}
    second = {"name": "fp8-streamed", "median_s": 1.0, "tflop": 1000.0}
    small = {"name": "fp8", "median_s": 1e-6, "tflop": 0.01}
    store_bench({"gpu": "A B/C", "results": [first]}, tmp_path)
    store_bench({"gpu": "A B/C", "results": [second, small]}, tmp_path)
    assert measured_flops_per_s("A B/C", "none", tmp_path) == 5e14
    assert measured_flops_per_s("A B/C", "fp8", tmp_path) == 1e15
    assert measured_flops_per_s("A B/C", "int8", tmp_path) is None
    assert store_bench({"gpu": None, "results": [first]}, tmp_path) is None


@pytest.mark.parametrize("text", ["", "[]", '{"results": 3}', '{"results": [{"name": 1}]}'])
def test_a_damaged_store_counts_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "GPU.json").write_text(text)
    assert measured_flops_per_s("GPU", "none", tmp_path) is None


def test_what_a_run_would_refuse_a_dry_run_refuses(desk: Path, talk_on: Talk) -> None:
    demo = ("--profile", "demo")
    result = talk_on("no-gpu-laptop", *DRY, *demo, "--audio", "speech.wav", "--box", "0,0,9,9", "--box", "9,9,999,999")
    assert result.exit_code == 2
    assert "is not a rectangle within the picture's 300 x 200" in result.stderr
    (desk / "face.png").write_bytes((desk / "face.png").read_bytes()[:60])
    assert talk_on("no-gpu-laptop", *DRY, *demo).exit_code == 2


def test_a_sound_that_is_hardly_one_is_told(desk: Path, talk_on: Talk) -> None:
    with wave.open("speech.wav", "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(16_000)
        sound.writeframes(bytes(640))
    assert "note: the video will have 1 frame (0.04 s)" in talk_on("no-gpu-laptop", *DRY, "--profile", "demo").stderr


def test_the_demo_on_named_weights_says_so(desk: Path, talk_on: Talk) -> None:
    result = talk_on("no-gpu-laptop", *DRY, "--profile", "demo", "--weights-dir", "weights")
    assert "--weights-dir is named, so the demo's settings run on the weights in that folder" in result.stderr
    assert result.exit_code == 6
    assert "hint: without --weights-dir the demo runs on small weights of its own, which fit" in result.stderr
