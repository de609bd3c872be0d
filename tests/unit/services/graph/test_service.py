"""Tests the rules of the graph service: who may follow, block and mute whom, and who sees which list."""

from __future__ import annotations

import asyncio
from itertools import chain

import grpc
import pytest
import structlog
from roost.graph.v1 import graph_service_pb2 as pb
from roost.identity.v1 import user_pb2

from services.graph import service
from services.platform.rpc import errors
from services.shared.hydration import user_pages

ANN, BEN, CAT, DAN = 1, 2, 3, 4
NOBODY = 0
STRANGER = 500


async def error_code_of(awaitable) -> grpc.StatusCode:
    with pytest.raises(errors.RoostError) as refused:
        await awaitable
    return refused.value.code


async def collect(stream) -> list:
    return [message async for message in stream]


async def test_follow_repeated_returns_same_relationship(graph):
    for _ in range(2):
        answer = await graph.call(ANN, "Follow", pb.FollowRequest(user_id=BEN))
        assert answer.relationship == pb.Relationship(user_id=BEN, following=True)
    answer = await graph.call(ANN, "Unfollow", pb.UnfollowRequest(user_id=BEN))
    assert answer.relationship == pb.Relationship(user_id=BEN)


VERBS = ["Follow", "Unfollow", "Block", "Unblock", "Mute", "Unmute"]


@pytest.mark.parametrize("verb", VERBS)
async def test_edge_write_to_self_is_invalid(graph, verb):
    request = getattr(pb, f"{verb}Request")(user_id=ANN)
    assert await error_code_of(graph.call(ANN, verb, request)) == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("verb", VERBS)
async def test_edge_write_to_unknown_user_is_not_found(graph, verb):
    request = getattr(pb, f"{verb}Request")(user_id=STRANGER)
    assert await error_code_of(graph.call(ANN, verb, request)) == grpc.StatusCode.NOT_FOUND
    assert await graph.stores.visibility.relation_version(ANN) == 0


@pytest.mark.parametrize("state", [user_pb2.USER_STATE_SUSPENDED, user_pb2.USER_STATE_DEACTIVATED])
@pytest.mark.parametrize("verb", ["Follow", "Block", "Mute"])
async def test_inactive_user_cannot_be_followed_but_can_be_unfollowed(graph, verb, state):
    await graph.call(ANN, verb, getattr(pb, f"{verb}Request")(user_id=BEN))
    graph.identity.states |= {BEN: state, CAT: state}
    request = getattr(pb, f"{verb}Request")(user_id=CAT)
    assert await error_code_of(graph.call(ANN, verb, request)) == grpc.StatusCode.NOT_FOUND
    undo = "Un" + verb.lower()
    for user_id in (BEN, CAT):
        answer = await graph.call(ANN, undo, getattr(pb, f"{undo}Request")(user_id=user_id))
        assert answer.relationship == pb.Relationship(user_id=user_id)


async def test_edge_to_purged_user_can_be_removed(graph):
    await graph.call(ANN, "Follow", pb.FollowRequest(user_id=BEN))
    del graph.identity.states[BEN]
    await graph.call(ANN, "Unfollow", pb.UnfollowRequest(user_id=BEN))
    assert await graph.stores.counts.batch_get([ANN]) == {}


async def test_follow_with_block_in_either_direction_is_denied(graph):
    await graph.call(ANN, "Follow", pb.FollowRequest(user_id=BEN))
    answer = await graph.call(BEN, "Block", pb.BlockRequest(user_id=ANN))
    assert answer.relationship == pb.Relationship(user_id=ANN, blocking=True)
    for follower, followee in ((ANN, BEN), (BEN, ANN)):
        code = await error_code_of(graph.call(follower, "Follow", pb.FollowRequest(user_id=followee)))
        assert code == grpc.StatusCode.PERMISSION_DENIED
    answer = await graph.call(BEN, "Unblock", pb.UnblockRequest(user_id=ANN))
    assert answer.relationship == pb.Relationship(user_id=ANN)


async def follow_all(graph, target: int, followers) -> None:
    for follower in followers:
        graph.now_s[0] += 1
        await graph.call(follower, "Follow", pb.FollowRequest(user_id=target))


async def all_pages(graph, reader: int, method: str, user_id: int, size: int) -> list[list[int]]:
    pages, cursor = [], ""
    while True:
        request = getattr(pb, f"{method}Request")(user_id=user_id, page_size=size, cursor=cursor)
        answer = await graph.call(reader, method, request)
        pages.append([user.id for user in answer.users])
        cursor = answer.next_cursor
        if not cursor:
            return pages


