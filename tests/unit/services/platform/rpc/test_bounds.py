"""Tests the bounds of lists: they are checked before the items, at every depth."""

from __future__ import annotations

import pytest
from google.protobuf.struct_pb2 import Struct
from roost.graph.v1 import graph_service_pb2
from roost.identity.v1 import user_service_pb2
from roost.timeline.v1 import ranking_service_pb2, timeline_service_pb2
from roost.tweet.v1 import tweet_service_pb2

from services.platform.rpc.bounds import Bounds
from services.platform.rpc.errors import RoostError

ENTRIES = Bounds(timeline_service_pb2.AppendHomeEntriesRequest.DESCRIPTOR)


def refused(bounds: Bounds, message: object) -> list[tuple[str, str]]:
    with pytest.raises(RoostError) as error:
        bounds.check(message)
    assert error.value.code.name == "INVALID_ARGUMENT"
    return [(one.field, one.message) for one in error.value.violations]


def test_check_list_above_max_items_is_refused() -> None:
    bounds = Bounds(user_service_pb2.BatchGetUsersRequest.DESCRIPTOR)
    bounds.check(user_service_pb2.BatchGetUsersRequest(ids=[0] * 100))
    too_long = user_service_pb2.BatchGetUsersRequest(ids=[0] * 101)
    assert refused(bounds, too_long) == [("ids", "must hold at most 100 items")]


def test_check_nested_list_above_max_items_is_named_by_path() -> None:
    request = timeline_service_pb2.AppendHomeEntriesRequest()
    request.entries.add(user_ids=[1] * 1000)
    ENTRIES.check(request)
    request.entries.add(user_ids=[1] * 1001)
    assert refused(ENTRIES, request) == [("entries[1].user_ids", "must hold at most 1000 items")]


def test_check_outer_list_is_checked_before_its_messages() -> None:
    request = timeline_service_pb2.AppendHomeEntriesRequest()
    request.entries.extend([timeline_service_pb2.HomeEntry(user_ids=[1] * 1001)] * 10_001)
    assert refused(ENTRIES, request) == [("entries", "must hold at most 10000 items")]


def test_most_includes_nested_lists() -> None:
    assert ENTRIES.most == 10_000 + 10_000 * 1000
    assert Bounds(tweet_service_pb2.CreateTweetRequest.DESCRIPTOR).most == 4


def test_bounds_of_message_without_lists_are_false() -> None:
    assert not Bounds(graph_service_pb2.FollowRequest.DESCRIPTOR)
    assert Bounds(ranking_service_pb2.RankTweetsRequest.DESCRIPTOR)


def test_bounds_unbounded_list_or_recursive_type_raises_type_error() -> None:
    with pytest.raises(TypeError, match="no max_items"):
        Bounds(user_service_pb2.BatchGetUsersResponse.DESCRIPTOR)
    with pytest.raises(TypeError, match=r"no max_items|holds itself"):
        Bounds(Struct.DESCRIPTOR)
