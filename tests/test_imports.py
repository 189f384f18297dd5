"""Who may import whom, read from the source: the borders between the shell and the engine's rooms."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest

import infinitalk_cli

PACKAGE = Path(infinitalk_cli.__file__).parent

HEAVY = {"torch", "numpy", "transformers", "huggingface_hub"}

STORE = (
    "manifest",
    "published",
    "part_file",
    "file_headers",
    "hub",
    "download",
    "download_plan",
    "hub_listings",
    "replaced_files",
    "weights_record",
    "weights_tree",
    "weights_import",
)
"""Fetching, checking and keeping the weights."""

DATA = (
    "errors",
    "progress",
    "interrupts",
    "job*",
    "subtitles",
    "profile*",
    "bench_store",
    "estimate",
    "footprint",
    "rungs",
    "rung_store",
    "settings_files",
    "request",
    "wishes",
    "voices",
    "speech_mark",
    "dialogue",
    "weights",
    "compact",
    "repackaged",
    "stored_form",
    "hardware*",
)
"""The shell's dataclasses and what makes them."""

SHELL = (
    *DATA,
    "console*",
    "options*",
    "prepare",
    "demo_command",
    "api",
    "before_run",
    "run_choice",
    "run_loras",
    "run_reports",
    "profiles_commands",
    "preview_command",
    "batch",
    "doctor*",
    "download_command",
    "weights_commands",
    "convert_command",
    "import_command",
)

ENGINE_PACKAGES = ("models*", "sampling*", "memory*", "media*", "parallel*")


@dataclass(frozen=True)
class Room:
    """Modules of one kind: `may` import at the top, `inside` functions too; only `heavy` ones import torch and such.

    Modules of a room may import one another. Names are relative to the package, with * as a wildcard.
    """

    members: tuple[str, ...]
    may: tuple[str, ...] = ()
    inside: tuple[str, ...] = ()
    typing_only: tuple[str, ...] = ()
    heavy: bool = False


ROOMS = (
    Room(("", "errors", "progress", "interrupts"), inside=("*",)),
    Room(("__main__",), may=("main",)),
    Room(
        ("main", "bench_command"),
        may=("", *SHELL),
        inside=("runner", "run_batch", "run_finished", "run_plan", "run_scenes", "demo", "bench", "web*"),
    ),
    Room(("api",), may=("", *SHELL), inside=("runner", "run_finished"), typing_only=("run_batch",)),
    Room(
        ("before_run",),
        may=("", "prepare", "run_choice", "run_reports", "models.config", *DATA),
        inside=("run_batch", "run_plan"),
    ),
    Room(("console", "console_options"), may=("errors", "progress")),
    Room(("job*", "subtitles", "dialogue"), may=("errors", "wishes")),
    Room(("voices",), may=("errors",)),
    Room(("espeak",), may=("errors", "voices", "speech_mark")),
    Room(("demo_package",), may=("errors", "weights")),
    Room(("demo_command",), may=("console*", "options*", "prepare", "espeak", "demo_package", *DATA)),
    Room(("weights", "compact", "repackaged", "stored_form"), may=("errors", "file_headers")),
    Room(STORE, may=("errors", "progress", "voices", "weights", "compact", "repackaged")),
    Room(("weights_reports",), may=("console",), typing_only=STORE),
    Room(
        ("download_command", "weights_commands", "convert_command", "import_command"),
        may=("console*", "options_values", "run_choice", *DATA),
        inside=(*STORE, "run_loras", "weights_reports", "convert", "convert_when_it_pays", "memory*"),
    ),
    Room(
        ("convert_when_it_pays",),
        may=("errors", "progress", "weights", "weights_record"),
        inside=("convert", "download"),
    ),
    Room(("hardware*",), may=("errors",)),
    Room(
        (
            "profiles",
            "profile_table",
            "profile_choice",
            "settings_files",
            "bench_store",
            "estimate",
            "footprint",
            "rungs",
            "rung_store",
        ),
        may=("errors", "hardware*", "models.config"),
    ),
    Room(("run_reports",), may=("console", "run_choice", *DATA), typing_only=("run_plan",)),
    Room(("batch",), may=("console*", "options*", "prepare", *DATA), inside=("run_batch", "run_plan")),
    Room(
        ("preview_command",),
        may=("console*", "options*", "prepare", "run_choice", "run_reports", *DATA),
        inside=("preview",),
    ),
    Room(("profiles_commands",), may=("console*", "run_choice", "run_reports", *DATA)),
    Room(("doctor_commands",), may=("console*", "errors"), inside=("doctor*",)),
    Room(("doctor_reports",), may=("", "doctor*", "run_choice", "run_reports", *DATA)),
    Room(("wishes",)),
    Room(("speech_mark",)),
    Room(("request",), may=("errors", "job", "profiles", "voices", "wishes", "speech_mark", "media.part_*")),
    Room(("options*", "prepare", "run_choice"), may=(*DATA, "console_options", "models.config", "run_loras", "espeak")),
    Room(("run_loras",), may=(*DATA, "manifest", "file_headers")),
    Room(
        ("doctor", "doctor_cuda", "doctor_machine", "doctor_packages", "doctor_probe", "doctor_deep", "doctor_online"),
        may=DATA,
        inside=("manifest", "weights_record", "weights_tree"),
    ),
    Room(("models*",), heavy=True),
    Room(("sampling*",), typing_only=("models*",), heavy=True),
    Room(("memory*",), may=("errors", "models.config"), heavy=True),
    Room(("media*",), may=("errors",), heavy=True),
    Room(("parallel*",), may=("errors", "models*"), heavy=True),
    Room(
        (
            *("gpu_room", "places", "preview", "run_batch"),
            *("runner", "run_inputs", "run_networks", "run_plan", "run_progress", "run_prompts"),
            *("run_blocks", "run_differences", "run_dtypes", "run_errors", "run_transformer", "run_vae"),
            *("run_record", "run_scenes", "run_speech", "run_resume", "run_team", "run_voice", "run_writing"),
            *("kernel_wish", "prompt_cache", "networks", "convert", "measure*", "run_finished"),
        ),
        may=("", "demo_package", *DATA, "part_file", "convert_when_it_pays", *ENGINE_PACKAGES),
        heavy=True,
    ),
    Room(("bench", "web*"), may=("", *SHELL, "runner", "measure*", "models*", "memory*"), heavy=True),
)


