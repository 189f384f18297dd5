"""The voices of the speech synthesis, and where their files are. Kokoro: one network for all, a small file a voice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path

from infinitalk_cli.errors import EnvironmentUnfitError, InputError, WeightsError

SPEECH_SYNTHESIS = "Kokoro-82M"
"""Its folder under the weights folder."""

LANGUAGES = {
    "a": "American English",
    "b": "British English",
    "e": "Spanish",
    "f": "French",
    "h": "Hindi",
    "i": "Italian",
    "j": "Japanese",
    "p": "Brazilian Portuguese",
    "z": "Mandarin Chinese",
}
"""By the first letter of a voice's name. The second one is f or m, for a woman or a man."""

VOICES: tuple[str, ...] = tuple(
    f"{prefix}_{name}"
    for prefix, names in {
        "af": "heart alloy aoede bella jessica kore nicole nova river sarah sky",
        "am": "adam echo eric fenrir liam michael onyx puck santa",
        "bf": "alice emma isabella lily",
        "bm": "daniel fable george lewis",
        "ef": "dora",
        "em": "alex santa",
        "ff": "siwis",
        "hf": "alpha beta",
        "hm": "omega psi",
        "if": "sara",
        "im": "nicola",
        "jf": "alpha gongitsune nezumi tebukuro",
        "jm": "kumo",
        "pf": "dora",
        "pm": "alex santa",
        "zf": "xiaobei xiaoni xiaoxiao xiaoyi",
        "zm": "yunjian yunxi yunxia yunyang",
    }.items()
    for name in names.split()
)
"""Every published voice."""

DEFAULT_VOICES = ("af_heart", "am_adam", "am_michael")
"""A woman's voice and two men's. The first two are those of the first and the second speaker."""

INSTALL = 'pip install "infinitalk-cli[tts]"'
"""In the quotes that every shell takes."""


@dataclass(frozen=True)
class VoiceFiles:
    """What speech is made with. `voices`: the file of each speaker's voice, None for one who needs none."""

    config: Path
    network: Path
    voices: tuple[Path | None, ...]


def language_of(voice: Path) -> str:
    """The letter of a voice's language; American English for a name that says none."""
    letter = voice.stem[:1]
    return letter if letter in LANGUAGES and voice.stem[1:3] in ("f_", "m_") else "a"


def refuse_without_synthesis() -> None:
    """Raises: EnvironmentUnfitError: if the packages of the speech synthesis are not installed."""
    missing = [name for name in ("kokoro", "misaki") if find_spec(name) is None]
    if missing:
        what = "package" if len(missing) == 1 else "packages"
        hint = f"{INSTALL} (Python 3.10 to 3.12), or give recorded speech with --audio"
        raise EnvironmentUnfitError(f"speech from text needs the {what} {' and '.join(missing)}", hint=hint)


def locate_voices(weights_dir: Path, voices: Mapping[int, str]) -> VoiceFiles:
    """The files of the synthesis and of each voice, a name or a file of one's own, by the speaker's number.

    Raises: InputError: for an unknown voice. WeightsError: if files are missing, with the command that fetches them.
    """
    folder = weights_dir / SPEECH_SYNTHESIS
    paths = {number: _voice_file(folder, voice) for number, voice in voices.items()}
    files = VoiceFiles(
        folder / "config.json",
        folder / "kokoro-v1_0.pth",
        tuple(paths.get(number) for number in range(max(paths) + 1)),
    )
    missing = [path for path in (files.config, files.network, *paths.values()) if not path.is_file()]
    if missing:
        named = " ".join(f"--voice {path.stem}" for path in dict.fromkeys(paths.values()) if path.stem in VOICES)
        names = ", ".join(str(path.relative_to(folder)) for path in dict.fromkeys(missing))
        raise WeightsError(
            f"the speech synthesis is not complete in {folder}: {names} missing",
            hint=f"talk download --only tts {named or '--tts'} fetches them; files that you have go into that folder",
        )
    return files


def _voice_file(folder: Path, voice: str) -> Path:
    """Where a voice's file is or belongs. The reference programs name voices by their paths in their own folder."""
    own = Path(voice)
    if own.suffix == ".pt" and own.is_file():
        return own
    name = own.stem if own.suffix == ".pt" else voice
    path = folder / "voices" / f"{name}.pt"
    if name not in VOICES and not path.is_file():
        raise InputError(f"there is no voice {voice!r}", hint=_hint(name))
    return path


def _hint(name: str) -> str:
    near = get_close_matches(name, VOICES, n=3, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"--voice takes one of {_shown(voice for voice in VOICES if voice[0] == 'a')}; docs/speech.md has all"


def _shown(names: Iterable[str]) -> str:
    return ", ".join(names)
