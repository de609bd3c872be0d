"""Fixtures: identity's store on the backend of this run."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from services.identity.store import IdentityStores
from services.identity.store.sqlite import stores as sqlite
from services.platform.sqlite.event_log import EmbeddedLog
from services.platform.versions import MemoryVersions
from tests.cluster import Namespace


@pytest.fixture
async def stores(
    request: pytest.FixtureRequest, tmp_path: Path, namespaces: Callable[[], Namespace]
) -> AsyncIterator[IdentityStores]:
    """An empty stores."""
    if request.config.getoption("--backend") == "embedded":
        embedded = await sqlite.open_stores(tmp_path / "identity.db", MemoryVersions())
        yield embedded
        await embedded.close()
        return
    from services.identity.store.cassandra.stores import open_stores

    # The log is a fake: the contract of the store does not include where events go.
    log = await EmbeddedLog.open(tmp_path / "log.db")
    stores = await open_stores(await namespaces().cluster(), log, time.time)
    yield stores
    await stores.close()
    await log.close()
