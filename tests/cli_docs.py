"""The text of docs/cli.md, made from the command itself: `python -m tests.cli_docs > docs/cli.md`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

from infinitalk_cli import errors
from infinitalk_cli.main import app

HEAD = """# The command line

Made by `python -m tests.cli_docs > docs/cli.md`; a test compares. stdout is data, stderr is talk.

## Exit codes

| code | meaning |
|---|---|
| 0 | done |
| 1 | unexpected: a mistake of ours; `--debug` shows where |
"""


def document() -> str:
    """The whole page."""
    return "\n".join([HEAD + "\n".join(exit_codes()), "", *command_lines(typer.main.get_command(app), "talk"), ""])


def exit_codes() -> Iterator[str]:
    """A row for every code; kinds of errors may share one."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.TalkError)]
    meanings: dict[int, list[str]] = {}
    for kind in kinds:
        if kind is not errors.TalkError:
            meanings.setdefault(kind.exit_code, []).append((kind.__doc__ or "").strip())
    for code, meaning in sorted(meanings.items()):
        yield f"| {code} | {' '.join(meaning)} |"


def command_lines(command: Any, name: str) -> Iterator[str]:
    """A section for a command, then those of its subcommands."""
    if not hasattr(command, "commands"):
        yield from section(command, name)
    for subname, subcommand in sorted(getattr(command, "commands", {}).items()):
        yield from command_lines(subcommand, f"{name} {subname}")


def section(command: Any, name: str) -> Iterator[str]:
    """What a command does, and a row for each of its options."""
    text, _, examples = (command.help or "").partition("\b")
    yield from (f"## {name}", "", " ".join(text.split()), "")
    if examples.strip():
        lines = [line.strip() for line in examples.strip().splitlines()]
        yield from ("```", *[line for line in lines if line and line != "Examples:"], "```", "")
    rows = [row(parameter) for parameter in command.params if parameter.name != "help"]
    if rows:
        yield from ("| option | meaning |", "|---|---|", *rows, "")


def row(parameter: Any) -> str:
    """One option or argument."""
    names = [*parameter.opts, *parameter.secondary_opts]
    spelled = ", ".join(f"`{name}`" for name in names if name.startswith("-")) or f"`{argument_name(parameter)}`"
    return f"| {spelled} | {' '.join((parameter.help or '').split()).replace('|', chr(92) + '|')} |"


def argument_name(argument: Any) -> str:
    """What stands for an argument."""
    return argument.metavar or f"[{argument.name.upper()}]{'...' if argument.nargs == -1 else ''}"


if __name__ == "__main__":
    print(document(), end="")
