"""Several processes over one graph: what one returned the other shows, and what one began another finishes."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from pathlib import Path

import pytest
from roost.graph.v1 import graph_service_pb2 as pb

from services.graph.store import Listing, Position
from services.graph.store.cassandra.intent_sweeper import Sweeper
from services.graph.tier_publisher import TierPublisher, TierWatch
from services.platform.rpc import errors

pytestmark = pytest.mark.cluster

ANN, BEN, CAT, DAN = 11, 22, 33, 44
SOON_S = 10.0


@pytest.fixture
async def other(opened, backend, tmp_path: Path):
    """The same graph from a second process."""
    store = await backend.open(tmp_path)
    yield store
    await backend.close(store)


async def lists(store) -> dict[int, list[list[int]]]:
    """Of each person: followers, followees, as the lists by user have them."""
    return {
        user: [
            [e.user_id for e in await store.page(kind, user, None, 10)]
            for kind in (Listing.FOLLOWERS, Listing.FOLLOWING)
        ]
        for user in (ANN, BEN)
    }


async def eventually(condition) -> None:
    async with asyncio.timeout(SOON_S):
        while not await condition():
            await asyncio.sleep(0.02)


async def test_a_hundred_follows_at_once_are_one_edge_and_one_event(store, other, stamp, published):
    outcomes = await asyncio.gather(*((store, other)[n % 2].follow(ANN, BEN, stamp()) for n in range(100)))
    assert sum(outcome.changed for outcome in outcomes) == 1
    assert {outcome.relationship.following for outcome in outcomes} == {True}
    assert await published() == ["user.followed"]
    assert [len(found) for found in (await lists(other))[BEN]] == [1, 0]
    assert await other.counts([ANN, BEN]) == {ANN: pb.UserCounts(following=1), BEN: pb.UserCounts(followers=1)}


async def test_follows_and_blocks_that_race_leave_no_follow_across_a_block(store, other, stamp):
    rng = random.Random(3)

    async def attempt(replica, verb: str, pair: tuple[int, int]) -> None:
        # A follow may be refused; nothing may fail.
        with contextlib.suppress(errors.RoostError) if verb == "follow" else contextlib.nullcontext():
            await getattr(replica, verb)(*pair, stamp())

    for _ in range(25):
        verbs = ["follow", "follow", "unfollow", "block", "unblock"]
        rng.shuffle(verbs)
        await asyncio.gather(
            *(attempt(rng.choice((store, other)), verb, rng.choice(((ANN, BEN), (BEN, ANN)))) for verb in verbs)
        )
        (tie,) = await store.relationships(ANN, [BEN])
        if tie.blocking or tie.blocked_by:
            assert (tie.following, tie.followed_by) == (False, False)
        for replica in (store, other):
            assert await lists(replica) == {
                ANN: [[BEN] * tie.followed_by, [BEN] * tie.following],
                BEN: [[ANN] * tie.following, [ANN] * tie.followed_by],
            }
            counts = (await replica.counts([ANN])).get(ANN, pb.UserCounts())
            assert counts == pb.UserCounts(followers=int(tie.followed_by), following=int(tie.following))


async def test_what_one_replica_wrote_shows_in_the_others_next_filter(store, other, stamp):
    request = pb.GetVisibilityFilterRequest(user_id=ANN, candidate_ids=[BEN, CAT], want_following=True)

    async def seen() -> tuple[list[int], ...]:
        found = await other.visibility(request)
        return tuple(map(list, (found.blocked_ids, found.muted_ids, found.following_ids, found.blocked_by_ids)))

    for _ in range(5):
        assert await seen() == ([], [], [], [])
        await store.follow(ANN, CAT, stamp())
        assert await seen() == ([], [], [CAT], [])
        await store.block(BEN, ANN, stamp())
        assert await seen() == ([], [], [CAT], [BEN])
        await store.mute(ANN, CAT, stamp())
        assert await seen() == ([], [CAT], [CAT], [BEN])
        for undo, pair in ((store.unmute, (ANN, CAT)), (store.unblock, (BEN, ANN)), (store.unfollow, (ANN, CAT))):
            await undo(*pair, stamp())


def break_once(monkeypatch, owner, method: str, at: int = 1) -> None:
    """The next call of it fails, or the one after so many, as for a process that dies before it."""
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
@pytest.mark.parametrize("step", ["batch", "settle"])
async def test_a_change_that_its_writer_left_half_done_is_finished(
    store, other, stamp, published, monkeypatch, by, step
):
    owner, method = (store.keyspace, "unlogged_batch") if step == "batch" else (store._ties, "_settle")
    # The first batch is the note's.
    break_once(monkeypatch, owner, method, at=2 if step == "batch" else 1)
    with pytest.raises(errors.RoostError):
        await store.follow(ANN, BEN, stamp())
    if by == "repeat":
        assert not (await other.follow(ANN, BEN, stamp())).changed
    elif by == "another change":
        await other.mute(BEN, ANN, stamp())
    else:
        sweeper = Sweeper(other.keyspace, other._ties, lambda: time.time() + 180)
        assert await sweeper.sweep() >= 1
        assert await sweeper.sweep() == 0
    assert await lists(other) == {ANN: [[], [BEN]], BEN: [[ANN], []]}
    assert (await published()).count("user.followed") == 1
    assert await other.counts([BEN]) == {BEN: pb.UserCounts(followers=1)}


async def test_a_swap_whose_outcome_is_unknown_is_looked_up(store, stamp, monkeypatch, published):
    execute_lwt = store.keyspace.execute_lwt

    async def unsure(*args: object) -> tuple[bool, tuple[object, ...]]:
        monkeypatch.undo()
        await execute_lwt(*args)
        raise errors.unavailable("no answer", reason="OUTCOME_UNKNOWN")

    monkeypatch.setattr(store.keyspace, "execute_lwt", unsure)
    assert (await store.follow(ANN, BEN, stamp())).changed
    assert await published() == ["user.followed"]


async def test_a_swap_that_never_arrived_is_refused_and_leaves_nothing(store, stamp, monkeypatch, published):
    break_once(monkeypatch, store.keyspace, "execute_lwt")
    with pytest.raises(errors.RoostError, match="UNAVAILABLE"):
        await store.follow(ANN, BEN, stamp())
    assert await store.relationships(ANN, [BEN]) == [pb.Relationship(user_id=BEN)]
    assert await published() == []
    assert (await store.follow(ANN, BEN, stamp())).changed


async def test_a_batch_that_comes_late_undoes_nothing(store, stamp, monkeypatch):
    batches: list[list[object]] = []
    unlogged_batch = store.keyspace.unlogged_batch

    async def keep(steps) -> None:
        kept = list(steps)
        # Notes and their marks come one by one.
        if len(kept) > 1:
            batches.append(kept)
        await unlogged_batch(kept)

    monkeypatch.setattr(store.keyspace, "together", keep)
    await store.follow(ANN, BEN, stamp(at_ms=5_000))
    await store.unfollow(ANN, BEN, stamp())
    assert len(batches) == 2
    for late in batches:
        await unlogged_batch(late)
    assert await lists(store) == {ANN: [[], []], BEN: [[], []]}
    await store.follow(ANN, BEN, stamp(at_ms=5_000))
    for late in list(batches)[:2]:
        await unlogged_batch(late)
    assert await store.page(Listing.FOLLOWERS, BEN, None, 10) == [Position(5_000, ANN)]


async def test_a_mark_that_redis_did_not_take_is_made_later(store, other, stamp, monkeypatch):
    request = pb.GetVisibilityFilterRequest(user_id=ANN)
    await other.visibility(request)
    refused = 2

    async def refuse(*args) -> bool:
        nonlocal refused
        refused -= 1
        return refused < 0 and await change(*args)

    shared = store._ties._shared
    change = shared.change_relations
    monkeypatch.setattr(shared, "change_relations", refuse)
    await store.block(ANN, BEN, stamp())

    async def shows() -> bool:
        return list((await other.visibility(request)).blocked_ids) == [BEN]

    await eventually(shows)
    assert refused < 0


async def test_a_filter_is_not_kept_while_nobody_vouches_for_it(store, other, stamp, monkeypatch):
    async def nothing(_: int) -> None:
        return None

    monkeypatch.setattr(other._filters._shared, "relation_version", nothing)
    request = pb.GetVisibilityFilterRequest(user_id=ANN)
    first = await other.visibility(request)
    await store.block(ANN, BEN, stamp())
    second = await other.visibility(request)
    assert (list(first.blocked_ids), list(second.blocked_ids)) == ([], [BEN])
    assert first.relation_version != second.relation_version


async def test_a_tier_that_another_replica_changed_reaches_the_board(store, other, stamp):
    board = TierPublisher(time.time)
    other.on_tier_change(board.post)
    watch = TierWatch(other, board, time.time, every_s=0.02)
    await watch.start()
    try:
        for follower in range(100, 105):
            await store.follow(follower, ANN, stamp())

        async def posted() -> bool:
            return [entry.user_id for entry in board.entries()] == [ANN]

        await eventually(posted)
    finally:
        await watch.stop()


async def test_a_tier_that_was_moved_and_not_told_is_told_by_the_next(store, other, stamp, monkeypatch, published):
    for follower in range(100, 104):
        await store.follow(follower, ANN, stamp())
    break_once(monkeypatch, store._stars, "_tell")
    with pytest.raises(errors.RoostError):
        await store.follow(104, ANN, stamp())
    assert "user.tier_changed" not in await published()
    await other.follow(105, ANN, stamp())
    assert (await published()).count("user.tier_changed") == 1