async def test_follower_pages_are_full_and_newest_first(graph):
    await follow_all(graph, ANN, range(10, 17))
    assert await all_pages(graph, NOBODY, "ListFollowers", ANN, 3) == [[16, 15, 14], [13, 12, 11], [10]]
    # A last page that is exactly full has no next cursor.
    assert await all_pages(graph, NOBODY, "ListFollowers", ANN, 7) == [[16, 15, 14, 13, 12, 11, 10]]
    for target in (CAT, DAN):
        await follow_all(graph, target, [10])
    assert await all_pages(graph, BEN, "ListFollowing", 10, 2) == [[DAN, CAT], [ANN]]


async def test_list_without_page_size_returns_twenty(graph):
    await follow_all(graph, ANN, range(10, 35))
    answer = await graph.call(BEN, "ListFollowers", pb.ListFollowersRequest(user_id=ANN))
    assert len(answer.users) == 20


async def test_list_skips_hidden_users_and_fills_page(graph):
    await follow_all(graph, ANN, range(10, 30))
    await graph.call(BEN, "Block", pb.BlockRequest(user_id=29))
    await graph.call(27, "Block", pb.BlockRequest(user_id=BEN))
    await graph.call(BEN, "Mute", pb.MuteRequest(user_id=26))
    graph.identity.states[25] = user_pb2.USER_STATE_SUSPENDED
    pages = await all_pages(graph, BEN, "ListFollowers", ANN, 4)
    assert pages[0] == [28, 26, 24, 23]
    assert list(chain.from_iterable(pages)) == [28, 26, *range(24, 9, -1)]
    assert list(chain.from_iterable(await all_pages(graph, NOBODY, "ListFollowers", ANN, 100))) == [
        29,
        28,
        27,
        26,
        *range(24, 9, -1),
    ]


async def test_list_of_mostly_hidden_users_reads_in_bounded_steps(graph, monkeypatch):
    monkeypatch.setattr(user_pages, "MAX_ROUNDS", 2)
    await follow_all(graph, ANN, range(10, 20))
    for hidden in range(11, 20):
        graph.identity.states[hidden] = user_pb2.USER_STATE_DEACTIVATED
    assert await all_pages(graph, BEN, "ListFollowers", ANN, 2) == [[], [], [10]]


@pytest.mark.parametrize("method", ["ListFollowers", "ListFollowing"])
async def test_list_of_hidden_user_is_not_found(graph, method):
    request_of = getattr(pb, f"{method}Request")
    await graph.call(ANN, "Block", pb.BlockRequest(user_id=BEN))
    graph.identity.states[CAT] = user_pb2.USER_STATE_SUSPENDED
    assert await error_code_of(graph.call(BEN, method, request_of(user_id=ANN))) == grpc.StatusCode.NOT_FOUND
    assert await error_code_of(graph.call(BEN, method, request_of(user_id=CAT))) == grpc.StatusCode.NOT_FOUND
    assert await error_code_of(graph.call(NOBODY, method, request_of(user_id=STRANGER))) == grpc.StatusCode.NOT_FOUND
    assert await error_code_of(graph.call(ANN, method, request_of(user_id=BEN))) == grpc.StatusCode.NOT_FOUND
    await graph.call(NOBODY, method, request_of(user_id=ANN))
    await graph.call(ANN, method, request_of(user_id=ANN))


async def test_blocks_and_mutes_are_listed_for_owner(graph):
    for target in (BEN, CAT, DAN):
        graph.now_s[0] += 1
        await graph.call(ANN, "Block", pb.BlockRequest(user_id=target))
        await graph.call(ANN, "Mute", pb.MuteRequest(user_id=target))
    await graph.call(CAT, "Block", pb.BlockRequest(user_id=ANN))
    assert await all_pages(graph, ANN, "ListBlocks", ANN, 2) == [[DAN, CAT], [BEN]]
    assert await all_pages(graph, ANN, "ListMutes", ANN, 2) == [[DAN, CAT], [BEN]]
    assert await all_pages(graph, BEN, "ListBlocks", BEN, 2) == [[]]


async def test_cursor_of_other_list_is_refused(graph):
    await follow_all(graph, ANN, range(10, 14))
    await follow_all(graph, BEN, range(10, 14))
    request = pb.ListFollowersRequest(user_id=ANN, page_size=2)
    cursor = (await graph.call(CAT, "ListFollowers", request)).next_cursor
    for method, user_id in (("ListFollowers", BEN), ("ListFollowing", ANN), ("ListBlocks", ANN)):
        request = getattr(pb, f"{method}Request")(user_id=user_id, cursor=cursor)
        assert await error_code_of(graph.call(ANN, method, request)) == grpc.StatusCode.INVALID_ARGUMENT


