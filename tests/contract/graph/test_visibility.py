"""Contract: the visibility filter shows every write that returned, however often it was read before."""

from __future__ import annotations

import asyncio
import random

from roost.graph.v1 import graph_service_pb2 as pb

from services.graph.store.sqlite import visibility_cache

ANN, BEN, CAT, DAN = 11, 22, 33, 44


def filter_request(reader: int, *candidates: int, following: bool = True) -> pb.GetVisibilityFilterRequest:
    return pb.GetVisibilityFilterRequest(user_id=reader, candidate_ids=candidates, want_following=following)


async def test_visibility_without_edges_hides_no_author(stores):
    version = await stores.visibility.relation_version(ANN)
    assert await stores.visibility.filter(filter_request(ANN, BEN, CAT)) == pb.GetVisibilityFilterResponse(
        relation_version=version
    )


async def test_visibility_returns_own_edges_and_candidates_who_block(stores, stamp):
    await stores.edges.block(ANN, BEN, stamp())
    await stores.edges.mute(ANN, CAT, stamp())
    await stores.edges.block(DAN, ANN, stamp())
    await stores.edges.block(55, ANN, stamp())
    await stores.edges.follow(ANN, CAT, stamp())
    await stores.edges.follow(ANN, 66, stamp())
    for _ in range(2):
        found = await stores.visibility.filter(filter_request(ANN, CAT, DAN, 77))
        assert (list(found.blocked_ids), list(found.muted_ids)) == ([BEN], [CAT])
        # 55 blocks the reader and 66 is followed too, but neither is a candidate.
        assert (list(found.blocked_by_ids), list(found.following_ids)) == ([DAN], [CAT])
        assert found.relation_version == await stores.visibility.relation_version(ANN)


async def test_visibility_returns_followees_only_if_requested(stores, stamp):
    await stores.edges.follow(ANN, CAT, stamp())
    assert not (await stores.visibility.filter(filter_request(ANN, CAT, following=False))).following_ids


async def test_visibility_shows_every_write_at_next_read(stores, stamp):
    async def state() -> tuple[list[int], ...]:
        found = await stores.visibility.filter(filter_request(ANN, BEN))
        return tuple(map(list, (found.blocked_ids, found.muted_ids, found.following_ids, found.blocked_by_ids)))

    seen = {(await stores.visibility.filter(filter_request(ANN, BEN))).relation_version}
    steps = [
        (stores.edges.follow, ANN, BEN, ([], [], [BEN], [])),
        (stores.edges.mute, ANN, BEN, ([], [BEN], [BEN], [])),
        (stores.edges.block, BEN, ANN, ([], [BEN], [], [BEN])),
        (stores.edges.block, ANN, BEN, ([BEN], [BEN], [], [BEN])),
        (stores.edges.unblock, BEN, ANN, ([BEN], [BEN], [], [])),
        (stores.edges.unmute, ANN, BEN, ([BEN], [], [], [])),
        (stores.edges.unblock, ANN, BEN, ([], [], [], [])),
        (stores.edges.follow, ANN, BEN, ([], [], [BEN], [])),
        (stores.edges.unfollow, ANN, BEN, ([], [], [], [])),
    ]
    for write, source, target, expected in steps:
        await write(source, target, stamp())
        assert await state() == expected, write.__name__
        version = (await stores.visibility.filter(filter_request(ANN, BEN))).relation_version
        assert version not in seen
        seen.add(version)


async def test_visibility_with_edges_too_many_to_cache_is_correct(stores, stamp, monkeypatch):
    monkeypatch.setattr(visibility_cache, "MAX_CACHED_EDGES", 2)
    for other in (BEN, CAT, DAN, 55):
        await stores.edges.block(other + 100, ANN, stamp())
        for target in range(1, 5):
            await stores.edges.block(BEN, target, stamp())
        await stores.edges.follow(ANN, other, stamp())
        await stores.edges.block(ANN, other + 200, stamp())
    await stores.edges.block(BEN, ANN, stamp())
    for _ in range(2):
        found = await stores.visibility.filter(filter_request(ANN, BEN, CAT, DAN, 77, CAT + 100))
        assert sorted(found.blocked_ids) == [222, 233, 244, 255]
        assert sorted(found.following_ids) == [CAT, DAN]
        assert sorted(found.blocked_by_ids) == [BEN, CAT + 100]
        assert list((await stores.visibility.filter(filter_request(1, BEN))).blocked_by_ids) == [BEN]


async def test_visibility_cache_overflow_stays_correct(stores, stamp, monkeypatch):
    monkeypatch.setattr(visibility_cache, "MAX_NON_BLOCKERS", 3)
    await stores.edges.block(BEN, ANN, stamp())
    for _ in range(3):
        assert list((await stores.visibility.filter(filter_request(ANN, BEN, *range(100, 120)))).blocked_by_ids) == [
            BEN
        ]


async def test_visibility_is_never_older_than_a_returned_write(stores, stamp):
    """Readers race writers. Each reader knows which writes had returned before its read and which had begun after
    it."""
    rng = random.Random(7)
    returned = False
    begun = False
    version_states: dict[int, bool] = {}

    async def write() -> None:
        nonlocal returned, begun
        for number in range(60):
            begun = number % 2 == 0
            await (stores.edges.block if begun else stores.edges.unblock)(ANN, BEN, stamp())
            returned = begun
            await asyncio.sleep(rng.random() / 2_000)

    async def read(reader: int, candidate: int) -> None:
        for _ in range(80):
            before = (returned, begun)
            found = await stores.visibility.filter(filter_request(reader, candidate))
            after = (returned, begun)
            blocked = bool(found.blocked_ids if reader == ANN else found.blocked_by_ids)
            if before == after and before[0] == before[1]:
                assert blocked == before[0]
            if reader == ANN:
                # All responses with one version are equal.
                assert version_states.setdefault(found.relation_version, blocked) == blocked
            await asyncio.sleep(rng.random() / 4_000)

    await asyncio.gather(write(), *(read(ANN, BEN) for _ in range(3)), *(read(BEN, ANN) for _ in range(3)))
