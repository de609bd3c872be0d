"""Tests the SQLite visibility cache: loads that overlap with writes must not cache outdated values."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from roost.graph.v1 import graph_service_pb2 as pb

from services.graph.store.sqlite.stores import stores_on
from services.graph.tier_publisher import TierRule
from services.platform.versions import MemoryVersions

ANN, BEN = 11, 22


class PausedDatabase:
    """A database whose reads take their snapshot at once and return only when they are released."""

    def __init__(self, db: Any) -> None:
        self._db = db
        self.taken = asyncio.Event()
        self.let_go = asyncio.Event()
        self.let_go.set()

    def hold(self) -> None:
        self.taken.clear()
        self.let_go.clear()

    async def read(self, unit: Callable[[Any], Any]) -> Any:
        result = await self._db.read(unit)
        self.taken.set()
        await self.let_go.wait()
        return result


@pytest.fixture
def paused_reads(graph) -> PausedDatabase:
    reads: Any = PausedDatabase(graph.stores.db)
    graph.stores.visibility._db = reads
    return reads


def filter_request(reader: int, *candidates: int) -> pb.GetVisibilityFilterRequest:
    return pb.GetVisibilityFilterRequest(user_id=reader, candidate_ids=candidates)


async def overlap(graph, paused_reads: PausedDatabase, request: pb.GetVisibilityFilterRequest, write: Any) -> None:
    """Lets a read take its snapshot, then the write return, then the read return."""
    paused_reads.hold()
    read = asyncio.create_task(graph.stores.visibility.filter(request))
    await paused_reads.taken.wait()
    await write
    paused_reads.let_go.set()
    await read


async def test_visibility_cache_reader_loaded_before_write_is_not_cached(graph, paused_reads):
    await overlap(
        graph, paused_reads, filter_request(ANN), graph.stores.edges.block(ANN, BEN, await graph.service.stamp())
    )
    assert list((await graph.stores.visibility.filter(filter_request(ANN))).blocked_ids) == [BEN]


@pytest.mark.parametrize("others", [0, 1])
async def test_visibility_cache_blocks_loaded_before_write_are_not_cached(graph, paused_reads, others):
    if others:
        await graph.stores.edges.block(BEN, 99, await graph.service.stamp())
    # ANN's own edges are cached: only BEN's blocks are read.
    await graph.stores.visibility.filter(filter_request(ANN))
    await overlap(
        graph, paused_reads, filter_request(ANN, BEN), graph.stores.edges.block(BEN, ANN, await graph.service.stamp())
    )
    # The first response is read from the tables, since the write dropped ANN's own edges; the second is cached.
    for _ in range(2):
        assert list((await graph.stores.visibility.filter(filter_request(ANN, BEN))).blocked_by_ids) == [BEN]


async def test_visibility_cache_version_is_never_newer_than_edges(graph):
    """Between a commit and its return the cache is outdated: a version read then must not be combined with cached
    edges."""
    await graph.stores.visibility.filter(filter_request(ANN, BEN))
    await graph.stores.edges.follow(ANN, 33, await graph.service.stamp())
    # A second set of stores on the same tables with its own cache: the one under test does not see its commits return.
    committed = stores_on(graph.stores.db, TierRule(3), MemoryVersions())
    change = await graph.service.stamp()
    await committed.edges.block(BEN, ANN, change)
    found = await graph.stores.visibility.filter(filter_request(ANN, BEN))
    assert (found.relation_version, list(found.blocked_by_ids)) == (change.version, [BEN])
