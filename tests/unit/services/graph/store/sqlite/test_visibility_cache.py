"""The memory beside the tables: reads that overlap with writes must leave nothing old behind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from roost.graph.v1 import graph_service_pb2 as pb

from services.graph.store.sqlite.store import EmbeddedGraphStore
from services.graph.store.sqlite.visibility_cache import Visibility
from services.graph.tier_publisher import TierRule

ANN, BEN = 11, 22


class HeldReads:
    """A database whose reads see their snapshot at once and come back when they are let go."""

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
def held(graph) -> HeldReads:
    reads: Any = HeldReads(graph.store.db)
    graph.store._visibility = Visibility(reads)
    return reads


def asks(reader: int, *candidates: int) -> pb.GetVisibilityFilterRequest:
    return pb.GetVisibilityFilterRequest(user_id=reader, candidate_ids=candidates)


async def overlap(graph, held: HeldReads, request: pb.GetVisibilityFilterRequest, write: Any) -> None:
    """Lets a read take its snapshot, then the write return, then the read."""
    held.hold()
    read = asyncio.create_task(graph.store.visibility(request))
    await held.taken.wait()
    await write
    held.let_go.set()
    await read


async def test_a_reader_read_before_a_write_is_not_kept_after_it(graph, held):
    await overlap(graph, held, asks(ANN), graph.store.block(ANN, BEN, await graph.service.stamp()))
    assert list((await graph.store.visibility(asks(ANN))).blocked_ids) == [BEN]


@pytest.mark.parametrize("others", [0, 1])
async def test_a_blocker_read_before_a_write_is_not_kept_after_it(graph, held, others):
    if others:
        await graph.store.block(BEN, 99, await graph.service.stamp())
    # ANN's own edges are in memory: only whom BEN blocks is read.
    await graph.store.visibility(asks(ANN))
    await overlap(graph, held, asks(ANN, BEN), graph.store.block(BEN, ANN, await graph.service.stamp()))
    # The first answer comes from the tables, since the write dropped ANN's own edges; the second from memory.
    for _ in range(2):
        assert list((await graph.store.visibility(asks(ANN, BEN))).blocked_by_ids) == [BEN]


async def test_a_version_is_never_newer_than_what_is_answered_with_it(graph):
    """Between a commit and its return memory is old: a version read then must not vouch for what memory says."""
    await graph.store.visibility(asks(ANN, BEN))
    await graph.store.follow(ANN, 33, await graph.service.stamp())
    # Of the same tables but other memory: what it commits has not returned to the store under test.
    committed = EmbeddedGraphStore(graph.store.db, TierRule(3))
    change = await graph.service.stamp()
    await committed.block(BEN, ANN, change)
    found = await graph.store.visibility(asks(ANN, BEN))
    assert (found.relation_version, list(found.blocked_by_ids)) == (change.version, [BEN])
