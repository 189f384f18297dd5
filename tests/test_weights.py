"""Which folder holds the weights, and which of its files a run takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from infinitalk_cli.errors import InputError, WeightsError
from infinitalk_cli.main import app
from infinitalk_cli.repackaged import KNOWN_NAMES
from infinitalk_cli.weights import (
    Engine,
    Quant,
    all_paths,
    choose_engine,
    find_weights_dir,
    locate,
)

SHARDS = tuple(
    f"Wan2.1-I2V-14B-480P/diffusion_pytorch_model-0000{number}-of-00007.safetensors" for number in range(1, 8)
)
TEXT_ENCODER = "Wan2.1-I2V-14B-480P/models_t5_umt5-xxl-enc-bf16.pth"
INDEX = "Wan2.1-I2V-14B-480P/diffusion_pytorch_model.safetensors.index.json"
SINGLE = "InfiniteTalk/single/infinitetalk.safetensors"
MULTI = "InfiniteTalk/multi/infinitetalk.safetensors"
MULTITALK = "MeiGen-MultiTalk/multitalk.safetensors"
COMMON = (
    "Wan2.1-I2V-14B-480P/config.json",
    "Wan2.1-I2V-14B-480P/google/umt5-xxl/tokenizer.json",
    "Wan2.1-I2V-14B-480P/models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth",
    "Wan2.1-I2V-14B-480P/Wan2.1_VAE.pth",
    "chinese-wav2vec2-base/config.json",
    "chinese-wav2vec2-base/preprocessor_config.json",
    "chinese-wav2vec2-base/model.safetensors",
)
PLAIN = (*COMMON, *SHARDS, TEXT_ENCODER)


def lay(root: Path, *names: str) -> Path:
    """Put empty files of these names under `root`."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def lay_index(root: Path, *shards: str) -> None:
    path = root / INDEX
    path.write_text(json.dumps({"weight_map": {f"tensor{number}": name for number, name in enumerate(shards)}}))


def names(root: Path, paths: tuple[Path, ...]) -> list[str]:
    return [path.relative_to(root).as_posix() for path in paths]


def refusal(root: Path, *, num_speakers: int = 1, quant: Quant = "none", engine: Engine | None = None) -> WeightsError:
    with pytest.raises(WeightsError) as caught:
        locate(root, num_speakers=num_speakers, quant=quant, engine=engine)
    assert caught.value.exit_code == 4
    return caught.value


def test_folder_is_the_option_then_the_variable_then_here_then_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TALK_WEIGHTS_DIR", raising=False)
    last = find_weights_dir(None)
    assert last.is_absolute()
    assert "infinitalk-cli" in last.parts
    (tmp_path / "weights").mkdir()
    assert find_weights_dir(None) == Path("weights")
    monkeypatch.setenv("TALK_WEIGHTS_DIR", str(tmp_path / "elsewhere"))
    assert find_weights_dir(None) == tmp_path / "elsewhere"
    assert find_weights_dir(tmp_path / "said") == tmp_path / "said"


@pytest.mark.parametrize("command", [["weights", "convert"], ["weights", "ls"], ["doctor"]])
def test_a_file_is_no_folder_of_weights(tmp_path: Path, command: list[str]) -> None:
    path = tmp_path / "said.safetensors"
    path.write_bytes(b"weights")
    refused = CliRunner().invoke(app, [*command, "--weights-dir", str(path)])
    assert refused.exit_code == 2
    assert f"--weights-dir {path} is a file, no folder" in refused.stderr


@pytest.mark.parametrize(("num_speakers", "adapter"), [(1, SINGLE), (2, MULTI)])
def test_plain_run_takes_all_shards_and_the_adapter_for_its_speakers(
    tmp_path: Path, num_speakers: int, adapter: str
) -> None:
    files = locate(lay(tmp_path, *PLAIN, SINGLE, MULTI), num_speakers=num_speakers)
    assert names(tmp_path, files.dit_shards) == list(SHARDS)
    assert files.adapter == tmp_path / adapter
    assert (files.engine, files.quant, files.text_encoder_quant) == ("infinitetalk", "none", "none")
    assert set(names(tmp_path, all_paths(files))) == {*PLAIN, adapter}


