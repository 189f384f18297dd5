"""The random weights: whole, the same every time, safe to build twice at once."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from infinitalk_cli.errors import EnvironmentUnfitError
from infinitalk_cli.networks import (
    build_audio_encoder,
    build_dit,
    build_image_encoder,
    build_text_encoder,
    build_vae,
)
from infinitalk_cli.weights import Engine, locate
from tests.parity.reference import manifest as reference_manifest
from training import random_tree
from training.random_layout import BASE, SIZES, SPEECH, TOKENIZER, random_manifest
from training.random_tree import ensure_random_weights, rule_digest, rule_tensor, tree_names, write_tree

SMALL: Mapping[str, Any] = {
    "files": {
        "plain/one.safetensors": {
            "format": "safetensors",
            "seed": 7,
            "tensors": {
                "layer.weight": {"shape": [3, 4], "dtype": "F32", "scale": 0.5, "offset": 1.0},
                "layer.bias": {"shape": [3], "dtype": "F32", "scale": 0.1, "offset": 0.0},
                "level": {"shape": [], "dtype": "F32", "scale": 0.0, "offset": 2.5},
            },
        },
        "plain/two.pth": {
            "format": "pth",
            "seed": 8,
            "tensors": {"layer.bias": {"shape": [3], "dtype": "F16", "scale": 0.1, "offset": 5.0}},
        },
    },
    "derived_files": {
        "quantised/one.safetensors": {
            "format": "safetensors",
            "derived_from": ["plain/o?e.safetensors", "plain/two.pth"],
            "qtype": "qint8",
            "tensors": {
                "layer.weight._data": {},
                "layer.weight._scale": {},
                "layer.input_scale": {},
                "layer.bias": {},
            },
        },
        "quantised/one.json": {"format": "json", "content": {"layer": {"weights": "qint8"}}},
    },
    "json_files": {"config.json": {"dim": 4}},
    "copied_dirs": {"words": "tokenizer/"},
}


@pytest.fixture(scope="module")
def random_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_random_weights(tmp_path_factory.mktemp("cache"))


def folder_digest(folder: Path) -> str:
    """A digest of all names and contents."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".pth":
        return torch.load(path, weights_only=True, mmap=True)
    return load_file(path)


def test_rule_gives_the_published_values() -> None:
    for probe in reference_manifest()["rule"]["self_test"]:
        form = {"shape": probe["shape"], "dtype": "F32", "scale": 1.0, "offset": 0.0}
        assert rule_tensor(probe["name"], probe["seed"], form).tolist() == probe["values"]


def test_tree_holds_every_kind_of_file(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "tokenizer").mkdir(parents=True)
    (source / "tokenizer" / "tokenizer.json").write_text("{}")
    tree = tmp_path / "tree"
    write_tree(SMALL, tree, source=source)
    assert sorted(path.relative_to(tree).as_posix() for path in tree.rglob("*") if path.is_file()) == [
        "config.json",
        "plain/one.safetensors",
        "plain/two.pth",
        "quantised/one.json",
        "quantised/one.safetensors",
        "words/tokenizer.json",
    ]
    assert json.loads((tree / "config.json").read_text()) == {"dim": 4}
    assert read_tensors(tree / "plain/one.safetensors")["level"].item() == 2.5
    assert read_tensors(tree / "plain/two.pth")["layer.bias"].dtype == torch.float16


def test_only_the_named_files_are_written(tmp_path: Path) -> None:
    write_tree(SMALL, tmp_path, only=["plain/two.pth"])
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["two.pth"]


def test_unknown_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"plain/three\.pth"):
        write_tree(SMALL, tmp_path, only=["plain/three.pth"])


def test_quantised_rows_multiply_back_within_half_a_step(tmp_path: Path) -> None:
    write_tree(SMALL, tmp_path, only=["plain/one.safetensors", "plain/two.pth", "quantised/one.safetensors"])
    plain = read_tensors(tmp_path / "plain/one.safetensors")["layer.weight"]
    quantised = read_tensors(tmp_path / "quantised/one.safetensors")
    data, scale = quantised["layer.weight._data"], quantised["layer.weight._scale"]
    assert data.dtype == torch.int8
    assert data.abs().amax(dim=1).tolist() == [127, 127, 127]
    assert ((data * scale - plain).abs() <= scale * 0.5001).all()
    assert quantised["layer.input_scale"].item() == 1.0


