"""Speech by the program espeak-ng: plain, in a hundred languages, and on many computers already."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from infinitalk_cli.errors import EnvironmentUnfitError, InputError, MediaError
from infinitalk_cli.speech_mark import mark_speech
from infinitalk_cli.voices import INSTALL

VOICE, WORDS_A_MINUTE = "en-us+f3", 150
LIMIT_S = 60
LEAST_BYTES = 4_400
"""Of a tenth of a second at the program's 22,050 Hz in 16 bits: a text without words gives less, or no file."""


def espeak_here() -> str | None:
    """The program, None if it is not installed."""
    return shutil.which("espeak-ng") or shutil.which("espeak")


def find_espeak() -> str:
    """The program. Raises: EnvironmentUnfitError: if it is not installed, with what to install."""
    program = espeak_here()
    if program is None:
        raise EnvironmentUnfitError(
            "nothing to speak a text with: neither Kokoro with its voices nor espeak-ng is installed",
            hint="apt-get install espeak-ng (macOS: brew install espeak-ng),\n"
            f"      or {INSTALL} and talk download --only tts,\n"
            "      or give recorded speech with --audio",
        )
    return program


def save_speech(program: str, text: str, path: Path) -> None:
    """Speak into a WAV file, which appears whole; its folder is made.

    Raises: InputError: if nothing is heard of the text. MediaError: if the program fails.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    command = [program, "-v", VOICE, "-s", str(WORDS_A_MINUTE), "-w", str(part), "--stdin"]
    try:
        done = subprocess.run(
            command, input=text, capture_output=True, encoding="utf-8", errors="replace", timeout=LIMIT_S, check=False
        )
        if done.returncode:
            raise MediaError(f"{program} failed: {done.stderr.strip()[:200] or f'exit code {done.returncode}'}")
        if not part.is_file() or part.stat().st_size < LEAST_BYTES:
            raise InputError("--text: nothing is heard of it", hint="is it in words?")
        mark_speech(part)
        part.replace(path)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MediaError(f"{program} failed: {error}", hint="give recorded speech with --audio") from error
    finally:
        part.unlink(missing_ok=True)
