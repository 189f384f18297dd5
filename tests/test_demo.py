"""The demo's weights: whole, the same every time, safe to build twice at once; and the examples beside them."""

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

import av
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from infinitalk_cli import demo
from infinitalk_cli.demo import ensure_demo_weights, rule_digest, rule_tensor, tree_names, write_tree
from infinitalk_cli.demo_layout import BASE, SIZES, SPEECH, TOKENIZER, demo_manifest
from infinitalk_cli.errors import EnvironmentUnfitError
from infinitalk_cli.job import read_job
from infinitalk_cli.networks import (
    build_audio_encoder,
    build_dit,
    build_image_encoder,
    build_text_encoder,
    build_vae,
)
from infinitalk_cli.weights import Engine, locate
from tests.parity.reference import manifest as reference_manifest

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
def demo_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_demo_weights(tmp_path_factory.mktemp("cache"))


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


def test_demo_tree_holds_the_manifest(demo_weights: Path) -> None:
    on_disk = {path.relative_to(demo_weights).as_posix() for path in demo_weights.rglob("*") if path.is_file()}
    assert on_disk == {*tree_names(demo_manifest()), f"{TOKENIZER}/tokenizer.json"}
    for name, entry in demo_manifest()["files"].items():
        tensors = read_tensors(demo_weights / name)
        assert {key: list(value.shape) for key, value in tensors.items()} == {
            key: form["shape"] for key, form in entry["tensors"].items()
        }
        assert all(torch.isfinite(value.float()).all() for value in tensors.values())


def test_demo_names_are_the_published_ones() -> None:
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
        assert names(demo_manifest()["files"], file) == wanted, file


def test_index_lists_every_tensor_where_it_is(demo_weights: Path) -> None:
    index = json.loads((demo_weights / BASE / "diffusion_pytorch_model.safetensors.index.json").read_text())
    shards = {shard: load_file(demo_weights / BASE / shard) for shard in set(index["weight_map"].values())}
    assert len(shards) == 7
    assert {name: shard for shard, tensors in shards.items() for name in tensors} == index["weight_map"]
    assert index["metadata"]["total_size"] == sum(v.nbytes for tensors in shards.values() for v in tensors.values())


def test_single_and_multi_adapters_differ(demo_weights: Path) -> None:
    single, multi = (
        load_file(demo_weights / "InfiniteTalk" / kind / "infinitetalk.safetensors") for kind in ("single", "multi")
    )
    assert single.keys() == multi.keys()
    assert not torch.equal(single["audio_proj.proj1.weight"], multi["audio_proj.proj1.weight"])


def test_tokenizer_spells_any_script_and_ends(demo_weights: Path) -> None:
    tokenizer = Tokenizer.from_file(str(demo_weights / TOKENIZER / "tokenizer.json"))
    rows = demo_manifest()["files"][f"{BASE}/models_t5_umt5-xxl-enc-bf16.pth"]["tensors"]["token_embedding.weight"]
    assert tokenizer.get_vocab_size() == rows["shape"][0]
    assert tokenizer.encode("").ids == [1]
    for text in ("A woman talks.", "Eine Frau spricht über Öl", "你好 🙂"):
        ids = tokenizer.encode(text).ids
        assert len(ids) > len(text)
        assert ids[-1] == 1
        assert 3 not in ids  # no unknown token
        assert len(set(ids)) > 5


def test_speech_preprocessor_leaves_samples_alone(demo_weights: Path) -> None:
    assert json.loads((demo_weights / SPEECH / "preprocessor_config.json").read_text())["do_normalize"] is False


def test_two_builds_are_equal_to_the_last_byte(demo_weights: Path, tmp_path: Path) -> None:
    again = ensure_demo_weights(tmp_path)
    assert again.name == demo_weights.name
    assert folder_digest(again) == folder_digest(demo_weights)


def test_second_call_writes_nothing(demo_weights: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in demo_weights.rglob("*")}
    assert ensure_demo_weights(demo_weights.parent) == demo_weights
    assert {path: path.stat().st_mtime_ns for path in demo_weights.rglob("*")} == before


def test_file_that_the_cache_lost_comes_back(tmp_path: Path) -> None:
    tree = ensure_demo_weights(tmp_path)
    lost = tree / BASE / "config.json"
    content = lost.read_bytes()
    lost.unlink()
    assert ensure_demo_weights(tmp_path) == tree
    assert lost.read_bytes() == content


def test_failed_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(EnvironmentUnfitError, match="No space left on device"):
        ensure_demo_weights(tmp_path)
    assert list(tmp_path.iterdir()) == []


def building(cache: Path) -> subprocess.Popen[bytes]:
    """Another process that builds the demo's weights in `cache`."""
    code = "import sys, pathlib; from infinitalk_cli.demo import ensure_demo_weights as e; e(pathlib.Path(sys.argv[1]))"
    return subprocess.Popen([sys.executable, "-c", code, str(cache)], env={**os.environ, "OMP_NUM_THREADS": "1"})


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "took too long"
        time.sleep(0.005)


def test_killed_build_leaves_no_tree_and_is_cleaned_up_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = building(tmp_path)
    wait_until(lambda: any(tmp_path.glob("*.unfinished-*/*")))
    process.kill()
    process.wait()
    assert not (tmp_path / f"demo-weights-{rule_digest()}").exists()
    monkeypatch.setattr(demo, "STALE_BUILD_S", -1.0)
    tree = ensure_demo_weights(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [tree.name]


def test_two_processes_at_once_agree(demo_weights: Path, tmp_path: Path) -> None:
    processes = [building(tmp_path), building(tmp_path)]
    assert [process.wait(timeout=60) for process in processes] == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == [demo_weights.name]
    assert folder_digest(tmp_path / demo_weights.name) == folder_digest(demo_weights)


def test_every_network_loads_from_the_demo_weights(demo_weights: Path) -> None:
    """One speaker, two speakers and MultiTalk; the loaders are strict, so a wrong name or shape fails."""
    kinds: list[tuple[int, Engine]] = [(1, "infinitetalk"), (2, "infinitetalk"), (2, "multitalk")]
    for num_speakers, engine in kinds:
        files = locate(demo_weights, num_speakers=num_speakers, engine=engine)
        assert build_dit(files, dtype=torch.float32).config.num_layers == SIZES.dit_layers
    files = locate(demo_weights, num_speakers=1)
    assert build_text_encoder(files, dtype=torch.float32).encode("Hello").shape == (7, SIZES.text_dim)
    assert build_image_encoder(files, dtype=torch.float32).encode(torch.zeros(1, 3, 32, 32)).shape == (1, 257, 1280)
    assert build_audio_encoder(files).embed(torch.rand(16000) - 0.5).shape == (25, 12, 768)


def test_signals_neither_vanish_nor_saturate(demo_weights: Path) -> None:
    files = locate(demo_weights, num_speakers=1)
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
