"""What a process needs to take part in a pass: the arguments of the transformer's call, as a message and tensors.

The message is small and goes through a pipe: the arguments, with a description in place of each tensor. The tensors
follow as broadcasts from rank 0, in order. All of them travel in every pass: 25 MB at 480, a thousandth of its time,
and nothing has to be kept in step. Only the step cache stays where it is: each rank has the residual of its own
tokens, under a number that rank 0 gives to the holder it was called with.
"""

from __future__ import annotations

import inspect
import io
import pickle
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from infinitalk_cli.models.attention import Wish, current_wish
from infinitalk_cli.models.dit import BlockResidual


@dataclass(frozen=True)
class PassMessage:
    """One pass. `call`: the pickled arguments without tensors. `residual`: its number, and whether it is used again.

    `kernel`: the attention to use, as `use_kernel` takes it. `gone`: numbers of residuals that nobody needs any more.
    """

    call: bytes
    kernel: Wish
    residual: tuple[int, bool] | None
    gone: tuple[int, ...]


@dataclass
class PassWriter:
    """Rank 0's side: describes calls. `device`: where tensors must be to travel."""

    device: torch.device
    _numbers: dict[int, int] = field(default_factory=dict[int, int])
    _gone: list[int] = field(default_factory=list[int])
    _next: int = 0

    def write(
        self, network: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[PassMessage, list[Tensor]]:
        """The message of a call `network(*args, **kwargs)`, and the tensors to be sent after it."""
        arguments = dict(inspect.signature(network.forward).bind(*args, **kwargs).arguments)
        residual = arguments.pop("residual", None)
        pickled = io.BytesIO()
        pickler = _Pickler(pickled, self.device)
        pickler.dump(arguments)
        told = None if residual is None else (self._number(residual), bool(residual.reuse))
        message = PassMessage(pickled.getvalue(), current_wish(), told, tuple(self._gone))
        self._gone.clear()
        return message, pickler.tensors

    def _number(self, residual: Any) -> int:
        key = id(residual)
        if key not in self._numbers:
            self._numbers[key] = self._next
            self._next += 1
            weakref.finalize(residual, self._forget, key).atexit = False
        return self._numbers[key]

    def _forget(self, key: int) -> None:
        self._gone.append(self._numbers.pop(key))


@dataclass
class PassReader:
    """The other ranks' side: makes the arguments of a call anew. `device`: where tensors arrive."""

    device: torch.device
    _residuals: dict[int, BlockResidual] = field(default_factory=dict[int, BlockResidual])

    def read(self, message: PassMessage) -> dict[str, Any]:
        """The arguments of the call, received from rank 0."""
        for number in message.gone:
            self._residuals.pop(number, None)
        unpickler = _Unpickler(io.BytesIO(message.call), self.device)
        arguments: dict[str, Any] = unpickler.load()
        broadcast(unpickler.tensors)
        if message.residual is not None:
            number, reuse = message.residual
            arguments["residual"] = self._residuals.setdefault(number, BlockResidual())
            arguments["residual"].reuse = reuse
        return arguments


def broadcast(tensors: Sequence[Tensor]) -> None:
    """Send rank 0's tensors to all, or receive them. They must be dense."""
    for tensor in tensors:
        dist.broadcast(tensor, src=0)


class _Pickler(pickle.Pickler):
    """Keeps tensors aside and writes their form."""

    def __init__(self, file: io.BytesIO, device: torch.device) -> None:
        super().__init__(file)
        self.tensors: list[Tensor] = []
        self._device = device

    def persistent_id(self, obj: Any) -> Any:
        if not isinstance(obj, Tensor):
            return None
        self.tensors.append(obj.detach().to(self._device).contiguous())
        return tuple(obj.shape), obj.dtype


class _Unpickler(pickle.Unpickler):
    """Makes room for each tensor."""

    def __init__(self, file: io.BytesIO, device: torch.device) -> None:
        super().__init__(file)
        self.tensors: list[Tensor] = []
        self._device = device

    def persistent_load(self, pid: tuple[tuple[int, ...], torch.dtype]) -> Tensor:
        shape, dtype = pid
        self.tensors.append(torch.empty(shape, dtype=dtype, device=self._device))
        return self.tensors[-1]
