"""Which published files a run needs: a literal table of what is where upstream, and `plan_files`, which picks from it.

Nothing here touches the disk or the network. Names are exact, so that a download can neither take a pickle beside a
safetensors file nor 169 GB where 32 do. Sizes and digests are not here: the hub states them when a download is planned.

Every file names the revisions to take it from, the first that is still there. They are commits where a commit is known
to hold the files described (spec: the commits that independent installers pin); a repository of LoRAs has only its
main branch. The speech encoder's weights come from the conversion pull request of its repository: the main branch
has them only as a pickle, which recent libraries refuse to open.

A file that upstream lacks may have stand-ins (`otherwise`): there is no 8-bit text encoder of the int8 kind beside
InfiniteTalk, no one-speaker fp8 file with a LoRA in it, and no plain fp8 file of MultiTalk.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal, get_args

from infinitalk_cli.errors import InputError
from infinitalk_cli.voices import SPEECH_SYNTHESIS, VOICES
from infinitalk_cli.weights import BASE, INFINITETALK, MULTITALK, NUM_PUBLISHED_SHARDS, SPEECH, Engine, Quant

Purpose = Literal["transformer", "adapter", "text", "tokenizer", "image", "vae", "audio", "lora", "tts"]
PURPOSES: tuple[Purpose, ...] = get_args(Purpose)

MAIN_BRANCH = "main"


@dataclass(frozen=True)
class Repository:
    """A repository of the hub, and the folder under the weights folder where its files go; "" for the top."""

    name: str
    revisions: tuple[str, ...]
    folder: str = ""


@dataclass(frozen=True)
class HubFile:
    """A published file.

    `path`: in its repository. `place`: where it belongs under the weights folder, with forward slashes. `revisions`:
    the first that exists is taken. `optional`: nothing is wrong if upstream lacks it. `otherwise`: what does the same
    job if it is not there, the best first.
    """

    repository: str
    revisions: tuple[str, ...]
    path: str
    place: str
    purpose: Purpose
    optional: bool = False
    otherwise: tuple[HubFile, ...] = ()

    @property
    def choices(self) -> tuple[HubFile, ...]:
        """The file itself, then its stand-ins."""
        return (self, *self.otherwise)


@dataclass(frozen=True)
class Need:
    """What a run asks of the weights.

    `merged_lora`: the 8-bit file that has a speed LoRA in it already. `loras`: names out of `LORAS`. `voices`: of the
    speech synthesis, none if there is no text to speak.
    """

    num_speakers: int = 1
    quant: Quant = "none"
    engine: Engine = "infinitetalk"
    merged_lora: bool = False
    loras: tuple[str, ...] = ()
    voices: tuple[str, ...] = ()


WAN = Repository("Wan-AI/Wan2.1-I2V-14B-480P", ("6b73f84e66371cdfe870c72acd6826e1d61cf279", MAIN_BRANCH), BASE)
WAV2VEC = Repository(
    "TencentGameMate/chinese-wav2vec2-base", ("3991242c806928916fff4a8c0e4f76acf661b743", MAIN_BRANCH), SPEECH
)
WAV2VEC_CONVERTED = replace(WAV2VEC, revisions=("refs/pr/1", "5f7a6cfdfc5440ec78748f79a9dd66f077c2b463"))
INFINITETALK_HUB = Repository(
    "MeiGen-AI/InfiniteTalk", ("d59847ebdacf19245bfca3fb23311c0cada8378a", MAIN_BRANCH), INFINITETALK
)
MULTITALK_HUB = Repository("MeiGen-AI/MeiGen-MultiTalk", (MAIN_BRANCH,), MULTITALK)
KOKORO = Repository("hexgrad/Kokoro-82M", ("f3ff3571791e39611d31c381e3a41a3af07b4987", MAIN_BRANCH), SPEECH_SYNTHESIS)
FUSIONX = Repository("vrgamedevgirl84/Wan14BT2VFusioniX", (MAIN_BRANCH,))
REPACKED = Repository("Kijai/WanVideo_comfy", (MAIN_BRANCH,))

REPOSITORIES = (WAN, WAV2VEC, INFINITETALK_HUB, MULTITALK_HUB, KOKORO, FUSIONX, REPACKED)


def _file(repository: Repository, path: str, purpose: Purpose, *, optional: bool = False) -> HubFile:
    place = f"{repository.folder}/{path}" if repository.folder else path.rpartition("/")[2]
    return HubFile(repository.name, repository.revisions, path, place, purpose, optional)


LORAS: dict[str, HubFile] = {
    "lightx2v": _file(REPACKED, "Lightx2v/lightx2v_I2V_14B_480p_cfg_step_distill_rank64_bf16.safetensors", "lora"),
    "lightx2v-rank32": _file(
        REPACKED, "Lightx2v/lightx2v_I2V_14B_480p_cfg_step_distill_rank32_bf16.safetensors", "lora"
    ),
    "lightx2v-t2v": _file(REPACKED, "Wan21_T2V_14B_lightx2v_cfg_step_distill_lora_rank32.safetensors", "lora"),
    "fusionx": _file(FUSIONX, "FusionX_LoRa/Wan2.1_I2V_14B_FusionX_LoRA.safetensors", "lora"),
}
"""The speed LoRAs by the names that `--lora` takes: 4 steps for this model, smaller, for its sister; 8 steps."""

COMMON: tuple[HubFile, ...] = (
    _file(WAN, "config.json", "transformer"),
    *(
        _file(WAN, f"google/umt5-xxl/{name}", "tokenizer")
        for name in ("special_tokens_map.json", "spiece.model", "tokenizer.json", "tokenizer_config.json")
    ),
    _file(WAN, "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth", "image"),
    _file(WAN, "Wan2.1_VAE.pth", "vae"),
    _file(WAV2VEC, "config.json", "audio"),
    _file(WAV2VEC, "preprocessor_config.json", "audio"),
    _file(WAV2VEC_CONVERTED, "model.safetensors", "audio"),
)
"""What every run needs."""

SHARDS: tuple[HubFile, ...] = tuple(
    _file(
        WAN,
        f"diffusion_pytorch_model-{number:05d}-of-{NUM_PUBLISHED_SHARDS:05d}.safetensors",
        "transformer",
    )
    for number in range(1, NUM_PUBLISHED_SHARDS + 1)
)

PLAIN_TEXT_ENCODER = _file(WAN, "models_t5_umt5-xxl-enc-bf16.pth", "text")


def plan_files(need: Need) -> tuple[HubFile, ...]:
    """The published files that a run with this need reads, each once.

    Raises: InputError: for an unknown LoRA or voice, or a merged LoRA without 8-bit weights.
    """
    if need.merged_lora and need.quant == "none":
        raise InputError("only the 8-bit files are published with a LoRA in them", hint="add --quant fp8 or int8")
    transformer = _plain_transformer(need) if need.quant == "none" else _quantised_transformer(need)
    text = (PLAIN_TEXT_ENCODER,) if need.quant == "none" else _quantised_text_encoder(need)
    loras = (_known(LORAS, name, "LoRA") for name in need.loras)
    return tuple(dict.fromkeys((*COMMON, *transformer, *text, *loras, *_speech_synthesis(need.voices))))


def all_files() -> tuple[HubFile, ...]:
    """Every file that some need asks for, stand-ins included, each once."""
    needs = [
        Need(speakers, quant, engine, merged_lora=merged, loras=tuple(LORAS), voices=VOICES)
        for speakers in (1, 2)
        for quant in get_args(Quant)
        for engine in get_args(Engine)
        for merged in (False, True)
        if not (merged and quant == "none")
    ]
    planned = (choice for need in needs for file in plan_files(need) for choice in file.choices)
    return tuple({file.place: replace(file, otherwise=()) for file in planned}.values())


def only_files(files: Iterable[HubFile], patterns: Iterable[str]) -> tuple[HubFile, ...]:
    """The files that one of the patterns names: a purpose, or a place with wildcards.

    Raises: InputError: for a pattern that names none of them.
    """
    files, chosen = tuple(files), dict[HubFile, None]()
    for pattern in patterns:
        named = [file for file in files if _is_named(file, pattern)]
        if not named:
            raise _not_in_plan(pattern, files)
        chosen.update(dict.fromkeys(named))
    return tuple(file for file in files if file in chosen)


def at_revisions(files: Iterable[HubFile], overrides: Iterable[str]) -> tuple[HubFile, ...]:
    """The files at other revisions.

    Args: overrides: REPOSITORY=REVISION, or a REVISION for all but the speech encoder's weights, which other branches
        don't have.
    Raises: InputError: for a repository that is not in the table.
    """
    wanted = dict(_parse_override(text) for text in overrides)
    return tuple(_at_revision(file, wanted) for file in files)


def _not_in_plan(pattern: str, files: Sequence[HubFile]) -> InputError:
    """Why a pattern names nothing: a part that this run doesn't have, or no part at all."""
    asked_for = {
        "lora": "--lora NAME or --preset NAME asks for one",
        "tts": "--tts or --voice NAME asks for it",
        "adapter": "the 8-bit transformer holds it; --quant none has one",
    }
    if pattern in asked_for:
        return InputError(f"--only {pattern}: this run has none", hint=asked_for[pattern])
    parts = ", ".join(PURPOSES)
    near = dict.fromkeys(file.place for file in files if pattern.lower() in file.place.lower())
    hint = f"one of {parts}; or a path, with wildcards"
    return InputError(
        f"--only {pattern}: no such part or file", hint=f"{hint}, such as {next(iter(near))}" if near else hint
    )