async def test_batch_get_relationships_keeps_order_and_skips_unknown_users(graph):
    await graph.call(ANN, "Follow", pb.FollowRequest(user_id=CAT))
    request = pb.BatchGetRelationshipsRequest(ids=[DAN, STRANGER, CAT])
    answer = await graph.call(ANN, "BatchGetRelationships", request)
    assert list(answer.relationships) == [pb.Relationship(user_id=DAN), pb.Relationship(user_id=CAT, following=True)]


async def test_batch_get_relationships_from_identity_skips_user_lookup(graph):
    request = pb.BatchGetRelationshipsRequest(ids=[BEN])
    await graph.call(ANN, "BatchGetRelationships", request, caller="identity")
    assert graph.identity.asked == []


async def test_visibility_filter_and_counts_after_writes(graph):
    await graph.call(ANN, "Block", pb.BlockRequest(user_id=BEN))
    await graph.call(ANN, "Follow", pb.FollowRequest(user_id=CAT))
    request = pb.GetVisibilityFilterRequest(user_id=BEN, candidate_ids=[ANN, CAT])
    found = await graph.call(NOBODY, "GetVisibilityFilter", request, caller="timeline")
    assert list(found.blocked_by_ids) == [ANN]
    answer = await graph.call(NOBODY, "BatchGetUserCounts", pb.BatchGetUserCountsRequest(ids=[ANN, CAT, DAN]))
    assert dict(answer.counts) == {ANN: pb.UserCounts(following=1), CAT: pb.UserCounts(followers=1)}


async def test_stream_follower_ids_uses_requested_page_size(graph):
    await follow_all(graph, ANN, range(10, 15))
    messages = await collect(
        graph.service.StreamFollowerIds(pb.StreamFollowerIdsRequest(user_id=ANN, page_size=2), None)
    )
    assert [len(message.ids) for message in messages] == [2, 2, 1]
    assert sorted(chain.from_iterable(message.ids for message in messages)) == list(range(10, 15))
    assert (
        await collect(graph.service.StreamFollowerIds(pb.StreamFollowerIdsRequest(user_id=BEN, page_size=2), None))
        == []
    )


async def test_stream_follower_ids_refollow_during_stream_returns_user_once(graph):
    await follow_all(graph, ANN, range(10, 14))
    found: list[int] = []
    async for message in graph.service.StreamFollowerIds(pb.StreamFollowerIdsRequest(user_id=ANN, page_size=2), None):
        found += message.ids
        if len(found) == 2:
            await graph.call(13, "Unfollow", pb.UnfollowRequest(user_id=ANN))
            await follow_all(graph, ANN, [13, 20])
    assert sorted(found) == [10, 11, 12, 13]


async def test_stream_following_ids_returns_times_and_version_of_start(graph, monkeypatch):
    monkeypatch.setattr(service, "FOLLOWEES_PER_MESSAGE", 2)
    for target in range(10, 15):
        await follow_all(graph, target, [ANN])
    version = await graph.stores.visibility.relation_version(ANN)
    messages = []
    async for message in graph.service.StreamFollowingIds(pb.StreamFollowingIdsRequest(user_id=ANN), None):
        messages.append(message)
        await follow_all(graph, 20 + len(messages), [ANN])
    assert {message.relation_version for message in messages} == {version} != {0}
    assert [len(message.followees) for message in messages] == [2, 2, 1]
    followees = {f.user_id: f.followed_at_ms for message in messages for f in message.followees}
    assert followees == {target: 1_800_000_000_000 + 1_000 * (target - 9) for target in range(10, 15)}


async def test_stream_following_ids_without_followees_sends_version(graph):
    messages = await collect(graph.service.StreamFollowingIds(pb.StreamFollowingIdsRequest(user_id=ANN), None))
    assert messages == [pb.StreamFollowingIdsResponse()]


async def test_stamp_clock_set_back_keeps_time(graph):
    await follow_all(graph, ANN, [10])
    graph.now_s[0] -= 60
    await graph.call(11, "Follow", pb.FollowRequest(user_id=ANN))
    (newest, oldest) = await graph.stores.lists.page(service.Listing.FOLLOWERS, ANN, None, 2)
    assert newest.at_ms == oldest.at_ms


