"""Fixtures: identity's store on the backend of this run."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from services.identity.store import Store
from services.identity.store.sqlite.store import EmbeddedStore
from services.platform.sqlite.event_log import EmbeddedLog
from tests.cluster import Namespace


@pytest.fixture
async def store(
    request: pytest.FixtureRequest, tmp_path: Path, namespaces: Callable[[], Namespace]
) -> AsyncIterator[Store]:
    """An empty store."""
    if request.config.getoption("--backend") == "embedded":
        embedded = await EmbeddedStore.open(tmp_path / "identity.db")
        yield embedded
        await embedded.close()
        return
    from services.identity.store.cassandra.store import CassandraStore

    # The log is a fake: the contract of the store does not include where events go.
    log = await EmbeddedLog.open(tmp_path / "log.db")
    store = await CassandraStore.open(await namespaces().cluster(), log, time.time)
    yield store
    await store.close()
    await log.close()
