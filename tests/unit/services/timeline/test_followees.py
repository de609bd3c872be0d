"""Followees under graph's relation version."""

from __future__ import annotations

from typing import Any

import pytest
from roost.graph.v1 import graph_service_pb2 as graph

from services.platform.rpc.interceptors.endpoint import intercepted_methods
from services.platform.transport.inprocess import InProcessChannel
from services.timeline.followees import RelationCache, Relations
from tests.unit.services.timeline.conftest import READER, Graph, World

ANN, BOB, CAT = 2, 3, 4


def cache(world: World, edges_kept: int = 100) -> RelationCache:
    endpoints = intercepted_methods({"roost.graph.v1.GraphService": Graph(world)})
    return RelationCache(InProcessChannel(endpoints, "timeline"), edges_kept)


def test_followed_after_is_exclusive() -> None:
    relations = Relations(1, [(30, CAT), (10, ANN), (20, BOB)])
    assert list(relations.followed_after(9)) == [ANN, BOB, CAT]
    assert list(relations.followed_after(10)) == [BOB, CAT]
    assert list(relations.followed_after(30)) == []
    assert list(Relations(1, []).followed_after(0)) == []
    assert relations.followees == {ANN, BOB, CAT}


def test_celebrities_follow_the_tiers() -> None:
    class CelebritySubscriber:
        version = 1
        celebrities: tuple[int, ...] = (ANN, 99)

    tiers: Any = CelebritySubscriber()
    relations = Relations(1, [(10, ANN), (20, BOB)])
    assert list(relations.celebrities(tiers)) == [ANN]
    tiers.celebrities, tiers.version = (BOB,), 2
    assert list(relations.celebrities(tiers)) == [BOB]


async def test_followees_are_fetched_once_a_version(world: World) -> None:
    world.follow(ANN)
    relations = cache(world)
    for _ in range(3):
        assert (await relations.current(READER)).followees == {ANN}
    assert world.calls["StreamFollowingIds"] == 1
    world.follow(BOB)
    assert (await relations.current(READER)).followees == {ANN, BOB}
    world.unfollow(ANN)
    assert (await relations.current(READER)).followees == {BOB}
    assert world.calls["StreamFollowingIds"] == 3


async def test_many_followees_come_in_pages(world: World) -> None:
    for followee in range(2, 1_203):
        world.follow(followee)
    assert len((await cache(world).current(READER)).followees) == 1_201


async def test_a_change_while_they_are_fetched_is_seen_by_the_next_read(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.follow(ANN)
    relations = cache(world)
    stream = Graph.StreamFollowingIds

    async def overtaken(self: Graph, request: Any, context: Any) -> Any:
        async for message in stream(self, request, context):
            world.follow(BOB)
            yield message

    monkeypatch.setattr(Graph, "StreamFollowingIds", overtaken)
    fresh = cache(world)
    assert (await fresh.current(READER)).followees == {ANN}
    monkeypatch.undo()
    assert (await fresh.current(READER)).followees == {ANN, BOB}
    assert (await relations.current(READER)).followees == {ANN, BOB}


async def test_what_is_kept_is_bounded_by_edges(world: World) -> None:
    for reader in (1, 2, 3):
        for followee in (11, 12, 13):
            world.follow(followee, reader)
    relations = cache(world, edges_kept=8)
    for reader in (1, 2, 3, 3, 1):
        assert len((await relations.current(reader)).followees) == 3
    assert world.calls["StreamFollowingIds"] == 4
    # One who follows more than is kept at all is served all the same.
    for followee in range(100, 120):
        world.follow(followee, 4)
    for _ in range(2):
        assert len((await relations.current(4)).followees) == 20


def test_a_version_is_compared_for_equality() -> None:
    answer = graph.GetVisibilityFilterResponse(relation_version=3)
    assert Relations(4, []).version != answer.relation_version
