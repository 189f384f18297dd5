"""Talking videos from a picture and speech: the `talk` command, and `generate` for Python programs."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from infinitalk_cli.api import generate
    from infinitalk_cli.errors import TalkError
    from infinitalk_cli.progress import Progress
    from infinitalk_cli.request import GenerateResult
    from infinitalk_cli.run_batch import WarmNetworks

__version__ = "0.1.0"

__all__ = ["GenerateResult", "Progress", "TalkError", "WarmNetworks", "__version__", "generate"]

HOMES = {
    "GenerateResult": "request",
    "Progress": "progress",
    "TalkError": "errors",
    "WarmNetworks": "run_batch",
    "generate": "api",
}
"""The module of each name above. It is loaded when the name is asked for: importing the package must cost nothing."""


def __getattr__(name: str) -> object:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{HOMES[name]}"), name)
