"""The rules of the graph service: whom one may follow, block and mute, and who sees which list."""

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


async def refusal(awaitable) -> grpc.StatusCode:
    with pytest.raises(errors.RoostError) as refused:
        await awaitable
    return refused.value.code


async def collect(stream) -> list:
    return [message async for message in stream]


async def test_a_follow_answers_the_relationship_and_a_repeat_the_same(graph):
    for _ in range(2):
        answer = await graph.call(ANN, "Follow", pb.FollowRequest(user_id=BEN))
        assert answer.relationship == pb.Relationship(user_id=BEN, following=True)
    answer = await graph.call(ANN, "Unfollow", pb.UnfollowRequest(user_id=BEN))
    assert answer.relationship == pb.Relationship(user_id=BEN)


VERBS = ["Follow", "Unfollow", "Block", "Unblock", "Mute", "Unmute"]


@pytest.mark.parametrize("verb", VERBS)
async def test_nobody_does_it_to_oneself(graph, verb):
    request = getattr(pb, f"{verb}Request")(user_id=ANN)
    assert await refusal(graph.call(ANN, verb, request)) == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("verb", VERBS)
async def test_a_target_that_never_was_is_not_found(graph, verb):
    request = getattr(pb, f"{verb}Request")(user_id=STRANGER)
    assert await refusal(graph.call(ANN, verb, request)) == grpc.StatusCode.NOT_FOUND
    assert await graph.store.relation_version(ANN) == 0


@pytest.mark.parametrize("state", [user_pb2.USER_STATE_SUSPENDED, user_pb2.USER_STATE_DEACTIVATED])
@pytest.mark.parametrize("verb", ["Follow", "Block", "Mute"])
async def test_who_does_not_take_part_is_not_found_but_can_still_be_left(graph, verb, state):
    await graph.call(ANN, verb, getattr(pb, f"{verb}Request")(user_id=BEN))
    graph.identity.states |= {BEN: state, CAT: state}
    request = getattr(pb, f"{verb}Request")(user_id=CAT)
    assert await refusal(graph.call(ANN, verb, request)) == grpc.StatusCode.NOT_FOUND
    undo = "Un" + verb.lower()
    for user_id in (BEN, CAT):
        answer = await graph.call(ANN, undo, getattr(pb, f"{undo}Request")(user_id=user_id))
        assert answer.relationship == pb.Relationship(user_id=user_id)


async def test_an_edge_to_somebody_purged_can_be_undone(graph):
    await graph.call(ANN, "Follow", pb.FollowRequest(user_id=BEN))
    del graph.identity.states[BEN]
    await graph.call(ANN, "Unfollow", pb.UnfollowRequest(user_id=BEN))
    assert await graph.store.counts([ANN]) == {}


async def test_no_follow_where_either_blocks_the_other(graph):
    await graph.call(ANN, "Follow", pb.FollowRequest(user_id=BEN))
    answer = await graph.call(BEN, "Block", pb.BlockRequest(user_id=ANN))
    assert answer.relationship == pb.Relationship(user_id=ANN, blocking=True)
    for follower, followee in ((ANN, BEN), (BEN, ANN)):
        code = await refusal(graph.call(follower, "Follow", pb.FollowRequest(user_id=followee)))
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


async def test_lists_are_newest_first_in_full_pages(graph):
    await follow_all(graph, ANN, range(10, 17))
    assert await all_pages(graph, NOBODY, "ListFollowers", ANN, 3) == [[16, 15, 14], [13, 12, 11], [10]]
    # A last page that is just full has no cursor behind it.
    assert await all_pages(graph, NOBODY, "ListFollowers", ANN, 7) == [[16, 15, 14, 13, 12, 11, 10]]
    for target in (CAT, DAN):
        await follow_all(graph, target, [10])
    assert await all_pages(graph, BEN, "ListFollowing", 10, 2) == [[DAN, CAT], [ANN]]


async def test_a_list_without_a_page_size_has_twenty(graph):
    await follow_all(graph, ANN, range(10, 35))
    answer = await graph.call(BEN, "ListFollowers", pb.ListFollowersRequest(user_id=ANN))
    assert len(answer.users) == 20


async def test_who_is_hidden_is_left_out_and_the_page_filled_up(graph):
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


async def test_a_list_of_people_nearly_all_hidden_is_read_in_bounded_steps(graph, monkeypatch):
    monkeypatch.setattr(user_pages, "MAX_ROUNDS", 2)
    await follow_all(graph, ANN, range(10, 20))
    for hidden in range(11, 20):
        graph.identity.states[hidden] = user_pb2.USER_STATE_DEACTIVATED
    assert await all_pages(graph, BEN, "ListFollowers", ANN, 2) == [[], [], [10]]


