"""Where the weights are: the folder, and in it the files that one run needs.

The layouts are those of the published downloads: the base model, the speech encoder and the InfiniteTalk or MultiTalk
files side by side, or MultiTalk's transformer copied into the base folder as its guide says. Finding files is all that
happens here; nothing is opened but the small index of the shards and headers: those of compact files, which are
preferred where they still say what their sources say, and those of other programs' files under names that nobody knows,
which serve where the published ones are not there (`repackaged.py`).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from infinitalk_cli.compact import FOLDER as COMPACT
from infinitalk_cli.compact import IMAGE_ENCODER as COMPACT_IMAGE_ENCODER
from infinitalk_cli.compact import Form, is_current, text_encoder_place, transformer_place
from infinitalk_cli.errors import InputError, WeightsError
from infinitalk_cli.repackaged import Kind, find_repackaged

Quant = Literal["none", "fp8", "int8"]
Engine = Literal["infinitetalk", "multitalk"]

ENVIRONMENT_VARIABLE = "TALK_WEIGHTS_DIR"
BASE = "Wan2.1-I2V-14B-480P"
SPEECH = "chinese-wav2vec2-base"
INFINITETALK = "InfiniteTalk"
MULTITALK = "MeiGen-MultiTalk"
MULTITALK_ADAPTER = "multitalk.safetensors"
SHARD_INDEX = "diffusion_pytorch_model.safetensors.index.json"
NUM_PUBLISHED_SHARDS = 7
PLAIN_TEXT_ENCODER = f"{BASE}/models_t5_umt5-xxl-enc-bf16.pth"
IMAGE_ENCODER = f"{BASE}/models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"

COMPACT_FORMS: dict[Quant, Form] = {"none": "bf16", "fp8": "fp8", "int8": "int8"}

QUANTISED_TEXT_ENCODERS: dict[Quant, tuple[Quant, ...]] = {"none": (), "fp8": ("fp8",), "int8": ("int8", "fp8")}
"""Which 8-bit text encoders go with a transformer, the best first: InfiniteTalk publishes no int8 one."""


@dataclass(frozen=True)
class WeightFiles:
    """The files of one run, all there.

    `dit_shards`: the base transformer's shards, or the one file that holds base and adapter; then `adapter` is
    None. `quant`, `text_encoder_quant`: the form of the transformer and of the text encoder, chosen apart. `round_to`:
    the form into which a plain transformer is rounded while it is read.
    """

    dit_config: Path
    dit_shards: tuple[Path, ...]
    adapter: Path | None
    quant: Quant
    engine: Engine
    text_encoder: Path
    text_encoder_quant: Quant
    tokenizer: Path
    image_encoder: Path
    vae: Path
    audio_encoder: Path
    audio_encoder_config: Path
    audio_preprocessor_config: Path
    round_to: Quant = "none"


def find_weights_dir(flag: Path | None) -> Path:
    """The weights folder: `flag`, else TALK_WEIGHTS_DIR, else ./weights if there is one, else the user's data folder.

    Whether it is there, and what is in it, is `locate`'s business. Raises: InputError: if `flag` is a file.
    """
    if flag is not None and flag.is_file():
        raise InputError(
            f"--weights-dir {flag} is a file, no folder", hint="name the folder that `talk download` fills"
        )
    if flag is not None:
        return flag
    if said := os.environ.get(ENVIRONMENT_VARIABLE):
        return Path(said)
    here = Path("weights")
    if here.is_dir():
        return here
    import platformdirs  # 20 ms that `talk --help` need not spend

    return Path(platformdirs.user_data_dir("infinitalk-cli", appauthor=False)) / "weights"


def choose_engine(weights_dir: Path, *, num_speakers: int, quant: Quant = "none") -> Engine:
    """The engine whose transformer is there: InfiniteTalk if both are, or none."""
    engines: tuple[Engine, ...] = ("infinitetalk", "multitalk")
    for engine in engines:
        wanted = _adapters(weights_dir, engine, num_speakers) if quant == "none" else ()
        whole = _whole_transformers(weights_dir, engine, num_speakers, quant)
        if whole or any(path.is_file() for path in wanted):
            return engine
    return "infinitetalk"


def locate(
    weights_dir: Path,
    *,
    num_speakers: int,
    quant: Quant = "none",
    engine: Engine | None = None,
    adapter: Path | None = None,
) -> WeightFiles:
    """Find the files of one run.

    Args: num_speakers: chooses InfiniteTalk's single or multi file. engine: None for the one whose files are there.
    adapter: this file instead of the one at the published place; its name tells its engine.
    Raises: WeightsError: naming every file that is missing and the command that fetches them.
    InputError: for an adapter beside an 8-bit transformer, which holds one.
    """
    if adapter is not None and quant != "none":
        raise InputError(f"an {quant} transformer holds its adapter: {adapter} would have no effect")
    if engine is None and adapter is not None:
        engine = "multitalk" if "multitalk" in adapter.name.lower() else "infinitetalk"
    engine = engine or choose_engine(weights_dir, num_speakers=num_speakers, quant=quant)
    base, speech = weights_dir / BASE, weights_dir / SPEECH
    shards, adapter = _transformer(weights_dir, engine, num_speakers, quant, adapter)
    text_encoder, text_encoder_quant = _text_encoder(weights_dir, quant)
    files = WeightFiles(
        dit_config=base / "config.json",
        dit_shards=shards,
        adapter=adapter,
        quant=quant,
        engine=engine,
        text_encoder=text_encoder,
        text_encoder_quant=text_encoder_quant,
        tokenizer=base / "google" / "umt5-xxl" / "tokenizer.json",
        image_encoder=_image_encoder(weights_dir),
        vae=_or_repackaged(base / "Wan2.1_VAE.pth", weights_dir, "vae"),
        audio_encoder=_or_repackaged(speech / "model.safetensors", weights_dir, "audio"),
        audio_encoder_config=speech / "config.json",
        audio_preprocessor_config=speech / "preprocessor_config.json",
    )
    _refuse_missing(files, weights_dir, num_speakers)
    return files


def plain_transformer(weights_dir: Path, *, num_speakers: int, engine: Engine) -> tuple[tuple[Path, ...], Path]:
    """The base transformer's files and the adapter, in the form in which they are published; missing ones too."""
    return _base_shards(weights_dir), _first_present(_adapters(weights_dir, engine, num_speakers))


