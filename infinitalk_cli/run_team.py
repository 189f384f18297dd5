"""The transformer of a run on several GPUs: each loads it on its own, and computes a share of every pass.

The other networks stay with the first GPU. A streamed transformer is streamed to every GPU, from RAM of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from infinitalk_cli.memory.lora import read_lora
from infinitalk_cli.models.config import DiTConfig
from infinitalk_cli.models.dit import DiT
from infinitalk_cli.networks import read_json, read_sizes
from infinitalk_cli.parallel.team import Team
from infinitalk_cli.request import GenerateRequest, check_shares
from infinitalk_cli.run_transformer import NetworkSources, load_transformer
from infinitalk_cli.sampling.stream import Networks, call_once
from infinitalk_cli.weights import WeightFiles

Foreseen = Callable[[], AbstractContextManager[None]]
"""Says failures of libraries in a user's words; it is passed to the other processes by its name."""


@contextmanager
def open_team(
    request: GenerateRequest, files: WeightFiles, device: torch.device, foreseen: Foreseen
) -> Generator[Callable[[Networks], Networks]]:
    """Have the other GPUs of a request load inside the `with`; the value lets them share the passes of networks.

    Raises: InputError: if they can't share the model's heads. EnvironmentUnfitError: if they are not there.
    """
    if request.num_gpus == 1:
        yield lambda networks: networks
        return
    sizes = read_sizes(DiTConfig.from_json, read_json(files.dit_config), [files.dit_config])
    check_shares(request.num_gpus, sizes.num_heads)
    team = Team(request.num_gpus, device, partial(build_share, request, files, foreseen))
    with team.running():
        yield partial(share_passes, team)


def share_passes(team: Team, networks: Networks) -> Networks:
    """The same networks, whose transformer computes with the team."""
    team.lead(networks.dit)
    alone = networks.on_stage

    @contextmanager
    def on_stage(module: nn.Module) -> Generator[None]:
        if module is not networks.dit:
            with alone(module):
                yield
            return
        with team.stage(), alone(module):
            yield

    return replace(networks, on_stage=on_stage, attempt=call_once)  # the others can't step down with it


@contextmanager
def build_share(
    request: GenerateRequest, files: WeightFiles, foreseen: Foreseen, device: torch.device
) -> Generator[DiT]:
    """What another process loads; rank 0 has told the user what there is to tell."""
    with foreseen():
        loras = [read_lora(lora.path, lora.scale) for lora in request.loras]
        placed = load_transformer(NetworkSources(request, files, loras, device))
        with placed.on_stage():
            yield placed.dit