@pytest.mark.parametrize("method", ["ListFollowers", "ListFollowing"])
async def test_lists_of_who_is_hidden_are_not_found(graph, method):
    request_of = getattr(pb, f"{method}Request")
    await graph.call(ANN, "Block", pb.BlockRequest(user_id=BEN))
    graph.identity.states[CAT] = user_pb2.USER_STATE_SUSPENDED
    assert await refusal(graph.call(BEN, method, request_of(user_id=ANN))) == grpc.StatusCode.NOT_FOUND
    assert await refusal(graph.call(BEN, method, request_of(user_id=CAT))) == grpc.StatusCode.NOT_FOUND
    assert await refusal(graph.call(NOBODY, method, request_of(user_id=STRANGER))) == grpc.StatusCode.NOT_FOUND
    assert await refusal(graph.call(ANN, method, request_of(user_id=BEN))) == grpc.StatusCode.NOT_FOUND
    await graph.call(NOBODY, method, request_of(user_id=ANN))
    await graph.call(ANN, method, request_of(user_id=ANN))


async def test_blocks_and_mutes_are_listed_to_their_owner(graph):
    for target in (BEN, CAT, DAN):
        graph.now_s[0] += 1
        await graph.call(ANN, "Block", pb.BlockRequest(user_id=target))
        await graph.call(ANN, "Mute", pb.MuteRequest(user_id=target))
    await graph.call(CAT, "Block", pb.BlockRequest(user_id=ANN))
    assert await all_pages(graph, ANN, "ListBlocks", ANN, 2) == [[DAN, CAT], [BEN]]
    assert await all_pages(graph, ANN, "ListMutes", ANN, 2) == [[DAN, CAT], [BEN]]
    assert await all_pages(graph, BEN, "ListBlocks", BEN, 2) == [[]]


async def test_a_cursor_is_good_for_its_list_only(graph):
    await follow_all(graph, ANN, range(10, 14))
    await follow_all(graph, BEN, range(10, 14))
    request = pb.ListFollowersRequest(user_id=ANN, page_size=2)
    cursor = (await graph.call(CAT, "ListFollowers", request)).next_cursor
    for method, user_id in (("ListFollowers", BEN), ("ListFollowing", ANN), ("ListBlocks", ANN)):
        request = getattr(pb, f"{method}Request")(user_id=user_id, cursor=cursor)
        assert await refusal(graph.call(ANN, method, request)) == grpc.StatusCode.INVALID_ARGUMENT


async def test_relationships_in_order_without_those_who_never_were(graph):
    await graph.call(ANN, "Follow", pb.FollowRequest(user_id=CAT))
    request = pb.BatchGetRelationshipsRequest(ids=[DAN, STRANGER, CAT])
    answer = await graph.call(ANN, "BatchGetRelationships", request)
    assert list(answer.relationships) == [pb.Relationship(user_id=DAN), pb.Relationship(user_id=CAT, following=True)]


async def test_identity_is_not_asked_back_about_its_own_users(graph):
    request = pb.BatchGetRelationshipsRequest(ids=[BEN])
    await graph.call(ANN, "BatchGetRelationships", request, caller="identity")
    assert graph.identity.asked == []


async def test_the_filter_and_the_counts(graph):
    await graph.call(ANN, "Block", pb.BlockRequest(user_id=BEN))
    await graph.call(ANN, "Follow", pb.FollowRequest(user_id=CAT))
    request = pb.GetVisibilityFilterRequest(user_id=BEN, candidate_ids=[ANN, CAT])
    found = await graph.call(NOBODY, "GetVisibilityFilter", request, caller="timeline")
    assert list(found.blocked_by_ids) == [ANN]
    answer = await graph.call(NOBODY, "BatchGetUserCounts", pb.BatchGetUserCountsRequest(ids=[ANN, CAT, DAN]))
    assert dict(answer.counts) == {ANN: pb.UserCounts(following=1), CAT: pb.UserCounts(followers=1)}


async def test_followers_are_streamed_in_messages_of_the_size_asked_for(graph):
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


async def test_who_follows_anew_during_a_stream_comes_once(graph):
    await follow_all(graph, ANN, range(10, 14))
    found: list[int] = []
    async for message in graph.service.StreamFollowerIds(pb.StreamFollowerIdsRequest(user_id=ANN, page_size=2), None):
        found += message.ids
        if len(found) == 2:
            await graph.call(13, "Unfollow", pb.UnfollowRequest(user_id=ANN))
            await follow_all(graph, ANN, [13, 20])
    assert sorted(found) == [10, 11, 12, 13]


async def test_followees_are_streamed_with_times_and_the_version_before(graph, monkeypatch):
    monkeypatch.setattr(service, "FOLLOWEES_A_MESSAGE", 2)
    for target in range(10, 15):
        await follow_all(graph, target, [ANN])
    version = await graph.store.relation_version(ANN)
    messages = []
    async for message in graph.service.StreamFollowingIds(pb.StreamFollowingIdsRequest(user_id=ANN), None):
        messages.append(message)
        await follow_all(graph, 20 + len(messages), [ANN])
    assert {message.relation_version for message in messages} == {version} != {0}
    assert [len(message.followees) for message in messages] == [2, 2, 1]
    followees = {f.user_id: f.followed_at_ms for message in messages for f in message.followees}
    assert followees == {target: 1_800_000_000_000 + 1_000 * (target - 9) for target in range(10, 15)}


