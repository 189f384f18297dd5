"""Which voices there are, where their files belong, and what is said when something is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from infinitalk_cli import voices
from infinitalk_cli.errors import EnvironmentUnfitError, InputError, WeightsError
from infinitalk_cli.voices import language_of, locate_voices, refuse_without_synthesis
from tests.kokoro_files import write_voice


def lay_kokoro(weights: Path, *names: str) -> Path:
    folder = weights / "Kokoro-82M"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "kokoro-v1_0.pth").write_bytes(b"weights")
    for name in names:
        write_voice(folder / "voices" / f"{name}.pt")
    return folder


def test_voices_are_found_by_name_by_the_reference_s_path_and_as_a_file_of_one_s_own(tmp_path: Path) -> None:
    folder = lay_kokoro(tmp_path, "af_heart", "my_own")
    own = write_voice(tmp_path / "bm_me.pt")
    said = {0: "af_heart", 1: "weights/Kokoro-82M/voices/af_heart.pt", 2: "my_own", 3: str(own)}
    found = locate_voices(tmp_path, said)
    heart = folder / "voices" / "af_heart.pt"
    assert found.voices == (heart, heart, folder / "voices" / "my_own.pt", own)
    assert locate_voices(tmp_path, {1: "af_heart"}).voices == (None, heart)


def test_missing_files_are_told_with_the_command_that_fetches_them(tmp_path: Path) -> None:
    lay_kokoro(tmp_path, "af_heart")
    with pytest.raises(WeightsError, match=r"voices.ff_siwis\.pt missing") as raised:
        locate_voices(tmp_path, {0: "af_heart", 1: "ff_siwis"})
    assert raised.value.exit_code == 4
    assert "talk download --only tts --voice af_heart --voice ff_siwis" in raised.value.hint


def test_unknown_voice_is_told_with_those_like_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no voice 'af_hart'") as raised:
        locate_voices(tmp_path, {0: "af_hart"})
    assert "af_heart" in raised.value.hint


@pytest.mark.parametrize("name, language", [("bf_emma", "b"), ("zm_yunxi", "z"), ("my_own", "a"), ("ximena", "a")])
def test_language_is_the_first_letter(name: str, language: str) -> None:
    assert language_of(Path(f"{name}.pt")) == language


def test_missing_package_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voices, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentUnfitError, match="needs the packages kokoro and misaki") as raised:
        refuse_without_synthesis()
    assert raised.value.exit_code == 3
    assert 'pip install "infinitalk-cli[tts]"' in raised.value.hint
    monkeypatch.setattr(voices, "find_spec", lambda name: None if name == "misaki" else name)
    with pytest.raises(EnvironmentUnfitError, match="needs the package misaki"):
        refuse_without_synthesis()
