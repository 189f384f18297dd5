"""What the tests of `talk download` do and look at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from typer.testing import CliRunner, Result

from infinitalk_cli.main import app
from tests.hub_server import HubServer
from tests.hub_tree import content_at


def download(*arguments: str) -> Result:
    """The command without the conversion, which these made-up contents are not for."""
    return CliRunner().invoke(app, ["download", "--no-convert", *arguments])


def talk_json(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    return cast("dict[str, Any]", json.loads(result.stdout))


def tree(folder: Path) -> set[str]:
    """The files under a folder, without our own record."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {path.as_posix() for path in found if path.parts[0] != ".talk"}


def assert_right(hub: HubServer, folder: Path, places: tuple[str, ...]) -> None:
    assert tree(folder) == set(places)
    for place in places:
        assert (folder / place).read_bytes() == content_at(hub, place), place