def _is_named(file: HubFile, pattern: str) -> bool:
    return pattern == file.purpose or any(fnmatchcase(choice.place, pattern) for choice in file.choices)


def _parse_override(text: str) -> tuple[str, str]:
    repository, equals, revision = text.rpartition("=")
    known = [known.name for known in REPOSITORIES]
    if equals and repository not in known:
        raise InputError(f"--revision: {repository!r} is not a repository of ours", hint=f"one of {', '.join(known)}")
    return repository, revision


def _at_revision(file: HubFile, wanted: dict[str, str]) -> HubFile:
    for_all = None if file.revisions == WAV2VEC_CONVERTED.revisions else wanted.get("")
    revision = wanted.get(file.repository, for_all)
    otherwise = tuple(_at_revision(choice, wanted) for choice in file.otherwise)
    return replace(file, revisions=(revision,) if revision else file.revisions, otherwise=otherwise)


def _plain_transformer(need: Need) -> Iterator[HubFile]:
    yield from SHARDS
    if need.engine == "multitalk":
        yield _file(MULTITALK_HUB, "multitalk.safetensors", "adapter")
    else:
        yield _file(INFINITETALK_HUB, f"{_kind(need)}/infinitetalk.safetensors", "adapter")


def _quantised_transformer(need: Need) -> Iterator[HubFile]:
    """Base and adapter in one 8-bit file, with the list of its 8-bit modules, which a run can do without."""
    if need.engine == "multitalk":
        yield from _quantised_multitalk(need)
        return
    stem = f"quant_models/infinitetalk_{_kind(need)}_{need.quant}" + ("_lora" if need.merged_lora else "")
    int8 = _file(INFINITETALK_HUB, f"quant_models/infinitetalk_{_kind(need)}_int8_lora.safetensors", "transformer")
    file = _file(INFINITETALK_HUB, f"{stem}.safetensors", "transformer")
    has_stand_in = need.merged_lora and file.path != int8.path
    yield replace(file, otherwise=(int8,) if has_stand_in else ())
    yield _file(INFINITETALK_HUB, f"{stem}.json", "transformer", optional=True)