def all_paths(files: WeightFiles) -> tuple[Path, ...]:
    """Every file of a run, in the order in which messages name them."""
    paths = (
        files.dit_config,
        *files.dit_shards,
        files.adapter,
        files.text_encoder,
        files.tokenizer,
        files.image_encoder,
        files.vae,
        files.audio_encoder_config,
        files.audio_preprocessor_config,
        files.audio_encoder,
    )
    return tuple(path for path in paths if path is not None)


def _adapters(weights_dir: Path, engine: Engine, num_speakers: int) -> Sequence[Path]:
    if engine == "multitalk":
        return weights_dir / MULTITALK / MULTITALK_ADAPTER, weights_dir / BASE / MULTITALK_ADAPTER
    kind = "single" if num_speakers == 1 else "multi"
    published = weights_dir / INFINITETALK
    repackaged = find_repackaged(weights_dir, "adapter_single" if num_speakers == 1 else "adapter_multi")
    cast_to_8_bits = published / "comfyui" / f"infinitetalk_{kind}.safetensors"
    return published / kind / "infinitetalk.safetensors", *([repackaged] if repackaged else []), cast_to_8_bits


def _transformer(
    weights_dir: Path, engine: Engine, num_speakers: int, quant: Quant, adapter: Path | None
) -> tuple[tuple[Path, ...], Path | None]:
    """The transformer's files and its adapter, if that is apart; missing ones too.

    A compact file with LoRAs in it is the last resort, as the published ones are.
    """
    whole = _whole_transformers(weights_dir, engine, num_speakers, quant)
    if quant != "none":
        apart = None if whole else repackaged_transformer(weights_dir, engine, num_speakers, quant)
        return apart or ((next(iter(whole), _quantised(weights_dir, engine, num_speakers, quant)[0]),), None)
    shards, own_adapter = plain_transformer(weights_dir, num_speakers=num_speakers, engine=engine)
    if adapter is not None:
        return shards, adapter
    plain = weights_dir / transformer_place(engine, num_speakers, "bf16")
    if whole and (whole[0] == plain or not all(path.is_file() for path in (*shards, own_adapter))):
        return (whole[0],), None
    return shards, own_adapter


