"""The step cache against the original: what it measures, which steps it skips, and what the transformer then gives."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from infinitalk_cli.models.dit import DiT
from infinitalk_cli.sampling.guidance import PassKind
from infinitalk_cli.sampling.schedule import TIME_SCALE, get_timesteps
from infinitalk_cli.sampling.settings import BucketSet
from infinitalk_cli.sampling.step_cache import (
    COEFFICIENTS,
    FIRST_FULL_STEPS,
    StepCache,
    relative_change,
    rescaled_change,
    steps_that_reuse,
)
from tests.parity.conftest import TinyTree
from tests.parity.dit_pass import load_dit
from tests.parity.reference import DEVICE, Case, cases, expect_close, tensor, value

KINDS: tuple[PassKind, ...] = ("cond", "drop_text", "uncond")
BUCKET_SETS: tuple[BucketSet, ...] = ("480", "720")


def is_run(case: Case) -> bool:
    return "steps" in case.settings


def bucket_set(model_scale: str) -> BucketSet:
    """The bucket set that the original calls by a model's name and a size."""
    return next(name for name in BUCKET_SETS if model_scale.endswith(name))


@dataclass(frozen=True)
class CachedRun:
    """A case's transformer and its schedule."""

    dit: DiT
    times: Tensor
    embeddings: list[Tensor]
    reuse: list[bool]


def prepare(tree: TinyTree, case: Case) -> CachedRun:
    dit = load_dit(tree, case)
    times = torch.tensor(get_timesteps(case.settings["steps"], case.settings["shift"])[:-1]) * TIME_SCALE
    with torch.no_grad():
        embeddings = [dit.embed_time(t)[1] for t in times.to(DEVICE)]
    coefficients = COEFFICIENTS[bucket_set(case.settings["model_scale"])]
    return CachedRun(dit, times, embeddings, steps_that_reuse(embeddings, case.settings["threshold"], coefficients))


@pytest.mark.parametrize("case", cases("teacache", is_run), ids=str)
def test_skipped_steps_and_outputs_equal_the_reference(case: Case, tiny_tree: TinyTree) -> None:
    run = prepare(tiny_tree, case)
    assert [[int(not reused)] * len(KINDS) for reused in run.reuse] == case.expected["blocks_ran_[step][pass]"]
    if "outputs" in case.expected:
        expect_close(outputs(run, case), value(case.expected["outputs"]), case.tolerance, "outputs")


@torch.no_grad()
def outputs(run: CachedRun, case: Case) -> Tensor:
    """The transformer's answers of all passes, step by step."""
    given = {name: tensor(form) for name, form in case.inputs.items()}
    speech, silence = (run.dit.embed_audio(windows) for windows in (given["audio"], torch.zeros_like(given["audio"])))
    texts = {"cond": given["context_cond"], "drop_text": given["context_negative"], "uncond": given["context_negative"]}
    cache = StepCache(run.reuse)
    return torch.cat(
        [
            run.dit(
                given["x"][None] * (1 - 0.5 * t / TIME_SCALE).to(DEVICE),
                given["y"],
                t,
                run.dit.embed_context(texts[kind], given["clip_fea"]),
                silence if kind == "uncond" else speech,
                residual=cache.residual(step, kind),
            )
            for step, t in enumerate(run.times)
            for kind in KINDS
        ]
    )


@pytest.mark.parametrize("case", cases("teacache", is_run), ids=str)
def test_measured_changes_equal_the_reference(case: Case, tiny_tree: TinyTree) -> None:
    run = prepare(tiny_tree, case)
    coefficients = COEFFICIENTS[bucket_set(case.settings["model_scale"])]
    changes = [relative_change(now, before) for now, before in zip(run.embeddings[1:], run.embeddings, strict=False)]
    rescaled = [rescaled_change(change, coefficients) for change in changes]
    expect_close(changes, case.expected["relative_l1_of_time_embedding"][1:], case.tolerance, "changes")
    expect_close(rescaled, case.expected["rescaled_change"][1:], case.tolerance, "rescaled changes")
    accumulated, sums = 0.0, [0.0]
    for step, change in enumerate(rescaled, start=1):
        accumulated = accumulated + change if run.reuse[step] else 0.0
        sums.append(accumulated)
    expect_close(
        [[total] * len(KINDS) for total in sums], case.expected["accumulated_[step][pass]"], case.tolerance, ""
    )


@pytest.mark.parametrize("case", cases("teacache", lambda case: not is_run(case)), ids=str)
def test_coefficients_equal_the_reference(case: Case) -> None:
    for model_scale, coefficients in case.expected.items():
        expect_close(COEFFICIENTS[bucket_set(model_scale)], coefficients, case.tolerance, model_scale)


@pytest.mark.parametrize("case", cases("teacache", is_run), ids=str)
def test_as_many_steps_as_in_the_reference_never_skip(case: Case) -> None:
    assert case.settings["first_full_steps"] == FIRST_FULL_STEPS