def test_later_source_of_a_quantised_file_wins(tmp_path: Path) -> None:
    write_tree(SMALL, tmp_path, only=["plain/two.pth", "quantised/one.safetensors"])
    quantised = read_tensors(tmp_path / "quantised/one.safetensors")
    assert torch.equal(quantised["layer.bias"], read_tensors(tmp_path / "plain/two.pth")["layer.bias"])


def test_tree_holds_the_manifest(random_weights: Path) -> None:
    on_disk = {path.relative_to(random_weights).as_posix() for path in random_weights.rglob("*") if path.is_file()}
    assert on_disk == {*tree_names(random_manifest()), f"{TOKENIZER}/tokenizer.json"}
    for name, entry in random_manifest()["files"].items():
        tensors = read_tensors(random_weights / name)
        assert {key: list(value.shape) for key, value in tensors.items()} == {
            key: form["shape"] for key, form in entry["tensors"].items()
        }
        assert all(torch.isfinite(value.float()).all() for value in tensors.values())


def test_names_are_the_published_ones() -> None:
    """Layer numbers aside; only the tensors that nobody reads are left out."""
    unread = re.compile(r"textual\.|quantizer\.|project_")
    published = reference_manifest()["files"]

    def names(files: Mapping[str, Any], matching: str) -> set[str]:
        found = {tensor for file, entry in files.items() if re.search(matching, file) for tensor in entry["tensors"]}
        return {re.sub(r"(blocks|layers|transformer)\.\d+\.", r"\1.N.", name) for name in found}

    files = ("-of-", "single/", "multi/", "multitalk", "models_t5", "models_clip", "VAE", "wav2vec2")
    for file in files:
        wanted = {name for name in names(published, file) if not unread.match(name)}
        assert wanted, file
        assert names(random_manifest()["files"], file) == wanted, file


def test_index_lists_every_tensor_where_it_is(random_weights: Path) -> None:
    index = json.loads((random_weights / BASE / "diffusion_pytorch_model.safetensors.index.json").read_text())
    shards = {shard: load_file(random_weights / BASE / shard) for shard in set(index["weight_map"].values())}
    assert len(shards) == 7
    assert {name: shard for shard, tensors in shards.items() for name in tensors} == index["weight_map"]
    assert index["metadata"]["total_size"] == sum(v.nbytes for tensors in shards.values() for v in tensors.values())


def test_single_and_multi_adapters_differ(random_weights: Path) -> None:
    single, multi = (
        load_file(random_weights / "InfiniteTalk" / kind / "infinitetalk.safetensors") for kind in ("single", "multi")
    )
    assert single.keys() == multi.keys()
    assert not torch.equal(single["audio_proj.proj1.weight"], multi["audio_proj.proj1.weight"])


def test_tokenizer_spells_any_script_and_ends(random_weights: Path) -> None:
    tokenizer = Tokenizer.from_file(str(random_weights / TOKENIZER / "tokenizer.json"))
    rows = random_manifest()["files"][f"{BASE}/models_t5_umt5-xxl-enc-bf16.pth"]["tensors"]["token_embedding.weight"]
    assert tokenizer.get_vocab_size() == rows["shape"][0]
    assert tokenizer.encode("").ids == [1]
    for text in ("A woman talks.", "Eine Frau spricht über Öl", "你好 🙂"):
        ids = tokenizer.encode(text).ids
        assert len(ids) > len(text)
        assert ids[-1] == 1
        assert 3 not in ids  # no unknown token
        assert len(set(ids)) > 5


def test_speech_preprocessor_leaves_samples_alone(random_weights: Path) -> None:
    assert json.loads((random_weights / SPEECH / "preprocessor_config.json").read_text())["do_normalize"] is False


