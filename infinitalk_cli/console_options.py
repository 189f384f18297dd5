"""The options that every command has in common, and how a dataclass of options becomes a command's options.

A command's options are the fields of a frozen dataclass, so that they travel as one value. Those derived from
`ConsoleOptions` mean the same everywhere: data on stdout, everything else on stderr.
"""

import inspect
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from typer.core import TyperGroup

from infinitalk_cli.console import Console

WEIGHTS_DIR_DEFAULT = "$TALK_WEIGHTS_DIR, ./weights or the user's data folder"

output_option = partial(typer.Option, rich_help_panel="Output")
"""An option of the help's panel of that name; so are the like of it in other modules."""

WeightsDir = Annotated[Path | None, typer.Option(help="Folder of the weights.", show_default=WEIGHTS_DIR_DEFAULT)]

HIDDEN = ("more", "given", "record")
"""Fields of options that are no options."""


class ProgressWish(str, Enum):
    """How progress is shown: a bar on a terminal and lines elsewhere, or as said."""

    auto = "auto"
    rich = "rich"
    plain = "plain"
    json = "json"
    none = "none"


@dataclass(frozen=True, kw_only=True)
class ConsoleOptions:
    """How a command speaks."""

    quiet: Annotated[bool, output_option("--quiet", "-q", help="Print the result alone.")] = False
    as_json: Annotated[bool, output_option("--json", help="Print one JSON object.")] = False
    debug: Annotated[bool, output_option("--debug", help="Show where an error comes from.")] = False

    def console(self) -> Console:
        """The terminal as wished."""
        return Console(quiet=self.quiet, as_json=self.as_json, debug=self.debug)


@dataclass(frozen=True, kw_only=True)
class ProgressOptions(ConsoleOptions):
    """How a command speaks that takes a while."""

    progress: Annotated[
        ProgressWish, output_option(help="Form of the progress on stderr; json: an object per line.")
    ] = ProgressWish.auto

    def console(self) -> Console:
        """The terminal as wished."""
        return Console(quiet=self.quiet, as_json=self.as_json, debug=self.debug, form=self.progress.value)


class Commands(TyperGroup):
    """Commands that name a wrong value of an option in plain words, also where Typer leaves that to pydantic."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command. Raises: typer.BadParameter: for a wrong value, reworded."""
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            error.message = in_plain_words(error.message, error.__cause__)
            raise


def in_plain_words(message: str, cause: BaseException | None) -> str:
    """What is wrong with a value, which pydantic's own words do not tell. `cause`: pydantic's error, if it is one."""
    from pydantic import ValidationError

    if not isinstance(cause, ValidationError):
        return message
    found = cause.errors(include_url=False)[0]
    if found["type"] == "value_error":
        return message.removeprefix("Value error, ")
    wanted = re.match(r"Input should be (a valid \w+)", found["msg"])
    value = repr(found["input"])
    return f"{value} is not {wanted[1]}." if wanted else f"{value}: {found['msg']}"


def taking(
    options: type[Any], shown: Collection[str] | None = None
) -> Callable[[Callable[[Any], None]], Callable[..., None]]:
    """Let a command that takes one dataclass show that dataclass's fields to Typer as its options.

    `shown`: these alone, None for all; the others keep their defaults. Fields whose name is in `HIDDEN` are never
    shown: `more` is given the arguments that are left over, where the command allows any, and `given` the names of the
    options that stood on the command line.
    """
    whole = inspect.signature(options).parameters

    def wrap(command: Callable[[Any], None]) -> Callable[..., None]:
        def run(context: typer.Context, **values: Any) -> None:
            hidden: dict[str, Any] = {"more": tuple(context.args)} if context.args else {}
            if "given" in whole:
                hidden["given"] = frozenset(name for name in values if _stood_there(context, name))
            command(options(**values, **hidden))

        kept = [field for name, field in whole.items() if name not in HIDDEN and (shown is None or name in shown)]
        context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
        run.__name__, run.__doc__ = command.__name__, _flowing(command.__doc__ or "")
        run.__annotations__ = {**get_type_hints(options, include_extras=True), "context": typer.Context}
        signature = inspect.Signature([*kept, context])
        setattr(run, "__signature__", signature)  # noqa: B010  functions have no such declared field
        return run

    return wrap


def _flowing(text: str) -> str:
    r"""A docstring with a line to each paragraph, as help breaks lines where they are broken; those of \b stay."""
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(part if part.startswith("\b") else " ".join(part.split()) for part in paragraphs)


def _stood_there(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