async def test_scan_edges_returns_all_edges_of_kind(graph, monkeypatch):
    monkeypatch.setattr(service, "EDGES_PER_MESSAGE", 2)
    await follow_all(graph, ANN, range(10, 15))
    messages = await collect(graph.service.ScanEdges(pb.ScanEdgesRequest(kind=pb.EDGE_KIND_FOLLOW), None))
    assert [(e.from_id, e.to_id) for message in messages for e in message.edges] == [(n, ANN) for n in range(10, 15)]
    assert await collect(graph.service.ScanEdges(pb.ScanEdgesRequest(kind=pb.EDGE_KIND_MUTE), None)) == []


async def next_change(stream) -> list[tuple[int, int]]:
    """Returns the entries of the next message that is not a heartbeat."""
    async with asyncio.timeout(30):
        while True:
            message = await anext(stream)
            if not message.heartbeat:
                assert not message.snapshot_end
                return [(entry.user_id, entry.tier) for entry in message.entries]


async def test_stream_tiers_sends_snapshot_then_changes_to_all_subscribers(graph):
    await follow_all(graph, ANN, (10, 11, 12))
    streams = [graph.service.StreamTiers(pb.StreamTiersRequest(), None) for _ in range(2)]
    for stream in streams:
        assert [entry.user_id for entry in (await anext(stream)).entries] == [ANN]
        assert await anext(stream) == pb.StreamTiersResponse(snapshot_end=True)
    await follow_all(graph, BEN, (10, 11, 12))
    for stream in streams:
        assert await next_change(stream) == [(BEN, pb.TIER_CELEBRITY)]
    await graph.call(10, "Unfollow", pb.UnfollowRequest(user_id=BEN))
    for stream in streams:
        assert await next_change(stream) == [(BEN, pb.TIER_NORMAL)]
        assert await anext(stream) == pb.StreamTiersResponse(heartbeat=True)
        await stream.aclose()
    assert not graph.publisher._subscriptions


async def test_stream_tiers_empty_snapshot_sends_snapshot_end(graph):
    stream = graph.service.StreamTiers(pb.StreamTiersRequest(), None)
    assert await anext(stream) == pb.StreamTiersResponse(snapshot_end=True)
    await stream.aclose()


async def test_reclassify_user_returns_tier_and_logs_audit(graph):
    with structlog.testing.capture_logs() as logs:
        request = pb.ReclassifyUserRequest(user_id=BEN, tier=pb.TIER_CHOICE_CELEBRITY)
        answer = await graph.call(ANN, "ReclassifyUser", request)
    assert answer == pb.ReclassifyUserResponse(user_id=BEN, tier=pb.TIER_CELEBRITY, changed=True)
    assert [(line["event"], line["actor_id"], line["user_id"]) for line in logs] == [("user.reclassified", ANN, BEN)]
    assert [entry.user_id for entry in graph.publisher.entries()] == [BEN]
    request = pb.ReclassifyUserRequest(user_id=STRANGER, tier=pb.TIER_CHOICE_CELEBRITY)
    assert await error_code_of(graph.call(ANN, "ReclassifyUser", request)) == grpc.StatusCode.NOT_FOUND


async def test_suggest_users_without_followees_returns_most_followed(graph):
    for target, followers in ((20, [21, 22, 23]), (21, [20, 22]), (22, [20]), (23, [20])):
        await follow_all(graph, target, followers)
    await graph.call(ANN, "Mute", pb.MuteRequest(user_id=22))
    await graph.call(23, "Block", pb.BlockRequest(user_id=ANN))
    answer = await graph.call(ANN, "SuggestUsers", pb.SuggestUsersRequest())
    assert [user.id for user in answer.users] == [20, 21]
    # Followees of followees come first, and no user is listed twice.
    await follow_all(graph, 22, [BEN])
    await follow_all(graph, BEN, [24])
    answer = await graph.call(24, "SuggestUsers", pb.SuggestUsersRequest())
    assert [user.id for user in answer.users] == [22, 20, 21, 23]


async def test_suggest_users_pages_without_gap(graph):
    await follow_all(graph, BEN, [ANN])
    for target in (20, 21, 22):
        await follow_all(graph, target, [BEN])
    first = await graph.call(ANN, "SuggestUsers", pb.SuggestUsersRequest(page_size=2))
    second = await graph.call(ANN, "SuggestUsers", pb.SuggestUsersRequest(page_size=2, cursor=first.next_cursor))
    assert ([user.id for user in first.users], [user.id for user in second.users]) == ([20, 21], [22])
    assert second.next_cursor == ""
    request = pb.SuggestUsersRequest(cursor=first.next_cursor)
    assert await error_code_of(graph.call(BEN, "SuggestUsers", request)) == grpc.StatusCode.INVALID_ARGUMENT
