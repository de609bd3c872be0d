"""Tests the stages that are computed from metrics."""

from __future__ import annotations

import pytest

from roost_cli.bench import metrics, stages
from roost_cli.exit_codes import CommandError

BEFORE = """
roost_http_request_seconds_count{route="TimelineService/ListHomeTimeline"} 10
roost_http_request_seconds_sum{route="TimelineService/ListHomeTimeline"} 5
grpc_server_handling_seconds_sum{grpc_method="ListHomeTimeline",grpc_service="t"} 4
"""
AFTER = """
roost_http_request_seconds_count{route="TimelineService/ListHomeTimeline"} 20
roost_http_request_seconds_sum{route="TimelineService/ListHomeTimeline"} 5.1
grpc_server_handling_seconds_sum{grpc_method="ListHomeTimeline",grpc_service="t"} 4.09
grpc_server_handling_seconds_sum{grpc_method="BatchListAuthorTweetIds",grpc_service="t"} 0.02
grpc_server_handling_seconds_sum{grpc_method="BatchGetTweetCores",grpc_service="t"} 0.03
grpc_server_handling_seconds_sum{grpc_method="BatchGetCounts",grpc_service="e"} 0.01
roost_http_request_seconds_count{route="TweetService/CreateTweet"} 4
roost_http_request_seconds_sum{route="TweetService/CreateTweet"} 0.02
grpc_server_handling_seconds_sum{grpc_method="CreateTweet",grpc_service="w"} 0.016
"""


def test_stages_divide_growth_by_number_of_requests() -> None:
    found = {one.title: one.ms for one in stages.stages(metrics.parse(BEFORE), metrics.parse(AFTER))}
    assert found == {
        "read: HTTP, token, JSON, ETag": pytest.approx(1.0),
        "read: ids of the home timeline, merge, page": pytest.approx(3.0),
        "read: tweets of celebrities": pytest.approx(2.0),
        "read: hydration and visibility": pytest.approx(4.0),
        "read: ranking": 0.0,
        "read, whole": pytest.approx(10.0),
        "post: HTTP, token, JSON": pytest.approx(1.0),
        "post: validation, durable commit with its event": pytest.approx(4.0),
        "post, whole": pytest.approx(5.0),
    }


def test_stages_without_requests_raise_command_error() -> None:
    with pytest.raises(CommandError, match="no request to ListHomeTimeline"):
        stages.stages(metrics.parse(AFTER), metrics.parse(AFTER))