def test_two_builds_are_equal_to_the_last_byte(random_weights: Path, tmp_path: Path) -> None:
    again = ensure_random_weights(tmp_path)
    assert again.name == random_weights.name
    assert folder_digest(again) == folder_digest(random_weights)


def test_second_call_writes_nothing(random_weights: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in random_weights.rglob("*")}
    assert ensure_random_weights(random_weights.parent) == random_weights
    assert {path: path.stat().st_mtime_ns for path in random_weights.rglob("*")} == before


def test_file_that_the_cache_lost_comes_back(random_weights: Path) -> None:
    lost = random_weights / BASE / "config.json"
    content = lost.read_bytes()
    lost.unlink()
    assert ensure_random_weights(random_weights.parent) == random_weights
    assert lost.read_bytes() == content


def test_failed_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(EnvironmentUnfitError, match="No space left on device"):
        ensure_random_weights(tmp_path)
    assert list(tmp_path.iterdir()) == []


def building(cache: Path) -> subprocess.Popen[bytes]:
    """Another process that builds the weights in `cache`."""
    code = (
        "import sys, pathlib; from training import random_tree as r; r.ensure_random_weights(pathlib.Path(sys.argv[1]))"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", code, str(cache)], env=environment, cwd=Path(__file__).parents[2])


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "took too long"
        time.sleep(0.005)


@pytest.mark.slow
def test_killed_build_leaves_no_tree_and_is_cleaned_up_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = building(tmp_path)
    wait_until(lambda: any(tmp_path.glob("*.unfinished-*/*")))
    process.kill()
    process.wait()
    assert not (tmp_path / f"random-weights-{rule_digest()}").exists()
    monkeypatch.setattr(random_tree, "STALE_BUILD_S", -1.0)
    tree = ensure_random_weights(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [tree.name]


@pytest.mark.slow
def test_two_processes_at_once_agree(random_weights: Path, tmp_path: Path) -> None:
    processes = [building(tmp_path), building(tmp_path)]
    assert [process.wait(timeout=60) for process in processes] == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == [random_weights.name]
    assert folder_digest(tmp_path / random_weights.name) == folder_digest(random_weights)


def test_every_network_loads_from_the_random_weights(random_weights: Path) -> None:
    """One speaker, two speakers and MultiTalk; the loaders are strict, so a wrong name or shape fails."""
    kinds: list[tuple[int, Engine]] = [(1, "infinitetalk"), (2, "infinitetalk"), (2, "multitalk")]
    for num_speakers, engine in kinds:
        files = locate(random_weights, num_speakers=num_speakers, engine=engine)
        assert build_dit(files, dtype=torch.float32).config.num_layers == SIZES.dit_layers
    files = locate(random_weights, num_speakers=1)
    assert build_text_encoder(files, dtype=torch.float32).encode("Hello").shape == (7, SIZES.text_dim)
    assert build_image_encoder(files, dtype=torch.float32).encode(torch.zeros(1, 3, 32, 32)).shape == (1, 257, 1280)
    assert build_audio_encoder(files).embed(torch.rand(16000) - 0.5).shape == (25, 12, 768)


def test_signals_neither_vanish_nor_saturate(random_weights: Path) -> None:
    files = locate(random_weights, num_speakers=1)
    generator = torch.Generator().manual_seed(1)
    vae, dit = build_vae(files), build_dit(files, dtype=torch.float32)
    with torch.inference_mode():
        frames = vae.decode(torch.randn(1, 16, 3, 4, 4, generator=generator))
        context = dit.embed_context(
            torch.randn(5, SIZES.text_dim, generator=generator), torch.randn(1, 257, 1280, generator=generator)
        )
        audio = dit.embed_audio(torch.randn(1, 9, 5, 12, 768, generator=generator))
        noise, condition = (torch.randn(1, channels, 3, 4, 4, generator=generator) for channels in (16, 20))
        velocity = dit(noise, condition, torch.tensor(500.0), context, audio)
    assert 0.1 < frames.std() < 0.7
    assert (frames.abs() > 0.99).float().mean() < 0.05
    assert 0.3 < velocity.std() < 3.0