@pytest.mark.parametrize("place", [MULTITALK, "Wan2.1-I2V-14B-480P/multitalk.safetensors"])
def test_multitalk_is_found_in_its_own_folder_and_in_the_base_folder(tmp_path: Path, place: str) -> None:
    lay(tmp_path, *PLAIN, place)
    lay_index(tmp_path, *(Path(shard).name for shard in SHARDS), "multitalk.safetensors")
    files = locate(tmp_path, num_speakers=2)
    assert (files.engine, files.adapter) == ("multitalk", tmp_path / place)
    assert names(tmp_path, files.dit_shards) == list(SHARDS)


def test_infinitetalk_wins_where_both_are_and_the_user_can_say_otherwise(tmp_path: Path) -> None:
    lay(tmp_path, *PLAIN, SINGLE, MULTITALK)
    assert choose_engine(tmp_path, num_speakers=1) == "infinitetalk"
    assert locate(tmp_path, num_speakers=1).adapter == tmp_path / SINGLE
    assert locate(tmp_path, num_speakers=1, engine="multitalk").adapter == tmp_path / MULTITALK
    # for two speakers only MultiTalk's file is there
    assert choose_engine(tmp_path, num_speakers=2) == "multitalk"


def test_another_adapter_takes_the_place_of_the_published_one_and_tells_its_engine(tmp_path: Path) -> None:
    lay(tmp_path, *PLAIN, SINGLE, "mine/infinitetalk.safetensors", "mine/my-MultiTalk.safetensors")
    ours, theirs = tmp_path / "mine/infinitetalk.safetensors", tmp_path / "mine/my-MultiTalk.safetensors"
    files = locate(tmp_path, num_speakers=1, adapter=ours)
    assert (files.adapter, files.engine) == (ours, "infinitetalk")
    assert locate(tmp_path, num_speakers=1, adapter=theirs).engine == "multitalk"
    with pytest.raises(InputError, match="fp8 transformer holds its adapter"):
        locate(tmp_path, num_speakers=1, quant="fp8", adapter=ours)


def test_eight_bit_run_needs_neither_shards_nor_adapter(tmp_path: Path) -> None:
    transformer, text = (
        "InfiniteTalk/quant_models/infinitetalk_multi_fp8.safetensors",
        "InfiniteTalk/quant_models/t5_fp8.safetensors",
    )
    files = locate(lay(tmp_path, *COMMON, transformer, text), num_speakers=2, quant="fp8")
    assert names(tmp_path, files.dit_shards) == [transformer]
    assert (files.adapter, files.quant, files.text_encoder_quant) == (None, "fp8", "fp8")
    assert set(names(tmp_path, all_paths(files))) == {*COMMON, transformer, text}


@pytest.mark.parametrize(
    ("present", "taken", "form"),
    [
        (
            ("MeiGen-MultiTalk/quant_models/t5_int8.safetensors", "InfiniteTalk/quant_models/t5_fp8.safetensors"),
            0,
            "int8",
        ),
        (("InfiniteTalk/quant_models/t5_fp8.safetensors", TEXT_ENCODER), 0, "fp8"),
        ((TEXT_ENCODER,), 0, "none"),
    ],
)
def test_int8_run_takes_the_best_text_encoder_there_is(
    tmp_path: Path, present: tuple[str, ...], taken: int, form: str
) -> None:
    lay(tmp_path, *COMMON, "InfiniteTalk/quant_models/infinitetalk_single_int8.safetensors", *present)
    files = locate(tmp_path, num_speakers=1, quant="int8")
    assert (files.text_encoder, files.text_encoder_quant) == (tmp_path / present[taken], form)


