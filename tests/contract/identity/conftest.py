"""The store of identity, once for each family of adapters."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.identity.store import Store
from services.identity.store.embedded import EmbeddedStore


@pytest.fixture(params=["embedded"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    """An empty store; a cluster family adds its name above and its adapter here."""
    opened = await EmbeddedStore.open(tmp_path / "identity.db")
    yield opened
    await opened.close()
