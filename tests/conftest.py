"""What every test can rely on, and fixtures that several files of tests share."""

from __future__ import annotations

import gc
import json
import signal
import sys
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image

import infinitalk_cli
from infinitalk_cli import hub as hub_module
from infinitalk_cli.demo_package import ENVIRONMENT_VARIABLE as DEMO_WEIGHTS
from tests.hub_server import HubServer
from tests.hub_tree import fill, use_hub
from tests.media.made import noise, write_sound, write_wav
from tests.stand_in import Engine
from training.random_tree import ensure_random_weights


def pytest_configure() -> None:
    """Shells start what runs in the background with Ctrl-C ignored, `nohup` with hang-ups ignored: tests send both."""
    defaults = {"SIGINT": signal.default_int_handler, "SIGHUP": signal.SIG_DFL}
    for name, handler in defaults.items():
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """`-m slow` picks some that need a GPU, too."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session", autouse=True)
def _no_prompt_cache() -> Iterator[None]:  # pyright: ignore[reportUnusedFunction]
    """Runs neither use nor leave anything of the user's; a test of the cache names a folder of its own."""
    with pytest.MonkeyPatch.context() as session:
        session.setenv("TALK_PROMPT_CACHE", "")
        yield


@pytest.fixture(scope="session", autouse=True)
def _small_demo_weights() -> Iterator[None]:  # pyright: ignore[reportUnusedFunction]
    """The demo runs on random networks that are smaller than the packaged ones; tests of these unset the variable."""
    with pytest.MonkeyPatch.context() as session:
        session.setenv(DEMO_WEIGHTS, str(ensure_random_weights()))
        yield


@pytest.fixture(scope="session")
def passed_over() -> list[int]:
    """How many modules were there when `_modules_stay` looked."""
    return [0]


@pytest.fixture(scope="module", autouse=True)
def _modules_stay(passed_over: list[int]) -> None:  # pyright: ignore[reportUnusedFunction]
    """Collections of garbage, which the program asks for, pass over what hundreds of imports have made."""
    if len(sys.modules) > passed_over[-1] + 200:
        gc.collect()
        gc.freeze()
        passed_over.append(len(sys.modules))


class Hasty:
    """The module `time` for one that rests a second after each failure: a hundred times shorter."""

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds / 100)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[HubServer, None, None]:
    """A hub with everything on it, and a machine with nothing."""
    server = HubServer()
    fill(server)
    use_hub(server, tmp_path / "hf" / "hub", monkeypatch)
    monkeypatch.setenv("TALK_WEIGHTS_DIR", str(tmp_path / "weights"))
    monkeypatch.delenv("TALK_DEBUG", raising=False)
    monkeypatch.setattr(hub_module.Patience, "__init__", _impatient)
    monkeypatch.setattr("huggingface_hub.file_download.time", Hasty(), raising=False)
    with server.running():
        yield server


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    """A stand-in for the runner module."""
    stand_in, module = Engine(), ModuleType("infinitalk_cli.runner")
    setattr(module, "generate", stand_in.generate)  # noqa: B010  a module has no such declared attribute
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(infinitalk_cli, "runner", module, raising=False)
    return stand_in


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with inputs and without weights."""
    Image.new("RGB", (96, 64)).save(tmp_path / "face.png")
    write_sound(tmp_path / "clip.mp4", noise(1600), 16_000, "aac", picture=True)
    for name in ("a.wav", "b.wav"):
        write_wav(tmp_path / name, noise(16_000), 16_000)
    (tmp_path / "job.json").write_text(
        json.dumps({"prompt": "A talk.", "cond_image": "face.png", "cond_audio": {"person1": "a.wav"}})
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TALK_DEBUG", raising=False)
    monkeypatch.setenv("TALK_WEIGHTS_DIR", str(tmp_path / "no-weights"))
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


def _impatient(patience: hub_module.Patience) -> None:
    """The same waits as in life, a hundred times shorter."""
    for name, value in {"num_tries": 4, "first_wait_s": 0.01, "longest_wait_s": 0.1}.items():
        object.__setattr__(patience, name, value)