def repackaged_transformer(
    weights_dir: Path, engine: Engine, num_speakers: int, quant: Quant
) -> tuple[tuple[Path], Path] | None:
    """Another program's base in the wanted form, with an adapter in any; None if they are not both there."""
    kinds: dict[Quant, Kind] = {"none": "base_none", "fp8": "base_fp8", "int8": "base_int8"}
    base = find_repackaged(weights_dir, kinds[quant])
    adapter = _first_present(_adapters(weights_dir, engine, num_speakers))
    return ((base,), adapter) if base and adapter.is_file() else None


def _whole_transformers(weights_dir: Path, engine: Engine, num_speakers: int, quant: Quant) -> list[Path]:
    """The files there that hold base and adapter, the best first: compact, published, with LoRAs in them."""
    form = COMPACT_FORMS[quant]
    compact = [
        weights_dir / transformer_place(engine, num_speakers, form, has_loras=has_loras) for has_loras in (False, True)
    ]
    published = [] if quant == "none" else _quantised(weights_dir, engine, num_speakers, quant)
    first, last = ([path] if is_current(path, weights_dir) else [] for path in compact)
    return [*first, *(path for path in published if path.is_file()), *last]


def _quantised(weights_dir: Path, engine: Engine, num_speakers: int, quant: Quant) -> Sequence[Path]:
    """Files that hold base and adapter in 8 bits, those with a speed LoRA in them last.

    MultiTalk publishes fp8 only with the FusionX LoRA in it.
    """
    if engine == "multitalk":
        folder = weights_dir / MULTITALK / "quant_models"
        return folder / f"dit_model_{quant}.safetensors", folder / f"quant_model_{quant}_FusionX.safetensors"
    kind = "single" if num_speakers == 1 else "multi"
    folder, stem = weights_dir / INFINITETALK / "quant_models", f"infinitetalk_{kind}_{quant}"
    return folder / f"{stem}.safetensors", folder / f"{stem}_lora.safetensors"


def _text_encoder(weights_dir: Path, quant: Quant) -> tuple[Path, Quant]:
    """The text encoder and its form: of the wanted one, else of another that is there; the published one if none is."""
    wanted, plain = QUANTISED_TEXT_ENCODERS[quant], weights_dir / PLAIN_TEXT_ENCODER
    # other programs' 8-bit files are the last resort of a plain run
    forms: tuple[Quant, ...] = (*wanted, "none") if wanted else ("none", "fp8", "int8")
    for form in forms:
        found = _text_encoder_in(weights_dir, form, published=form in wanted or form == "none")
        if found is not None:
            return found, form
    if not wanted:
        return plain, "none"
    return weights_dir / INFINITETALK / "quant_models" / f"t5_{wanted[0]}.safetensors", wanted[0]


def _text_encoder_in(weights_dir: Path, form: Quant, *, published: bool) -> Path | None:
    """The text encoder in one form: compact, published, repackaged. Args: published: false for the last alone."""
    if published:
        compact = weights_dir / text_encoder_place(COMPACT_FORMS[form])
        if is_current(compact, weights_dir):
            return compact
        places = [weights_dir / PLAIN_TEXT_ENCODER]
        if form != "none":
            folders = (INFINITETALK, MULTITALK)
            places = [weights_dir / folder / "quant_models" / f"t5_{form}.safetensors" for folder in folders]
        if present := [place for place in places if place.is_file()]:
            return present[0]
    kinds: dict[Quant, Kind] = {"none": "text_none", "fp8": "text_fp8", "int8": "text_int8"}
    return find_repackaged(weights_dir, kinds[form])