def test_multitalk_in_fp8_falls_back_to_the_published_file(tmp_path: Path) -> None:
    transformer = "MeiGen-MultiTalk/quant_models/quant_model_fp8_FusionX.safetensors"
    lay(tmp_path, *COMMON, transformer, "MeiGen-MultiTalk/quant_models/t5_fp8.safetensors")
    files = locate(tmp_path, num_speakers=1, quant="fp8")
    assert (files.engine, names(tmp_path, files.dit_shards)) == ("multitalk", [transformer])


def test_shards_are_found_by_the_index_and_without_one_by_name(tmp_path: Path) -> None:
    other = "Wan2.1-I2V-14B-480P/diffusion_pytorch_model.safetensors"
    lay(tmp_path, *COMMON, TEXT_ENCODER, SINGLE, other)
    assert names(tmp_path, locate(tmp_path, num_speakers=1).dit_shards) == [other]
    lay(tmp_path, "Wan2.1-I2V-14B-480P/part_a.safetensors", "Wan2.1-I2V-14B-480P/part_b.safetensors")
    lay_index(tmp_path, "part_b.safetensors", "part_a.safetensors", "part_b.safetensors")
    found = names(tmp_path, locate(tmp_path, num_speakers=1).dit_shards)
    assert found == ["Wan2.1-I2V-14B-480P/part_a.safetensors", "Wan2.1-I2V-14B-480P/part_b.safetensors"]


def test_every_missing_file_is_named_with_the_command_that_fetches_it(tmp_path: Path) -> None:
    error = refusal(tmp_path / "nowhere", num_speakers=2)
    for name in (*PLAIN, MULTI):
        assert f"\n  {name.replace('/', str(Path('/')))}" in error.message
    assert error.message.startswith(
        f"{len(PLAIN) + 1} weight files are missing in {tmp_path / 'nowhere'}, which is not there:"
    )
    assert "talk download --speakers 2" in error.hint
    assert "--weights-dir" in error.hint


def test_one_missing_shard_of_a_set_is_named_alone(tmp_path: Path) -> None:
    lay(tmp_path, *COMMON, *SHARDS[:3], *SHARDS[4:], TEXT_ENCODER, SINGLE)
    message = refusal(tmp_path).message
    assert message == f"1 weight file is missing in {tmp_path}:\n  {Path(SHARDS[3])}"


def test_missing_eight_bit_files_are_named_with_the_right_command(tmp_path: Path) -> None:
    error = refusal(lay(tmp_path, *PLAIN, SINGLE), quant="fp8")
    assert "infinitetalk_single_fp8.safetensors" in error.message
    assert "shard" not in error.message
    assert "talk download --speakers 1 --quant fp8" in error.hint


@pytest.mark.parametrize(
    "content",
    ["{", "{}", '{"weight_map": []}', '{"weight_map": {"a": "../../x.safetensors"}}', '{"weight_map": {"a": 1}}'],
)
def test_damaged_or_hostile_index_is_refused(tmp_path: Path, content: str) -> None:
    lay(tmp_path, *PLAIN, SINGLE)
    (tmp_path / INDEX).write_text(content)
    assert "shard index" in refusal(tmp_path).message


def test_other_programs_files_serve_where_the_published_ones_are_not(tmp_path: Path) -> None:
    """The best form first; of the published ones the adapter cast to 8 bits comes last."""
    bases, adapters = (*KNOWN_NAMES["base_none"], *KNOWN_NAMES["base_fp8"]), KNOWN_NAMES["adapter_multi"]
    lay(tmp_path, *COMMON, TEXT_ENCODER, "InfiniteTalk/comfyui/infinitetalk_multi.safetensors")
    for name in (bases[-1], bases[0]):
        lay(tmp_path, f"repackaged/{name}")
        assert locate(tmp_path, num_speakers=2).dit_shards == (tmp_path / "repackaged" / name,)
    assert locate(tmp_path, num_speakers=2).adapter == tmp_path / "InfiniteTalk/comfyui/infinitetalk_multi.safetensors"
    for name in (adapters[-1], adapters[0]):
        lay(tmp_path, f"repackaged/{name}")
        assert locate(tmp_path, num_speakers=2).adapter == tmp_path / "repackaged" / name
