"""Which published files each kind of run asks for. No network: names, places, revisions."""

from __future__ import annotations

import pytest

from infinitalk_cli.errors import InputError
from infinitalk_cli.manifest import (
    LORAS,
    REPOSITORIES,
    HubFile,
    Need,
    all_files,
    at_revisions,
    only_files,
    plan_files,
)
from infinitalk_cli.published import PUBLISHED
from infinitalk_cli.voices import VOICES
from infinitalk_cli.weights import all_paths, locate
from tests.hub_tree import RTX_4090, UPSTREAM
from tests.test_weights import lay

NEEDS = [
    Need(speakers, quant, engine)
    for speakers in (1, 2)
    for quant in ("none", "fp8", "int8")
    for engine in ("infinitetalk", "multitalk")
]


def places(need: Need) -> set[str]:
    return {file.place for file in plan_files(need)}


def by_place(files: tuple[HubFile, ...], place: str) -> HubFile:
    return next(file for file in files if file.place == place)


@pytest.mark.parametrize("need", NEEDS, ids=str)
def test_what_is_fetched_is_what_a_run_finds(need: Need, tmp_path_factory: pytest.TempPathFactory) -> None:
    root = lay(tmp_path_factory.mktemp("tree"), *(file.place for file in plan_files(need) if not file.optional))
    found = locate(root, num_speakers=need.num_speakers, quant=need.quant, engine=need.engine)
    read = {path.relative_to(root).as_posix() for path in all_paths(found)}
    assert read <= places(need)
    # and beyond what is read, only the other forms of the tokenizer and the lists of 8-bit modules
    extra = {place for place in places(need) - read if "umt5-xxl" not in place}
    assert all(place.endswith(".json") and "quant_models" in place for place in extra)


@pytest.mark.parametrize("need", [need for need in NEEDS if need.quant != "none"], ids=str)
def test_eight_bit_run_asks_for_neither_shards_nor_adapter_nor_the_plain_text_encoder(need: Need) -> None:
    assert not any("diffusion_pytorch_model" in place or "t5_umt5" in place for place in places(need))
    assert not any(place.endswith(("/infinitetalk.safetensors", "/multitalk.safetensors")) for place in places(need))


def test_the_rtx_4090_download_is_the_published_minimum() -> None:
    assert places(Need(quant="fp8")) == set(RTX_4090)


@pytest.mark.parametrize("need", [*NEEDS, Need(2, "fp8", merged_lora=True), Need(voices=VOICES[:1])], ids=str)
def test_each_file_or_a_stand_in_exists_upstream(need: Need) -> None:
    """Against an independent list of what is published."""
    for file in plan_files(need):
        if file.revisions[0] == "refs/pr/1":
            assert file.path == "model.safetensors"
        elif not file.optional:
            assert any(choice.path in UPSTREAM[choice.repository] for choice in file.choices), file.place


def test_speech_encoder_is_one_file_of_the_pull_request_and_two_of_the_main_branch() -> None:
    files = [file for file in plan_files(Need()) if file.purpose == "audio"]
    assert {file.path: file.revisions[0] for file in files} == {
        "config.json": "3991242c806928916fff4a8c0e4f76acf661b743",
        "preprocessor_config.json": "3991242c806928916fff4a8c0e4f76acf661b743",
        "model.safetensors": "refs/pr/1",
    }


def test_no_need_asks_for_a_pickle_beside_a_safetensors_file() -> None:
    pickles = {file.path for file in all_files() if not file.path.endswith((".safetensors", ".json", ".model"))}
    assert pickles == {
        "models_t5_umt5-xxl-enc-bf16.pth",
        "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth",
        "Wan2.1_VAE.pth",
        "kokoro-v1_0.pth",
        *(f"voices/{name}.pt" for name in VOICES),
    }


def test_places_are_unique_and_stay_in_the_tree() -> None:
    files = all_files()
    assert len({file.place for file in files}) == len(files)
    assert len({(file.repository, file.path) for file in files}) == len(files)
    assert not any(place.startswith("/") or ".." in place.split("/") for place in (file.place for file in files))
    assert {file.repository for file in files} == {repository.name for repository in REPOSITORIES}


