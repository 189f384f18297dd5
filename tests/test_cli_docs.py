"""docs/cli.md says what the command line says."""

from __future__ import annotations

from pathlib import Path

from tests.cli_docs import document


def test_the_page_is_up_to_date() -> None:
    page = Path(__file__).parent.parent / "docs" / "cli.md"
    assert page.read_text(encoding="utf-8") == document(), "python -m tests.cli_docs > docs/cli.md"