def _quantised_multitalk(need: Need) -> Iterator[HubFile]:
    fused = _file(MULTITALK_HUB, f"quant_models/quant_model_{need.quant}_FusionX.safetensors", "transformer")
    if need.merged_lora or need.quant == "fp8":
        yield fused
        yield _file(
            MULTITALK_HUB, f"quant_models/quantization_map_{need.quant}_FusionX.json", "transformer", optional=True
        )
        return
    yield replace(
        _file(MULTITALK_HUB, f"quant_models/dit_model_{need.quant}.safetensors", "transformer"), otherwise=(fused,)
    )
    yield _file(MULTITALK_HUB, f"quant_models/dit_model_map_{need.quant}.json", "transformer", optional=True)


def _quantised_text_encoder(need: Need) -> Iterator[HubFile]:
    """The text encoder of the same form; InfiniteTalk has fp8 alone, MultiTalk has both."""
    own = INFINITETALK_HUB if need.engine == "infinitetalk" and need.quant == "fp8" else MULTITALK_HUB
    wanted = _file(own, f"quant_models/t5_{need.quant}.safetensors", "text")
    forms: tuple[Quant, ...] = ("fp8",) if need.quant == "fp8" else ("int8", "fp8")
    others = (
        _file(repository, f"quant_models/t5_{form}.safetensors", "text")
        for form in forms
        for repository in (INFINITETALK_HUB, MULTITALK_HUB)
    )
    yield replace(wanted, otherwise=tuple(other for other in others if other != wanted))
    yield _file(own, f"quant_models/t5_map_{need.quant}.json", "text", optional=True)


def _speech_synthesis(voices: tuple[str, ...]) -> Iterator[HubFile]:
    if not voices:
        return
    yield _file(KOKORO, "config.json", "tts")
    yield _file(KOKORO, "kokoro-v1_0.pth", "tts")
    known = {name: _file(KOKORO, f"voices/{name}.pt", "tts") for name in VOICES}
    yield from (_known(known, name, "voice") for name in voices)


def _kind(need: Need) -> str:
    return "single" if need.num_speakers == 1 else "multi"


def _known(table: dict[str, HubFile], name: str, what: str) -> HubFile:
    if name not in table:
        raise InputError(f"there is no {what} {name!r}", hint=f"one of {', '.join(table)}")
    return table[name]
