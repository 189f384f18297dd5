"""A prompt that was read before is not read again, and nothing but the same prompt and encoder counts as the same."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from infinitalk_cli import prompt_cache, run_prompts
from infinitalk_cli.job import Job
from infinitalk_cli.profiles import find_profile
from infinitalk_cli.prompt_cache import ENVIRONMENT_VARIABLE, PromptCache, open_prompt_cache
from infinitalk_cli.request import GenerateRequest
from infinitalk_cli.run_prompts import encode_prompts
from infinitalk_cli.sampling.settings import SamplingSettings
from infinitalk_cli.weights import WeightFiles, locate
from training.random_tree import ensure_random_weights

CPU = torch.device("cpu")
FEATURES = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)


@pytest.fixture
def cache(tmp_path: Path) -> PromptCache:
    return PromptCache(tmp_path / "prompts", "an encoder", torch.bfloat16)


@pytest.fixture(scope="module")
def files() -> WeightFiles:
    return locate(ensure_random_weights(), num_speakers=1)


def entries(cache: PromptCache) -> list[Path]:
    return sorted(cache.folder.iterdir())


def test_what_was_kept_is_found_bit_for_bit(cache: PromptCache) -> None:
    assert cache.find("a cat") is None
    cache.keep("a cat", FEATURES)
    found = cache.find("  a   cat ")  # the encoder sees the same
    assert found is not None
    assert torch.equal(found, FEATURES)
    assert found.dtype == FEATURES.dtype
    assert cache.find("a dog") is None
    assert PromptCache(cache.folder, "another encoder", torch.bfloat16).find("a cat") is None


@pytest.mark.parametrize("damage", [b"", b"no tensors", None])
def test_a_damaged_entry_is_as_good_as_none(cache: PromptCache, damage: bytes | None) -> None:
    cache.keep("a cat", FEATURES)
    (path,) = entries(cache)
    path.write_bytes(path.read_bytes()[:-3] if damage is None else damage)
    assert cache.find("a cat") is None
    cache.keep("a cat", FEATURES)
    assert cache.find("a cat") is not None


def test_values_that_no_encoder_gives_are_not_taken(cache: PromptCache) -> None:
    cache.keep("nan", FEATURES * torch.nan)
    cache.keep("float32", FEATURES.float())
    assert cache.find("nan") is None
    assert cache.find("float32") is None


def test_only_the_last_used_stay_and_other_files_are_left_alone(
    cache: PromptCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_cache, "MAX_ENTRIES", 3)
    cache.folder.mkdir()
    (cache.folder / "mine.safetensors").write_bytes(b"")
    for age, prompt in enumerate(["a", "b", "c"]):
        cache.keep(prompt, FEATURES)
        for path in cache.folder.glob("prompt-*"):
            os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 10 - age))
    assert cache.find("a") is not None  # used just now
    cache.keep("d", FEATURES)
    assert [cache.find(prompt) is not None for prompt in ("a", "b", "c", "d")] == [True, False, True, True]
    assert (cache.folder / "mine.safetensors").exists()


def test_a_folder_that_can_not_be_written_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = PromptCache(tmp_path / "file" / "prompts", "an encoder", torch.bfloat16)
    cache.keep("a cat", FEATURES)
    assert cache.find("a cat") is None


def test_another_file_dtype_or_device_is_another_encoder(
    tmp_path: Path, files: WeightFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(tmp_path))
    opened = [
        open_prompt_cache(files, torch.bfloat16, "cpu"),
        open_prompt_cache(files, torch.float32, "cpu"),
        open_prompt_cache(files, torch.float32, "a GPU"),
    ]
    assert len({cache.encoder for cache in opened if cache is not None}) == 3
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "")
    assert open_prompt_cache(files, torch.bfloat16, "cpu") is None


def test_the_encoder_is_not_opened_for_known_prompts(
    tmp_path: Path, files: WeightFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(tmp_path / "prompts"))
    job = Job(Path("x.png"), "a cat", ())
    request = GenerateRequest(job, tmp_path / "o.mp4", find_profile("default"), weights_dir=tmp_path)
    both, one = SamplingSettings(text_guidance_scale=5.0), SamplingSettings(text_guidance_scale=1.0)
    text, null_text = encode_prompts(request, files, both, CPU)
    assert null_text is not None
    assert null_text.shape[0] > text.shape[0]

    monkeypatch.setattr(run_prompts, "build_text_encoder", lambda *_, **__: pytest.fail("opened"))  # pyright: ignore[reportUnknownLambdaType]
    again, null_again = encode_prompts(request, files, both, CPU)
    assert torch.equal(again, text)
    assert null_again is not None
    assert torch.equal(null_again, null_text)
    assert encode_prompts(request, files, one, CPU)[1] is None