def _image_encoder(weights_dir: Path) -> Path:
    compact = weights_dir / COMPACT_IMAGE_ENCODER
    if is_current(compact, weights_dir):
        return compact
    return _or_repackaged(weights_dir / IMAGE_ENCODER, weights_dir, "image")


def _or_repackaged(published: Path, weights_dir: Path, kind: Kind) -> Path:
    """The published file, or another program's if that alone is there."""
    return published if published.is_file() else find_repackaged(weights_dir, kind) or published


def _base_shards(weights_dir: Path) -> tuple[Path, ...]:
    """The base transformer's files by its index, else by name; missing ones too. An adapter in the index is not one.

    If none is there, a repackaged base if there is one.
    """
    base = weights_dir / BASE
    index = base / SHARD_INDEX
    if not index.is_file() and not any(base.glob("diffusion_pytorch_model*.safetensors")):
        repackaged = find_repackaged(weights_dir, "base_none", "base_fp8", "base_int8")
        if repackaged:
            return (repackaged,)
    names = _indexed_names(index) if index.is_file() else _names_by_pattern(base)
    return tuple(base / name for name in sorted(names - {MULTITALK_ADAPTER}))


def _indexed_names(index: Path) -> set[str]:
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return {_plain_name(name) for name in names}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        hint = "fetch it again, or delete it: the shards are then found by their names"
        raise WeightsError(f"the shard index {index} is damaged: {error}", hint=hint) from error


def _plain_name(name: str) -> str:
    """Refuse an index that leads out of its folder."""
    if Path(name).name != name:
        raise ValueError(f"{name!r} is not a file name")
    return name


def _names_by_pattern(base: Path) -> set[str]:
    found = {path.name for path in base.glob("diffusion_pytorch_model*.safetensors")}
    totals = {int(match[1]) for name in found if (match := re.search(r"-of-(\d+)\.safetensors$", name))}
    if found and not totals:
        return found
    total = max(totals, default=NUM_PUBLISHED_SHARDS)
    return {f"diffusion_pytorch_model-{number:05d}-of-{total:05d}.safetensors" for number in range(1, total + 1)}


def _first_present(candidates: Sequence[Path]) -> Path:
    return next((path for path in candidates if path.is_file()), candidates[0])


def _refuse_missing(files: WeightFiles, weights_dir: Path, num_speakers: int) -> None:
    missing = [path for path in all_paths(files) if not path.is_file()]
    if not missing:
        return
    stale = [path for path in sorted(weights_dir.glob(f"{COMPACT}/*.safetensors")) if not is_current(path, weights_dir)]
    raise WeightsError(
        f"{_counted(missing)} missing in {weights_dir}{'' if weights_dir.is_dir() else ', which is not there'}:"
        + "".join(f"\n  {name}" for name in _short(missing, weights_dir))
        + "".join(f"\n  {name} is there, but what it was made of has changed" for name in _short(stale, weights_dir)),
        hint=f"{download_command(num_speakers, files.quant)} fetches them; "
        "--profile demo runs without; if you have them, name their folder with --weights-dir",
    )


def download_command(num_speakers: int, quant: Quant) -> str:
    """The command that fetches the weights of such a run."""
    return f"talk download --speakers {num_speakers} --quant {quant}"


def _counted(missing: Sequence[Path]) -> str:
    return "1 weight file is" if len(missing) == 1 else f"{len(missing)} weight files are"


def _short(paths: Iterable[Path], root: Path) -> list[str]:
    return [str(path.relative_to(root)) if path.is_relative_to(root) else str(path) for path in paths]
