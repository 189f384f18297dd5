"""What every test can rely on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def _no_prompt_cache() -> Iterator[None]:  # pyright: ignore[reportUnusedFunction]
    """Runs neither use nor leave anything of the user's; a test of the cache names a folder of its own."""
    with pytest.MonkeyPatch.context() as session:
        session.setenv("TALK_PROMPT_CACHE", "")
        yield