async def test_who_follows_nobody_gets_one_message_with_the_version(graph):
    messages = await collect(graph.service.StreamFollowingIds(pb.StreamFollowingIdsRequest(user_id=ANN), None))
    assert messages == [pb.StreamFollowingIdsResponse()]


async def test_the_time_of_a_follow_never_goes_back(graph):
    await follow_all(graph, ANN, [10])
    graph.now_s[0] -= 60
    await graph.call(11, "Follow", pb.FollowRequest(user_id=ANN))
    (newest, oldest) = await graph.store.page(service.Listing.FOLLOWERS, ANN, None, 2)
    assert newest.at_ms == oldest.at_ms


async def test_a_scan_gives_all_edges_of_a_kind(graph, monkeypatch):
    monkeypatch.setattr(service, "EDGES_A_MESSAGE", 2)
    await follow_all(graph, ANN, range(10, 15))
    messages = await collect(graph.service.ScanEdges(pb.ScanEdgesRequest(kind=pb.EDGE_KIND_FOLLOW), None))
    assert [(e.from_id, e.to_id) for message in messages for e in message.edges] == [(n, ANN) for n in range(10, 15)]
    assert await collect(graph.service.ScanEdges(pb.ScanEdgesRequest(kind=pb.EDGE_KIND_MUTE), None)) == []


async def next_change(stream) -> list[tuple[int, int]]:
    """The next message that is no heartbeat."""
    async with asyncio.timeout(30):
        while True:
            message = await anext(stream)
            if not message.heartbeat:
                assert not message.snapshot_end
                return [(entry.user_id, entry.tier) for entry in message.entries]


async def test_tiers_stream_a_snapshot_then_changes_to_every_subscriber(graph):
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
    assert not graph.board._subscriptions


async def test_an_empty_snapshot_is_ended_too(graph):
    stream = graph.service.StreamTiers(pb.StreamTiersRequest(), None)
    assert await anext(stream) == pb.StreamTiersResponse(snapshot_end=True)
    await stream.aclose()


async def test_a_decree_answers_the_tier_and_is_audited(graph):
    with structlog.testing.capture_logs() as logs:
        request = pb.ReclassifyUserRequest(user_id=BEN, tier=pb.TIER_CHOICE_CELEBRITY)
        answer = await graph.call(ANN, "ReclassifyUser", request)
    assert answer == pb.ReclassifyUserResponse(user_id=BEN, tier=pb.TIER_CELEBRITY, changed=True)
    assert [(line["event"], line["actor_id"], line["user_id"]) for line in logs] == [("audit", ANN, BEN)]
    assert [entry.user_id for entry in graph.board.entries()] == [BEN]
    request = pb.ReclassifyUserRequest(user_id=STRANGER, tier=pb.TIER_CHOICE_CELEBRITY)
    assert await refusal(graph.call(ANN, "ReclassifyUser", request)) == grpc.StatusCode.NOT_FOUND


async def test_suggestions_of_somebody_who_follows_nobody_are_the_most_followed(graph):
    for target, followers in ((20, [21, 22, 23]), (21, [20, 22]), (22, [20]), (23, [20])):
        await follow_all(graph, target, followers)
    await graph.call(ANN, "Mute", pb.MuteRequest(user_id=22))
    await graph.call(23, "Block", pb.BlockRequest(user_id=ANN))
    answer = await graph.call(ANN, "SuggestUsers", pb.SuggestUsersRequest())
    assert [user.id for user in answer.users] == [20, 21]
    # Friends of friends go before them, and nobody is listed twice.
    await follow_all(graph, 22, [BEN])
    await follow_all(graph, BEN, [24])
    answer = await graph.call(24, "SuggestUsers", pb.SuggestUsersRequest())
    assert [user.id for user in answer.users] == [22, 20, 21, 23]


async def test_suggestions_page_by_page(graph):
    await follow_all(graph, BEN, [ANN])
    for target in (20, 21, 22):
        await follow_all(graph, target, [BEN])
    first = await graph.call(ANN, "SuggestUsers", pb.SuggestUsersRequest(page_size=2))
    second = await graph.call(ANN, "SuggestUsers", pb.SuggestUsersRequest(page_size=2, cursor=first.next_cursor))
    assert ([user.id for user in first.users], [user.id for user in second.users]) == ([20, 21], [22])
    assert second.next_cursor == ""
    request = pb.SuggestUsersRequest(cursor=first.next_cursor)
    assert await refusal(graph.call(BEN, "SuggestUsers", request)) == grpc.StatusCode.INVALID_ARGUMENT
