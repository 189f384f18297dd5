"""Settings of files and variables: the nearest wins, and a wrong one is named by place."""

from __future__ import annotations

from pathlib import Path

import pytest

from infinitalk_cli.errors import InputError
from infinitalk_cli.settings_files import Setting, find_project_file, read_settings


def settings(tmp_path: Path, project: str = "", user: str = "", **environment: str) -> dict[str, Setting]:
    (tmp_path / "talk.toml").write_text(project, encoding="utf-8")
    (tmp_path / "user.toml").write_text(user, encoding="utf-8")
    return read_settings(environment, tmp_path, tmp_path / "user.toml")


def test_the_nearest_wins_and_origins_are_kept(tmp_path: Path) -> None:
    found = settings(
        tmp_path,
        project='size = "720"\nsteps = 8\n',
        user='preset = "fast"\nsteps = 40\nsize = "480"\n',
        TALK_STEPS="6",
    )
    assert found["steps"] == Setting(6, "TALK_STEPS")
    assert found["size"] == Setting("720", f"{tmp_path / 'talk.toml'}, line 1")
    assert found["preset"] == Setting("fast", f"{tmp_path / 'user.toml'}, line 1")


def test_numbers_are_taken_as_they_are_meant(tmp_path: Path) -> None:
    found = settings(tmp_path, project="size = 480\nshift = 2\n", TALK_TEXT_GUIDANCE="1", TALK_GPU="0")
    assert [found[name].value for name in ("size", "shift", "text_guidance", "gpu")] == ["480", 2.0, 1.0, "0"]
    assert settings(tmp_path, project="gpu = 1\nframes = 81\n")["gpu"].value == "1"


@pytest.mark.parametrize("key", ["frames", "motion_frames"])
def test_frames_that_no_latent_fits_are_named_by_file_and_line(tmp_path: Path, key: str) -> None:
    with pytest.raises(InputError, match=rf"talk\.toml, line 1: {key} must be 4n \+ 1, such as 77 or 81, not 80"):
        settings(tmp_path, project=f"{key} = 80\n")


def test_the_project_file_is_found_from_below(tmp_path: Path) -> None:
    (tmp_path / "talk.toml").touch()
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    assert find_project_file(below) == tmp_path / "talk.toml"


def test_no_files_no_settings(tmp_path: Path) -> None:
    assert read_settings({}, tmp_path, tmp_path / "gone.toml") == {}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("\nsteps = 0", "line 2: steps must be from 1 to 1000, not 0"),
        ("steps = 1e9", "steps must be a whole number, not 1000000000.0"),
        ("steps = true", "steps must be a whole number, not True"),
        ("shift = -3", "line 1: shift must be from 0.01 to 100, not -3"),
        ("shift = nan", "shift must be from 0.01 to 100, not nan"),
        ('# a\n\nprset = "fast"', "line 3: unknown key 'prset'"),
        ('preset = "fsat"', "preset must be one of quality, balanced, fast, not 'fsat'"),
        ('profile = "rtx-409"', "profile must be one of"),
        ("[generate]\nsteps = 3", "line 1: unknown key 'generate'"),
        ("num_persistent_param_in_dit = -1", "num_persistent_param_in_dit must be from 0 up, not -1"),
        ("steps = = 3", "is no TOML"),
    ],
)
def test_absurd_values_are_named_by_file_line_and_key(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(InputError) as caught:
        settings(tmp_path, project=text)
    assert str(tmp_path / "talk.toml") in caught.value.message
    assert told in caught.value.message


def test_a_wrong_name_brings_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        settings(tmp_path, project='prset = "fast"')
    assert caught.value.hint == "did you mean 'preset'?"


def test_an_absurd_variable_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="TALK_STEPS: steps must be a whole number, not 'many'"):
        settings(tmp_path, TALK_STEPS="many")


def test_a_file_that_is_no_text_is_told(tmp_path: Path) -> None:
    (tmp_path / "talk.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="can't be read"):
        read_settings({}, tmp_path, tmp_path / "gone.toml")