def test_int8_text_encoder_may_be_the_one_in_fp8() -> None:
    text = next(file for file in plan_files(Need(quant="int8")) if file.purpose == "text")
    assert text.place == "MeiGen-MultiTalk/quant_models/t5_int8.safetensors"
    assert "InfiniteTalk/quant_models/t5_fp8.safetensors" in [choice.place for choice in text.otherwise]


def test_merged_lora_of_one_speaker_falls_back_to_int8_only() -> None:
    single = plan_files(Need(1, "fp8", merged_lora=True))
    stem = "InfiniteTalk/quant_models/infinitetalk_single"
    file = by_place(single, f"{stem}_fp8_lora.safetensors")
    assert [choice.place for choice in file.otherwise] == [f"{stem}_int8_lora.safetensors"]
    with pytest.raises(InputError, match="8-bit"):
        plan_files(Need(merged_lora=True))


def test_loras_and_voices_are_added_by_name() -> None:
    files = plan_files(Need(quant="fp8", loras=("lightx2v", "fusionx"), voices=("af_heart", "bf_emma")))
    added = {file.place for file in files} - set(RTX_4090)
    assert added == {
        "lightx2v_I2V_14B_480p_cfg_step_distill_rank64_bf16.safetensors",
        "Wan2.1_I2V_14B_FusionX_LoRA.safetensors",
        "Kokoro-82M/config.json",
        "Kokoro-82M/kokoro-v1_0.pth",
        "Kokoro-82M/voices/af_heart.pt",
        "Kokoro-82M/voices/bf_emma.pt",
    }
    with pytest.raises(InputError, match="no LoRA 'x'") as caught:
        plan_files(Need(loras=("x",)))
    assert all(name in caught.value.hint for name in LORAS)


def test_only_takes_purposes_and_paths_with_wildcards_and_keeps_the_order() -> None:
    files = plan_files(Need(quant="fp8"))
    chosen = only_files(files, ("chinese-wav2vec2-base/*.json", "vae", "text"))
    assert [file.place for file in chosen] == [
        "Wan2.1-I2V-14B-480P/Wan2.1_VAE.pth",
        "chinese-wav2vec2-base/config.json",
        "chinese-wav2vec2-base/preprocessor_config.json",
        "InfiniteTalk/quant_models/t5_fp8.safetensors",
        "InfiniteTalk/quant_models/t5_map_fp8.json",
    ]
    with pytest.raises(InputError, match="--only adapter"):
        only_files(files, ("adapter",))


def test_revision_is_overridden_for_one_repository_or_for_all_but_the_pull_request() -> None:
    files = plan_files(Need(quant="int8"))
    for_all = at_revisions(files, ("main",))
    assert {file.revisions for file in for_all} == {("main",), files[9].revisions}
    assert by_place(for_all, "chinese-wav2vec2-base/model.safetensors").revisions[0] == "refs/pr/1"
    one = at_revisions(files, ("MeiGen-AI/InfiniteTalk=abc", "TencentGameMate/chinese-wav2vec2-base=refs/pr/2"))
    assert by_place(one, "InfiniteTalk/quant_models/infinitetalk_single_int8.safetensors").revisions == ("abc",)
    assert by_place(one, "chinese-wav2vec2-base/model.safetensors").revisions == ("refs/pr/2",)
    assert by_place(one, "Wan2.1-I2V-14B-480P/config.json") == files[0]
    text = next(file for file in one if file.purpose == "text")
    assert {choice.repository: choice.revisions for choice in text.choices}["MeiGen-AI/InfiniteTalk"] == ("abc",)


def test_published_sums_are_well_formed_and_belong_to_places_of_the_layout() -> None:
    ours = {file.place for file in all_files()}
    assert all(published.place in ours for published in PUBLISHED if published.place)
    assert all(len(published.sha256) == 64 and int(published.sha256, 16) for published in PUBLISHED)
    assert len({published.sha256 for published in PUBLISHED}) == len(PUBLISHED)
