"""Tests the cache of followees under the versions of relations."""

from __future__ import annotations

from typing import Any

import pytest

from services.platform.rpc.interceptors.endpoint import intercepted_methods
from services.platform.transport.inprocess import InProcessChannel
from services.timeline.followees import FolloweeCache, FolloweeSet
from tests.unit.services.timeline.conftest import READER, Graph, World

ANN, BOB, CAT = 2, 3, 4


def cache(world: World, max_cached_edges: int = 100) -> FolloweeCache:
    endpoints = intercepted_methods({"roost.graph.v1.GraphService": Graph(world)})
    return FolloweeCache(InProcessChannel(endpoints, "timeline"), world.versions, max_cached_edges)


async def current(relations: FolloweeCache, world: World, reader: int) -> FolloweeSet:
    """Returns the reader's followees as a read does: the cached ones if their version is current."""
    cached = relations.cached(reader)
    (is_current,) = await world.versions.current((cached,))
    return cached.value if cached is not None and is_current else await relations.fetch(reader)


def test_followed_after_bound_is_exclusive() -> None:
    relations = FolloweeSet([(30, CAT), (10, ANN), (20, BOB)])
    assert list(relations.followed_after(9)) == [ANN, BOB, CAT]
    assert list(relations.followed_after(10)) == [BOB, CAT]
    assert list(relations.followed_after(30)) == []
    assert list(FolloweeSet([]).followed_after(0)) == []
    assert relations.followees == {ANN, BOB, CAT}


def test_celebrities_change_with_tiers() -> None:
    class CelebritySubscriber:
        version = 1
        celebrities: tuple[int, ...] = (ANN, 99)

    tiers: Any = CelebritySubscriber()
    relations = FolloweeSet([(10, ANN), (20, BOB)])
    assert list(relations.celebrities(tiers)) == [ANN]
    tiers.celebrities, tiers.version = (BOB,), 2
    assert list(relations.celebrities(tiers)) == [BOB]


async def test_followees_are_fetched_once_per_version(world: World) -> None:
    world.follow(ANN)
    relations = cache(world)
    for _ in range(3):
        assert (await current(relations, world, READER)).followees == {ANN}
    assert world.calls["StreamFollowingIds"] == 1
    world.follow(BOB)
    assert (await current(relations, world, READER)).followees == {ANN, BOB}
    world.unfollow(ANN)
    assert (await current(relations, world, READER)).followees == {BOB}
    assert world.calls["StreamFollowingIds"] == 3


async def test_followees_of_several_pages_are_complete(world: World) -> None:
    for followee in range(2, 1_203):
        world.follow(followee)
    assert len((await current(cache(world), world, READER)).followees) == 1_201


async def test_followees_changed_during_fetch_are_refetched(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.follow(ANN)
    relations = cache(world)
    stream = Graph.StreamFollowingIds

    async def overtaken(self: Graph, request: Any, context: Any) -> Any:
        async for message in stream(self, request, context):
            world.follow(BOB)
            yield message

    monkeypatch.setattr(Graph, "StreamFollowingIds", overtaken)
    fresh = cache(world)
    assert (await current(fresh, world, READER)).followees == {ANN}
    monkeypatch.undo()
    assert (await current(fresh, world, READER)).followees == {ANN, BOB}
    assert (await current(relations, world, READER)).followees == {ANN, BOB}


async def test_followee_cache_is_bounded_by_edges(world: World) -> None:
    for reader in range(1, 7):
        for followee in (11, 12, 13):
            world.follow(followee, reader)
    # A generation holds two readers of weight 4.
    relations = cache(world, max_cached_edges=8)
    for reader in (1, 2, 3, 4, 5, 6, 6, 5):
        assert len((await current(relations, world, reader)).followees) == 3
    assert world.calls["StreamFollowingIds"] == 6
    await current(relations, world, 1)
    assert world.calls["StreamFollowingIds"] == 7
    # A reader with more followees than the cache holds is served without caching.
    for followee in range(100, 120):
        world.follow(followee, 7)
    for _ in range(2):
        assert len((await current(relations, world, 7)).followees) == 20
