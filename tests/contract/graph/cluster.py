"""The cluster backend for the contract tests: real servers, with one namespace per test folder."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

from services.graph.store import GraphStores
from services.graph.store.cassandra.stores import CassandraGraphStores, open_stores
from services.graph.tier_publisher import TierRule
from services.platform.backends.cluster import ClusterBackends
from services.platform.config import Settings
from services.platform.events.log import Record
from services.platform.ids.snowflake import Snowflake, wall_clock_ms
from services.platform.sqlite.event_log import EmbeddedLog
from tests.cluster import backend

THRESHOLD = 5
# Differs from the worker ids of the tests' own stamps.
WORKER = 7


class CassandraBackend:
    """Opens Cassandra stores; each has connections of its own, like a process of its own.

    The stores read the time from `clock`, which a test may replace.
    """

    def __init__(self) -> None:
        self.clock: Callable[[], float] = time.time
        self._stacks: dict[GraphStores, AsyncExitStack] = {}

    async def open(self, folder: Path, threshold: int = THRESHOLD) -> CassandraGraphStores:
        stack = AsyncExitStack()
        cluster = await ClusterBackends.open(Settings(**backend.of(folder).settings), stack)
        # Publishing is tested elsewhere, so a log in the folder receives the events.
        log = await EmbeddedLog.open(folder / f"log-{id(stack)}.db")
        stack.push_async_callback(log.close)
        mint = Snowflake(WORKER, wall_clock_ms).mint
        stores = await open_stores(cluster, log, TierRule(threshold), mint, lambda: self.clock())
        self._stacks[stores] = stack
        return stores

    async def close(self, stores: GraphStores) -> None:
        await stores.close()
        await self._stacks.pop(stores).aclose()

    async def published(self, stores: GraphStores) -> list[Record]:
        assert isinstance(stores, CassandraGraphStores)
        rows = await stores.keyspace.read("SELECT topic, key, event_id, payload, traceparent FROM outbox")
        return sorted((Record(*row) for row in rows), key=lambda record: record.event_id)