@dataclass(frozen=True)
class Import:
    """One import statement's target; `place`: "top", "inside" a function or class, or "typing" only."""

    target: str
    place: str
    line: int


def module_name(path: Path) -> str:
    """`models.dit` for models/dit.py, "" for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports_of(tree: ast.Module) -> Iterator[Import]:
    """Every import of a file, also those within functions and under TYPE_CHECKING."""
    yield from _imports_below(tree, "top")


def _imports_below(node: ast.AST, place: str) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, place, child.lineno) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"relative import in line {child.lineno}"
            yield from (Import(target, place, child.lineno) for target in _targets(child))
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            yield from (found for part in child.body for found in _imports_below(ast.Module([part], []), "typing"))
            yield from (found for part in child.orelse for found in _imports_below(ast.Module([part], []), place))
        elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield from _imports_below(child, "typing" if place == "typing" else "inside")
        else:
            yield from _imports_below(child, place)


def _targets(statement: ast.ImportFrom) -> Iterator[str]:
    """`from a import b` names the module a.b if there is one, else a."""
    module = statement.module or ""
    for alias in statement.names:
        below = PACKAGE.parent.joinpath(*module.split("."), alias.name)
        yield f"{module}.{alias.name}" if below.is_dir() or below.with_suffix(".py").is_file() else module


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def room_of(name: str) -> Room:
    found = [room for room in ROOMS if matches(name, room.members)]
    assert len(found) == 1, f"{name!r} stands in {len(found)} rooms of the table"
    return found[0]


def offences(name: str, tree: ast.Module) -> list[str]:
    """The imports of module `name` that the table does not allow."""
    room, told = room_of(name), list[str]()
    for found in imports_of(tree):
        where = f"{name or '__init__'}, line {found.line}: {found.target}"
        top, _, below = found.target.partition(".")
        if top == PACKAGE.name:
            allowed = room.members + room.may
            if found.place == "inside":
                allowed += room.inside
            elif found.place == "typing":
                allowed += room.inside + room.typing_only
            if not matches(below, allowed):
                told.append(where)
        elif top in HEAVY and found.place == "top" and not room.heavy:
            told.append(f"{where} at the top of a module of the shell")
    return told


SOURCES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@pytest.mark.parametrize("name", SOURCES, ids=lambda name: name or "__init__")
def test_module_imports_only_what_its_room_may(name: str) -> None:
    assert offences(name, ast.parse(SOURCES[name].read_text(encoding="utf-8"))) == []


def test_only_the_console_prints() -> None:
    printing = {
        name
        for name, path in SOURCES.items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "typer.echo", "typer.secho")
    }
    assert printing == {"console"}


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("job", "import torch"),
        ("job", "if True:\n    import numpy as np"),
        ("job", "from infinitalk_cli.main import app"),
        ("job", "def f():\n    from infinitalk_cli import runner"),
        ("weights", "from infinitalk_cli import job"),
        ("main", "from infinitalk_cli import runner"),
        ("models.dit", "from infinitalk_cli.errors import TalkError"),
        ("sampling.stream", "from infinitalk_cli.models.dit import DiT"),
        ("sampling.stream", "from infinitalk_cli.media import video"),
        ("memory.loading", "from infinitalk_cli.models import dit"),
        ("runner", "from infinitalk_cli.main import app"),
        ("media.audio", "import infinitalk_cli.sampling.stream"),
    ],
)
def test_a_forbidden_import_is_found(name: str, source: str) -> None:
    assert len(offences(name, ast.parse(source))) == 1


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("job", "def f():\n    import torch"),
        ("main", "def f():\n    from infinitalk_cli import runner"),
        ("sampling.stream", "if TYPE_CHECKING:\n    from infinitalk_cli.models.dit import DiT"),
        ("sampling.stream", "from infinitalk_cli.sampling import schedule"),
        ("memory.loading", "from infinitalk_cli.models import config"),
        ("runner", "import torch\nfrom infinitalk_cli.media.video import VideoWriter"),
    ],
)
def test_an_allowed_import_passes(name: str, source: str) -> None:
    assert offences(name, ast.parse(source)) == []
