"""`talk weights` as its tests call it, and published sums of their own."""

from __future__ import annotations

import hashlib
import json
from typing import Any, cast

import pytest
from typer.testing import CliRunner, Result

from infinitalk_cli import published, weights_import, weights_tree
from infinitalk_cli.main import app
from infinitalk_cli.published import Published
from tests.hub_server import HubServer
from tests.hub_tree import content_at


def weights(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["weights", *arguments])


def report_of(*arguments: str) -> dict[str, Any]:
    result = weights(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return cast("dict[str, Any]", json.loads(result.stdout))


def publish(monkeypatch: pytest.MonkeyPatch, *listed: Published) -> None:
    """Let these be the published sums."""
    monkeypatch.setattr(published, "PUBLISHED", listed)
    monkeypatch.setattr(weights_import, "PUBLISHED", listed)
    by_sha256 = {item.sha256: item for item in listed}
    monkeypatch.setattr(weights_tree, "BY_SHA256", by_sha256)


def published_file(hub: HubServer, place: str) -> Published:
    content = content_at(hub, place)
    return Published(place.rpartition("/")[2], len(content), hashlib.sha256(content).hexdigest(), place)
