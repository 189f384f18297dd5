"""A job over two processes: the same velocities as in one, and an end with a reason when one of them fails."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import psutil
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from infinitalk_cli.errors import EnvironmentUnfitError, OutOfGpuMemoryError, TalkError
from infinitalk_cli.models.dit import BlockResidual, DiT
from infinitalk_cli.parallel.team import Team
from tests.parallel.builds import (
    CONFIG,
    build_dying,
    build_failing,
    build_small,
    build_stuck,
    build_too_large,
    small_dit,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="teams are for NCCL, which is there on Linux alone")

CPU = torch.device("cpu")
FRAMES = 3


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:  # pyright: ignore[reportUnusedFunction]
    with torch.no_grad():
        yield


@contextmanager
def led_dit(build: Callable[..., Any], **settings: Any) -> Generator[DiT]:
    """A network whose passes two processes share."""
    team = Team(2, CPU, build, **settings)
    dit = small_dit()
    with team.running():
        team.lead(dit)
        with team.stage():
            yield dit


@pytest.fixture(scope="class")
def led() -> Iterator[DiT]:
    with ExitStack() as stack:
        yield stack.enter_context(led_dit(build_small))


def inputs(rows: int = 6, columns: int = 8, num_speakers: int = 1, seed: int = 3) -> dict[str, Any]:
    """Arguments of a pass; `rows` and `columns` of latents, a quarter as many tokens."""
    dit, draw = small_dit(), torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw)

    windows = randn(num_speakers, 1 + 4 * (FRAMES - 1), 5, CONFIG.audio_layers, CONFIG.audio_dim)
    masks = torch.zeros(3, rows, columns)
    masks[0, :, : columns // 2], masks[1, :, columns // 2 :], masks[2, rows // 2 :] = 1, 1, 1
    return {
        "latents": randn(1, 16, FRAMES, rows, columns),
        "condition": randn(1, 20, FRAMES, rows, columns),
        "t": torch.tensor(612.5),
        "context": dit.embed_context(randn(5, CONFIG.text_dim), randn(1, 257, CONFIG.image_dim)),
        "audio_tokens": dit.embed_audio(windows),
        "speaker_masks": masks,
    }


class TestEquality:
    def test_only_a_part_of_the_tokens_is_computed_here(self, led: DiT) -> None:
        seen: list[Tensor] = []
        hook = led.blocks[1].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        led(**inputs(6, 10))
        hook.remove()
        assert [tokens.shape[1] for tokens in seen] == [22]  # of 45

    @pytest.mark.parametrize("num_speakers", [1, 2])
    @pytest.mark.parametrize("size", [(6, 8), (6, 10), (2, 2)], ids=["even", "uneven", "fewer-than-heads"])
    def test_velocity_is_that_of_one_process(self, led: DiT, size: tuple[int, int], num_speakers: int) -> None:
        given = inputs(*size, num_speakers=num_speakers)
        torch.testing.assert_close(led(**given), small_dit()(**given), rtol=1e-5, atol=1e-5)

    def test_empty_mask_counts_as_in_one_process(self, led: DiT) -> None:
        given = inputs(num_speakers=2)
        given["speaker_masks"][0] = 0
        for empty_mask in ("zero", "nan"):
            expected = small_dit()(**given, empty_mask=empty_mask)
            torch.testing.assert_close(led(**given, empty_mask=empty_mask), expected, rtol=1e-5, atol=1e-5)

    def test_residuals_of_two_kinds_of_pass_are_used_again(self, led: DiT) -> None:
        alone = small_dit()
        kept = {dit: (BlockResidual(), BlockResidual()) for dit in (led, alone)}
        for reuse, seed in ((False, 3), (True, 4), (False, 5), (True, 6)):
            for kind in (0, 1):
                given = inputs(6, 10, seed=seed + 10 * kind)
                found: list[Tensor] = []
                for dit, residuals in kept.items():
                    residuals[kind].reuse = reuse
                    found.append(dit(**given, residual=residuals[kind]))
                torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


class TestFailures:
    @pytest.mark.slow
    def test_failure_to_load_is_raised_here(self) -> None:
        with pytest.raises(OutOfGpuMemoryError, match="GPU 2 of 2: the GPU has too little memory") as raised:
            with led_dit(build_too_large):
                pass
        assert raised.value.hint == "use a smaller --size"

    @pytest.mark.parametrize(
        ("build", "reason"),
        [
            (build_failing, "GPU 2 of 2: unexpected: ValueError: no such block"),
            pytest.param(build_dying, "GPU 2 of 2 was killed by signal 9", marks=pytest.mark.slow),
        ],
    )
    def test_failure_in_a_pass_ends_it_with_the_reason(self, build: Callable[..., Any], reason: str) -> None:
        with pytest.raises(TalkError, match=reason):
            with led_dit(build) as dit:
                dit(**inputs())
        assert not dist.is_initialized()

    @pytest.mark.slow
    def test_pass_that_was_left_half_done_is_not_taken_up_again(self) -> None:
        def fail(*_: object) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory")

        with led_dit(build_small) as dit:
            dit.blocks[1].register_forward_pre_hook(fail)
            with pytest.raises(torch.OutOfMemoryError):
                dit(**inputs())
            with pytest.raises(OutOfGpuMemoryError, match="memory ran out in a pass"):
                dit(**inputs())

    @pytest.mark.slow
    def test_pass_that_never_ends_is_given_up(self) -> None:
        began = time.monotonic()
        with pytest.raises(TalkError, match="not finished a pass in 1 s"):
            with led_dit(build_stuck, stall_s=1.0) as dit:
                dit(**inputs())
        assert time.monotonic() - began < 60

    @pytest.mark.slow
    @pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
    def test_other_process_ends_with_the_first(self, end: signal.Signals) -> None:
        command = [sys.executable, "-m", "tests.parallel.first"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as first:
            assert first.stdout is not None
            other = psutil.Process(int(first.stdout.readline()))
            first.send_signal(end)
        gone, _ = psutil.wait_procs([other], timeout=20)
        assert gone == [other]

    def test_machine_with_fewer_gpus_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(dist, "is_nccl_available", lambda: True)
        with pytest.raises(EnvironmentUnfitError, match="--gpus 2: torch sees 1 of them"):
            with Team(2, torch.device("cuda", 0), build_small).running():
                pass

    def test_gpu_is_the_first_where_none_is_named(self) -> None:
        assert Team(2, torch.device("cuda"), build_small).device == torch.device("cuda", 0)

    def test_torch_without_nccl_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(dist, "is_nccl_available", lambda: False)
        with pytest.raises(EnvironmentUnfitError, match="NCCL"):
            with Team(2, torch.device("cuda", 0), build_small).running():
                pass
