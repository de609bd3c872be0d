"""Contract: several processes on one graph. A returned write is visible to all of them, and a half-finished write is
finished by another."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from pathlib import Path

import pytest
from roost.graph.v1 import graph_service_pb2 as pb

from services.graph.store import Listing, Position
from services.graph.store.cassandra.intent_sweeper import IntentSweeper
from services.graph.tier_publisher import TierPoller, TierPublisher
from services.platform.rpc import errors
from tests.waiting import wait_until_async

pytestmark = pytest.mark.cluster

ANN, BEN, CAT, DAN = 11, 22, 33, 44


@pytest.fixture
async def other(reopenable, backend, tmp_path: Path):
    """The same graph opened by a second process."""
    stores = await backend.open(tmp_path)
    yield stores
    await backend.close(stores)


async def lists(stores) -> dict[int, list[list[int]]]:
    """Returns (followers, followees) of each user, as the lists by user have them."""
    return {
        user: [
            [e.user_id for e in await stores.lists.page(kind, user, None, 10)]
            for kind in (Listing.FOLLOWERS, Listing.FOLLOWING)
        ]
        for user in (ANN, BEN)
    }


async def test_concurrent_follows_make_one_edge_and_one_event(stores, other, stamp, published):
    outcomes = await asyncio.gather(*((stores, other)[n % 2].edges.follow(ANN, BEN, stamp()) for n in range(100)))
    assert sum(outcome.changed for outcome in outcomes) == 1
    assert {outcome.relationship.following for outcome in outcomes} == {True}
    assert await published() == ["user.followed"]
    assert [len(found) for found in (await lists(other))[BEN]] == [1, 0]
    assert await other.counts.batch_get([ANN, BEN]) == {
        ANN: pb.UserCounts(following=1),
        BEN: pb.UserCounts(followers=1),
    }


async def test_racing_follows_and_blocks_leave_no_follow_across_block(stores, other, stamp):
    rng = random.Random(3)

    async def attempt(replica, verb: str, pair: tuple[int, int]) -> None:
        # A follow may be denied; no call may fail otherwise.
        with contextlib.suppress(errors.RoostError) if verb == "follow" else contextlib.nullcontext():
            await getattr(replica.edges, verb)(*pair, stamp())

    for _ in range(25):
        verbs = ["follow", "follow", "unfollow", "block", "unblock"]
        rng.shuffle(verbs)
        await asyncio.gather(
            *(attempt(rng.choice((stores, other)), verb, rng.choice(((ANN, BEN), (BEN, ANN)))) for verb in verbs)
        )
        (tie,) = await stores.edges.relationships(ANN, [BEN])
        if tie.blocking or tie.blocked_by:
            assert (tie.following, tie.followed_by) == (False, False)
        for replica in (stores, other):
            assert await lists(replica) == {
                ANN: [[BEN] * tie.followed_by, [BEN] * tie.following],
                BEN: [[ANN] * tie.following, [ANN] * tie.followed_by],
            }
            counts = (await replica.counts.batch_get([ANN])).get(ANN, pb.UserCounts())
            assert counts == pb.UserCounts(followers=int(tie.followed_by), following=int(tie.following))


async def test_write_of_one_replica_shows_in_next_filter_of_other(stores, other, stamp):
    request = pb.GetVisibilityFilterRequest(user_id=ANN, candidate_ids=[BEN, CAT], want_following=True)

    async def seen() -> tuple[list[int], ...]:
        found = await other.visibility.filter(request)
        return tuple(map(list, (found.blocked_ids, found.muted_ids, found.following_ids, found.blocked_by_ids)))

    for _ in range(5):
        assert await seen() == ([], [], [], [])
        await stores.edges.follow(ANN, CAT, stamp())
        assert await seen() == ([], [], [CAT], [])
        await stores.edges.block(BEN, ANN, stamp())
        assert await seen() == ([], [], [CAT], [BEN])
        await stores.edges.mute(ANN, CAT, stamp())
        assert await seen() == ([], [CAT], [CAT], [BEN])
        for undo, pair in (
            (stores.edges.unmute, (ANN, CAT)),
            (stores.edges.unblock, (BEN, ANN)),
            (stores.edges.unfollow, (ANN, CAT)),
        ):
            await undo(*pair, stamp())


def fail_once(monkeypatch, owner, method: str, at: int = 1) -> None:
    """Makes call number `at` of the method fail, as if the process died before it."""
    whole = getattr(owner, method)
    calls = 0

    async def fail(*args: object) -> None:
        nonlocal calls
        calls += 1
        if calls < at:
            await whole(*args)
            return
        monkeypatch.undo()
        raise errors.unavailable("the process died here")

    monkeypatch.setattr(owner, method, fail)


@pytest.mark.parametrize("by", ["repeat", "another change", "sweeper"])
@pytest.mark.parametrize("step", ["batch", "intent"])
async def test_edge_write_half_finished_by_dead_writer_is_completed(
    stores, other, stamp, published, monkeypatch, by, step
):
    owner, method = (
        (stores.keyspace, "unlogged_batch") if step == "batch" else (stores.edges._edge_writer._intents, "finish")
    )
    # The first batch writes the intent.
    fail_once(monkeypatch, owner, method, at=2 if step == "batch" else 1)
    with pytest.raises(errors.RoostError):
        await stores.edges.follow(ANN, BEN, stamp())
    if by == "repeat":
        assert not (await other.edges.follow(ANN, BEN, stamp())).changed
    elif by == "another change":
        await other.edges.mute(BEN, ANN, stamp())
    else:
        sweeper = IntentSweeper(other.keyspace, other.edges._edge_writer, lambda: time.time() + 180)
        assert await sweeper.sweep() >= 1
        assert await sweeper.sweep() == 0
    assert await lists(other) == {ANN: [[], [BEN]], BEN: [[ANN], []]}
    assert (await published()).count("user.followed") == 1
    assert await other.counts.batch_get([BEN]) == {BEN: pb.UserCounts(followers=1)}


async def test_compare_and_set_outcome_unknown_is_read_back(stores, stamp, monkeypatch, published):
    execute_lwt = stores.keyspace.execute_lwt

    async def unsure(*args: object) -> tuple[bool, tuple[object, ...]]:
        monkeypatch.undo()
        await execute_lwt(*args)
        raise errors.unavailable("no answer", reason="OUTCOME_UNKNOWN")

    monkeypatch.setattr(stores.keyspace, "execute_lwt", unsure)
    assert (await stores.edges.follow(ANN, BEN, stamp())).changed
    assert await published() == ["user.followed"]


async def test_compare_and_set_never_applied_fails_and_leaves_nothing(stores, stamp, monkeypatch, published):
    fail_once(monkeypatch, stores.keyspace, "execute_lwt")
    with pytest.raises(errors.RoostError, match="UNAVAILABLE"):
        await stores.edges.follow(ANN, BEN, stamp())
    assert await stores.edges.relationships(ANN, [BEN]) == [pb.Relationship(user_id=BEN)]
    assert await published() == []
    assert (await stores.edges.follow(ANN, BEN, stamp())).changed


async def test_edge_batch_applied_late_undoes_nothing(stores, stamp, monkeypatch):
    batches: list[list[object]] = []
    unlogged_batch = stores.keyspace.unlogged_batch

    async def keep(steps) -> None:
        kept = list(steps)
        # Intents are single statements.
        if len(kept) > 1:
            batches.append(kept)
        await unlogged_batch(kept)

    monkeypatch.setattr(stores.keyspace, "unlogged_batch", keep)
    await stores.edges.follow(ANN, BEN, stamp(at_ms=5_000))
    await stores.edges.unfollow(ANN, BEN, stamp())
    assert len(batches) == 2
    for late in batches:
        await unlogged_batch(late)
    assert await lists(stores) == {ANN: [[], []], BEN: [[], []]}
    await stores.edges.follow(ANN, BEN, stamp(at_ms=5_000))
    for late in list(batches)[:2]:
        await unlogged_batch(late)
    assert await stores.lists.page(Listing.FOLLOWERS, BEN, None, 10) == [Position(5_000, ANN)]


async def test_relation_version_refused_by_redis_is_published_later(stores, other, stamp, monkeypatch):
    request = pb.GetVisibilityFilterRequest(user_id=ANN)
    await other.visibility.filter(request)
    refused = 2

    async def refuse(*args) -> bool:
        nonlocal refused
        refused -= 1
        return refused < 0 and await change(*args)

    shared = stores.edges._edge_writer._shared
    change = shared.change_relations
    monkeypatch.setattr(shared, "change_relations", refuse)
    await stores.edges.block(ANN, BEN, stamp())

    async def shows() -> bool:
        return list((await other.visibility.filter(request)).blocked_ids) == [BEN]

    await wait_until_async(shows)
    assert refused < 0


async def test_visibility_filter_without_version_is_not_cached(stores, other, stamp, monkeypatch):
    async def nothing(_: int) -> None:
        return None

    monkeypatch.setattr(other.visibility._shared, "relation_version", nothing)
    request = pb.GetVisibilityFilterRequest(user_id=ANN)
    first = await other.visibility.filter(request)
    await stores.edges.block(ANN, BEN, stamp())
    second = await other.visibility.filter(request)
    assert (list(first.blocked_ids), list(second.blocked_ids)) == ([], [BEN])
    assert first.relation_version != second.relation_version


async def test_tier_changed_by_other_replica_reaches_publisher(stores, other, stamp):
    publisher = TierPublisher(time.time)
    other.tiers.on_change(publisher.publish)
    poller = TierPoller(other.tiers, publisher, time.time, every_s=0.02)
    await poller.start()
    try:
        for follower in range(100, 105):
            await stores.edges.follow(follower, ANN, stamp())

        async def is_published() -> bool:
            return [entry.user_id for entry in publisher.entries()] == [ANN]

        await wait_until_async(is_published)
    finally:
        await poller.stop()


async def test_tier_change_unpublished_is_published_by_next_writer(stores, other, stamp, monkeypatch, published):
    for follower in range(100, 104):
        await stores.edges.follow(follower, ANN, stamp())
    fail_once(monkeypatch, stores.tiers._tier_rows, "_publish")
    with pytest.raises(errors.RoostError):
        await stores.edges.follow(104, ANN, stamp())
    assert "user.tier_changed" not in await published()
    await other.edges.follow(105, ANN, stamp())
    assert (await published()).count("user.tier_changed") == 1
