"""Downloads in processes of their own: killed at any moment, two at a time, interrupted, and with nothing to do."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from infinitalk_cli.hub import RECEIVE_BYTES
from tests.hub_server import HubServer, Trouble
from tests.hub_tree import INFINITETALK, RTX_4090, WAN, child_environment, content_at, content_of, fill

LARGE_FILES = {
    (INFINITETALK, "quant_models/infinitetalk_single_fp8.safetensors"): 3_000_000,
    (INFINITETALK, "quant_models/t5_fp8.safetensors"): 1_500_000,
    (WAN, "Wan2.1_VAE.pth"): 700_000,
}
LONGEST_LIFE_S = 0.4

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs signals")


@pytest.fixture
def hub() -> Generator[HubServer, None, None]:
    """A hub whose large files take a second or two."""
    server = HubServer()
    fill(server, size=1000)
    for (repository, path), size in LARGE_FILES.items():
        server.add(repository, path, content_of(path, size))
    server.troubles.append(Trouble(seconds_per_send=0.02))
    with server.running():
        yield server


def start(hub: HubServer, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "infinitalk_cli", "download", "--no-convert", "--profile", "rtx-4090", *arguments]
    environment = child_environment(hub, folder)
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


class Nursery:
    """A process that has imported everything and forks a `talk download` when told: many lives in a few seconds."""

    CODE = """
