"""Keys and values that are the same in every step of a chunk, kept instead of made again in every pass.

What a block attends to beside the video (text, picture, speech) does not change from step to step, so neither do its
keys and values: the passes of a chunk differ in a few sources, and each source comes back in every step. They are kept
by the identity of the source (or of the part of it that is given), while there is room; what finds none is made again,
as without. The values are the same bits either way. On a GPU this saves a dozen short kernels a block.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

KeysValues = tuple[Tensor, Tensor]


@dataclass
class Room:
    """Bytes that may still be taken."""

    left_bytes: int

    def take(self, num_bytes: int) -> bool:
        """Take some, if there are as many."""
        if num_bytes > self.left_bytes:
            return False
        self.left_bytes -= num_bytes
        return True


@dataclass
class _Kept:
    """A method that makes keys and values, with what it has made so far."""

    make: Callable[..., KeysValues]
    room: Room
    made: list[tuple[object, dict[str, Any], KeysValues]] = field(
        default_factory=list[tuple[object, dict[str, Any], KeysValues]]
    )

    def __call__(self, source: object, **how: Any) -> KeysValues:
        for known, known_how, values in self.made:
            if known_how == how and _is_same(known, source):
                return values
        values = self.make(source, **how)
        if self.room.take(sum(tensor.nbytes for tensor in values)):
            self.made.append((source, how, values))
        return values


def _is_same(known: object, source: object) -> bool:
    """Whether a source is the one that is held: the same object, or a tensor that views the same memory likewise."""
    if known is source:
        return True
    if not isinstance(known, Tensor) or not isinstance(source, Tensor) or known.dtype != source.dtype:
        return False
    return (known.data_ptr(), known.shape, known.stride()) == (source.data_ptr(), source.shape, source.stride())


@contextmanager
def kept_keys_values(methods: Iterable[tuple[nn.Module, str]], room_bytes: int) -> Generator[Room]:
    """Inside, these methods of modules keep what they make of a source, all together in `room_bytes`.

    Args: methods: owner and name; each takes a source, which must not be changed, and perhaps keywords.
    """
    room = Room(room_bytes)
    replaced: list[tuple[nn.Module, str]] = []
    try:
        for owner, name in methods:
            setattr(owner, name, _Kept(getattr(owner, name), room))
            replaced.append((owner, name))
        yield room
    finally:
        for owner, name in replaced:
            delattr(owner, name)  # the class's own method shows again
