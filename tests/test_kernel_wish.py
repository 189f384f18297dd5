"""A kernel that is asked for is tried first; what can't work is said, and the run goes on."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from infinitalk_cli import kernel_wish
from infinitalk_cli.errors import WeightsError
from infinitalk_cli.kernel_wish import KERNELS, Tried, attention_of_run, try_wish, trying, why_unusable
from infinitalk_cli.models.attention import Kernel, current_wish, use_kernel
from infinitalk_cli.profiles import Attention

GPU, CPU, WIDTH = torch.device("cuda"), torch.device("cpu"), 128


def without(monkeypatch: pytest.MonkeyPatch, *missing: Kernel) -> None:
    def reason(kernel: Kernel, device: torch.device, width: int) -> str:
        return f"{kernel} is not installed" if kernel in missing else ""

    monkeypatch.setattr(kernel_wish, "why_unusable", reason)


def test_every_wish_has_its_kernels() -> None:
    assert set(KERNELS) == set(get_args(Attention))
    assert {kernel for kernels in KERNELS.values() for kernel in kernels} <= set(get_args(Kernel))


def test_without_a_wish_nothing_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, *get_args(Kernel))
    assert try_wish("auto", GPU, WIDTH) == Tried(None)


def test_a_wish_that_can_be_met_is_met_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch)
    assert try_wish("sage", GPU, WIDTH) == Tried("sage")
    assert try_wish("fp8", GPU, WIDTH) == Tried("cudnn-fp8")
    assert try_wish("int8", GPU, WIDTH) == Tried(("int8", "int8-fp8"))


def test_the_next_kernel_of_a_kind_serves_where_the_first_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "flash-attn-3", "flash-attn")
    assert try_wish("flash", GPU, WIDTH) == Tried("flash")
    without(monkeypatch, "int8-fp8")
    assert try_wish("int8", GPU, WIDTH) == Tried("int8")


def test_an_absent_kernel_falls_back_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "sage")
    tried = try_wish("sage", GPU, WIDTH)
    assert tried.kernel is None
    assert tried.note.startswith("attention sage does not work here (sage: sage is not installed)")
    assert tried.note.endswith("the fastest exact kernel is used instead")


def test_on_a_cpu_a_wish_is_told_to_have_no_effect() -> None:
    assert try_wish("flash", CPU, WIDTH) == Tried(None, "note: --attention flash has no effect on the CPU")


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (lambda: torch.zeros(1, 500, 2, 128), "its result is wrong by"),
        (lambda: torch.full((1, 500, 2, 128), torch.nan), "its result is wrong by"),
        (
            lambda: (_ for _ in ()).throw(ModuleNotFoundError("x", name="sageattention")),
            "sageattention is not installed",
        ),
        (lambda: (_ for _ in ()).throw(RuntimeError("no kernel image\nmore")), "RuntimeError: no kernel image"),
    ],
    ids=["wrong", "nan", "absent", "refused"],
)
def test_what_is_wrong_with_a_kernel_is_told(
    monkeypatch: pytest.MonkeyPatch, answer: Callable[[], Any], told: str
) -> None:
    plain, calls = kernel_wish.attention, iter((True, False))
    monkeypatch.setattr(kernel_wish, "attention", lambda *qkv: plain(*qkv) if next(calls) else answer())
    assert told in why_unusable("sage", CPU, WIDTH)


def test_a_kernel_that_is_right_is_usable() -> None:
    assert why_unusable("torch", CPU, WIDTH) == ""


@pytest.mark.gpu
@pytest.mark.parametrize("wish", get_args(Attention))
def test_on_a_gpu_every_wish_is_met_or_explained(wish: Attention) -> None:
    with trying(wish, GPU, WIDTH) as outcome:
        tried = outcome()
    kernels = tried.kernel if isinstance(tried.kernel, tuple) else (tried.kernel,)
    assert set(kernels) <= set(KERNELS[wish]) or wish == "auto" or tried.note


def test_8_bits_allowed_means_every_kernel_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "sage", "cudnn-fp8", "flash-attn", "flash-attn-3")
    assert try_wish("8bit", GPU, WIDTH) == Tried(("torch", "cudnn", "flash", "efficient", "int8", "int8-fp8"))


def test_heads_that_a_kernel_does_not_serve_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def reason(kernel: Kernel, device: torch.device, width: int) -> str:
        return "" if width == 128 else f"not for heads of {width}"

    monkeypatch.setattr(kernel_wish, "why_unusable", reason)
    told = "attention int8 does not work here (int8: not for heads of 32; int8-fp8: not for heads of 32)"
    assert try_wish("int8", GPU, 32).note.startswith(told)


def test_a_trial_runs_beside_and_its_outcome_is_told_when_the_transformer_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    may_end, notes = threading.Event(), list[str]()

    def reason(kernel: Kernel, device: torch.device, width: int) -> str:
        assert may_end.wait(10)
        assert current_wish() is None
        return "not today"

    monkeypatch.setattr(kernel_wish, "why_unusable", reason)
    with trying("sage", GPU, WIDTH) as outcome, use_kernel("flash"):
        may_end.set()
        with attention_of_run(outcome(), Pass(2.0), GPU, notes.append):
            assert current_wish() is None
    assert [note[:30] for note in notes] == ["attention sage does not work h"]


class Pass(nn.Module):
    """A transformer whose pass is the given factor for all kernels but torch's own."""

    def __init__(self, factor: float, plain_factor: float = 1.0) -> None:
        super().__init__()
        self.factor, self.plain_factor = factor, plain_factor

    def forward(self, x: Tensor, *, times: float) -> Tensor:
        plain = current_wish() == "torch"
        return x * times * (self.plain_factor if plain else self.factor)


def test_sound_passes_are_left_alone() -> None:
    net, notes = Pass(2.0), list[str]()
    with attention_of_run(Tried(None), net, torch.device("cpu"), notes.append):
        assert [net(torch.ones(1), times=3.0).item() for _ in range(2)] == [6, 6]
    assert notes == []


def test_a_first_pass_without_numbers_is_repeated_with_the_plain_kernel_which_then_stays() -> None:
    net, notes = Pass(math.nan), list[str]()
    with attention_of_run(Tried(None), net, torch.device("cpu"), notes.append):
        assert [net(torch.ones(1), times=3.0).item() for _ in range(2)] == [3, 3]
    assert len(notes) == 1
    assert "torch's own kernel is used instead" in notes[0]
    assert current_wish() is None
    assert net(torch.ones(1), times=3.0).isnan()  # no trace is left on the network


def test_a_first_pass_that_no_kernel_can_do_names_the_weights() -> None:
    net = Pass(math.inf, math.nan)
    with (
        attention_of_run(Tried(None), net, torch.device("cpu"), lambda _: None),
        pytest.raises(WeightsError, match="no numbers") as caught,
    ):
        net(torch.ones(1), times=1.0)
    assert "talk weights verify" in caught.value.hint