import os, sys
import huggingface_hub.file_download, huggingface_hub.hf_api
from infinitalk_cli.main import app
for line in sys.stdin:
    pid = os.fork()
    if not pid:
        os.dup2(os.open(os.devnull, os.O_RDWR), 1)
        app(["download", "--no-convert", "--profile", "rtx-4090"])
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""

    def __init__(self, hub: HubServer, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", self.CODE],
            env=child_environment(hub, folder),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.communicate()

    def start(self) -> Child:
        """A new process; it has begun when this returns."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return Child(self.read(), self)

    def read(self) -> int:
        """The next number that it says."""
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())


@dataclass(frozen=True)
class Child:
    """One `talk download`."""

    pid: int
    nursery: Nursery

    def kill(self) -> int:
        """Kill it now, if it still lives; its exit code."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        return self.nursery.read()

    def wait(self) -> int:
        """Its exit code, when it has ended by itself."""
        return self.nursery.read()


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    output, talk = process.communicate(timeout=120)
    assert process.returncode == 0, talk
    return output, talk


def assert_complete(hub: HubServer, folder: Path) -> None:
    for place in RTX_4090:
        assert (folder / "weights" / place).read_bytes() == content_at(hub, place), place
    assert not list(folder.rglob("*.part"))


def parts_in(folder: Path) -> dict[str, int]:
    """How much of which file is here: length by file name."""
    found = dict[str, int]()
    for path in (folder / "weights").rglob("*.part"):
        with suppress(FileNotFoundError):  # it became whole in between
            found[path.name.rsplit(".", 2)[0]] = path.stat().st_size
    return found


@pytest.mark.parametrize("num_kills", [8, pytest.param(40, marks=pytest.mark.slow)])
def test_killed_many_times_and_right_in_the_end(hub: HubServer, tmp_path: Path, num_kills: int) -> None:
    chance, kept, num_killed = random.Random(20), dict[str, int](), 0
    with Nursery(hub, tmp_path) as nursery:
        while num_killed < num_kills:
            child = nursery.start()
            time.sleep(chance.uniform(0, LONGEST_LIFE_S))
            status = child.kill()
            wait_for(lambda: not hub.num_sending)
            now = parts_in(tmp_path)
            for name, size in kept.items():
                assert now.get(name, sys.maxsize) >= size, f"{name} lost what had arrived"
            kept = now
            if status == 0:
                assert_complete(hub, tmp_path)
                shutil.rmtree(tmp_path / "weights")
                kept.clear()
            num_killed += status == -signal.SIGKILL
        hub.forget()
        assert nursery.start().wait() == 0
    assert_complete(hub, tmp_path)
    for path in (path for _, path in LARGE_FILES):
        # what was there was not fetched again: the transfer began where the part ended
        have, size = kept.get(path.rpartition("/")[2]), len(content_at_path(hub, path))
        if have is not None:
            assert [sent.start for sent in hub.sent if sent.path == path] == ([have] if have < size else []), path


def test_a_kill_costs_at_most_one_portion_of_each_file(hub: HubServer, tmp_path: Path) -> None:
    process = start(hub, tmp_path)
    wait_for(lambda: len(parts_in(tmp_path)) >= 2 and max(parts_in(tmp_path).values()) > 3 * RECEIVE_BYTES)
    process.kill()
    process.communicate()
    kept = parts_in(tmp_path)
    wait_for(lambda: not hub.num_sending)
    finish(start(hub, tmp_path))
    assert_complete(hub, tmp_path)
    for path in (path for _, path in LARGE_FILES if path.rpartition("/")[2] in kept):
        fetched_twice = hub.bytes_sent(path) - len(content_at_path(hub, path))
        # what the kernel had taken from the server beyond what the process had read comes on top
        assert fetched_twice <= RECEIVE_BYTES + 2**19, path


def content_at_path(hub: HubServer, path: str) -> bytes:
    return next(hub.repositories[repository]["main"][name] for repository, name in LARGE_FILES if name == path)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline_s, "it never came"
        time.sleep(0.01)


def test_two_at_once_share_the_work_instead_of_doing_it_twice(hub: HubServer, tmp_path: Path) -> None:
    hub.troubles[0].seconds_per_send = 1
    first = start(hub, tmp_path)
    wait_for(lambda: bool(parts_in(tmp_path)))
    second = start(hub, tmp_path)
    assert second.stderr is not None
    for line in second.stderr:
        if "waiting for it to end" in line:
            break
    assert first.poll() is None
    hub.troubles[0].seconds_per_send = 0
    for process in (first, second):
        finish(process)
    assert_complete(hub, tmp_path)
    for _, path in LARGE_FILES:
        assert len([sent for sent in hub.sent if sent.path == path]) == 1, path


def test_interrupt_keeps_what_came_and_says_so(hub: HubServer, tmp_path: Path) -> None:
    hub.troubles[0].seconds_per_send = 0.2
    process = start(hub, tmp_path)
    wait_for(lambda: bool(parts_in(tmp_path)))
    process.send_signal(signal.SIGINT)
    output, talk = process.communicate(timeout=60)
    assert process.returncode == 130, talk
    assert output == ""
    assert "goes on from there" in talk
    hub.troubles[0].seconds_per_send = 0
    finish(start(hub, tmp_path))
    assert_complete(hub, tmp_path)


def test_nothing_to_do_takes_no_time_and_no_network(hub: HubServer, tmp_path: Path) -> None:
    hub.troubles.clear()
    finish(start(hub, tmp_path))
    hub.forget()
    durations_s = list[float]()
    output, talk = "", ""
    for _ in range(2):  # the faster one counts: the machine has other things to do
        started_s = time.monotonic()
        output, talk = finish(start(hub, tmp_path, "--json"))
        durations_s.append(time.monotonic() - started_s)
    assert min(durations_s) < 2
    assert hub.requests == []
    assert "verified" in talk
    report = json.loads(output)
    assert {file["state"] for file in report["files"]} == {"have"}
    assert report["need_bytes"] == 0


def test_the_hubs_variables_work_in_a_process_of_its_own(hub: HubServer, tmp_path: Path) -> None:
    hub.troubles.clear()
    hub.tokens = {"hf_right"}
    environment = {**child_environment(hub, tmp_path), "HF_TOKEN": "hf_right"}
    command = [sys.executable, "-m", "infinitalk_cli", "download", "--only", "vae"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    offline = {**environment, "HF_HUB_OFFLINE": "1"}
    hub.forget()
    done = subprocess.run([*command, "--only", "image"], env=offline, capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert "offline" in done.stderr
    assert "models_clip" in done.stderr
    assert hub.requests == []
    assert os.listdir(tmp_path / "weights" / "Wan2.1-I2V-14B-480P") == ["Wan2.1_VAE.pth"]  # noqa: PTH208
