"""Tests that `field=value` arguments become a request, or an error that names the argument."""

from __future__ import annotations

import pytest
from roost.fanout.v1.fanout_service_pb2 import ReplayFanoutRequest
from roost.graph.v1.graph_service_pb2 import FollowRequest, ScanEdgesRequest
from roost.identity.v1.auth_service_pb2 import MintTokensRequest, SignUpRequest
from roost.timeline.v1.timeline_service_pb2 import AppendHomeEntriesRequest, ListHomeTimelineRequest
from roost.tweet.v1.tweet_pb2 import TweetCore
from roost.tweet.v1.tweet_service_pb2 import CreateTweetRequest

from roost_cli import request_args
from roost_cli.exit_codes import CommandError


def test_parse_scalars_and_nested_fields() -> None:
    request = request_args.parse(["username=alice", "profile.bio=a=b, c", "profile.display_name=Al"], SignUpRequest)
    assert request == SignUpRequest(username="alice", profile={"bio": "a=b, c", "display_name": "Al"})


def test_parse_text_is_unchanged() -> None:
    for text in ("[1,2]", "{}", "true", "007", '"quoted"', "", " x "):
        assert request_args.parse([f"text={text}"], CreateTweetRequest) == CreateTweetRequest(text=text)


@pytest.mark.parametrize(
    "arguments", [["media_ids=[1,2]"], ["media_ids=1", "media_ids=2"], ['media_ids=["1","2"]'], ["mediaIds=[1, 2]"]]
)
def test_parse_lists(arguments: list[str]) -> None:
    assert request_args.parse(arguments, CreateTweetRequest) == CreateTweetRequest(media_ids=[1, 2])


def test_parse_lists_of_messages_and_64_bit_ids() -> None:
    found = request_args.parse(['entries=[{"tweet_id":"9007199254740993","user_ids":[1]}]'], AppendHomeEntriesRequest)
    assert found == AppendHomeEntriesRequest(entries=[{"tweet_id": 9007199254740993, "user_ids": [1]}])
    assert request_args.parse(["user_ids=9007199254740993"], MintTokensRequest).user_ids == [9007199254740993]


@pytest.mark.parametrize("text", ["EDGE_KIND_BLOCK", "block", "BLOCK", "2"])
def test_parse_enum_by_name_or_number(text: str) -> None:
    assert request_args.parse([f"kind={text}"], ScanEdgesRequest).kind == 2


def test_parse_aliases_times_bytes_and_booleans() -> None:
    assert request_args.parse(["limit=5"], ListHomeTimelineRequest) == ListHomeTimelineRequest(page_size=5)
    assert request_args.parse(["time=2026-01-01T00:00:00Z"], ReplayFanoutRequest).time.seconds == 1_767_225_600
    assert request_args.parse(["core=AAE=", "head.deleted=yes"], TweetCore) == TweetCore(
        core=b"\0\1", head={"deleted": True}
    )


def test_parse_me_is_caller_if_field_accepts_me() -> None:
    assert request_args.parse(["user_id=me"], FollowRequest, lambda: 7).user_id == 7
    with pytest.raises(CommandError, match="--as USER"):
        request_args.parse(["user_id=me"], FollowRequest)
    with pytest.raises(CommandError, match="ttl_seconds"):
        request_args.parse(["ttl_seconds=me"], MintTokensRequest, lambda: 7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["text"], "'text' is not a field"),
        (["=x"], "is not a field"),
        (["txt=x"], "has no field 'txt'; it has: text, reply_to_id"),
        (["text.more=x"], "text has no fields of its own"),
        (["text=a", "text=b"], "text was given twice"),
        (["reply_to_id=one"], "reply_to_id"),
        (["media_ids=[1,"], "media_ids"),
    ],
)
def test_parse_invalid_argument_is_named(arguments: list[str], message: str) -> None:
    with pytest.raises(CommandError, match=message):
        request_args.parse(arguments, CreateTweetRequest)


def test_parse_invalid_value_of_other_type_is_named() -> None:
    with pytest.raises(CommandError, match=r"kind=friend: write one of EDGE_KIND_UNSPECIFIED"):
        request_args.parse(["kind=friend"], ScanEdgesRequest)
    with pytest.raises(CommandError, match=r"head.deleted=maybe: write true or false"):
        request_args.parse(["head.deleted=maybe"], TweetCore)
    with pytest.raises(CommandError, match="core contains bytes"):
        request_args.parse(["core=é"], TweetCore)


@pytest.mark.parametrize(
    ("argument", "field"),
    [
        ("reply_to_id=abc", "reply_to_id"),
        ("reply_to_id=", "reply_to_id"),
        ("reply_to_id=1.5", "reply_to_id"),
        ("media_ids=[a,b]", "media_ids"),
    ],
)
def test_parse_no_number_says_whole_number(argument: str, field: str) -> None:
    with pytest.raises(CommandError) as told:
        request_args.parse([argument], CreateTweetRequest)
    assert told.value.message == f"{field} must be a whole number"


def test_parse_no_number_in_nested_message_says_whole_number() -> None:
    with pytest.raises(CommandError) as told:
        request_args.parse(['entries=[{"tweet_id":"x"}]'], AppendHomeEntriesRequest)
    assert told.value.message == "entries.tweet_id must be a whole number"
