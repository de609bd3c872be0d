from __future__ import annotations

import pytest
from roost.event.v1 import event_pb2

from services.platform.events.records import EventBuilder, new_record, record_of
from services.platform.ids.snowflake import Snowflake
from services.platform.rpc.context import Call, current_call

TRACE = "00-a-b-01"


def test_new_record_takes_topic_and_key_from_the_body() -> None:
    record = new_record(event_pb2.TweetCreated(tweet_id=7, author_id=3, reply_to_id=5), 11, 1_234, TRACE)
    assert record[:3] == ("tweet.created", 3, 11)
    assert record.traceparent == TRACE
    event = event_pb2.Event.FromString(record.payload)
    assert (event.event_id, event.key, event.traceparent) == (11, 3, TRACE)
    assert event.occurred_at.ToMilliseconds() == 1_234
    assert event.tweet_created == event_pb2.TweetCreated(tweet_id=7, author_id=3, reply_to_id=5)


def test_new_record_replaces_only_the_first_underscore_of_the_topic() -> None:
    record = new_record(event_pb2.UserTierChanged(user_id=9, celebrity=True), 1, 1, "")
    assert (record.topic, record.key) == ("user.tier_changed", 9)


def test_new_record_with_equal_arguments_is_equal() -> None:
    body = event_pb2.UserFollowed(follower_id=1, followee_id=2)
    assert new_record(body, 5, 6, TRACE) == new_record(body, 5, 6, TRACE)


def test_new_record_of_an_undeclared_message_is_refused() -> None:
    with pytest.raises(KeyError, match=r"roost\.event\.v1\.Event"):
        new_record(event_pb2.Event(), 1, 1, "")


def test_record_of_payload_returns_the_record_that_has_it() -> None:
    record = new_record(event_pb2.UserTierChanged(user_id=9, celebrity=True), 4, 5, TRACE)
    assert record_of(record.payload) == record


def test_record_of_event_without_body_is_refused() -> None:
    with pytest.raises(ValueError, match="event 8 has no body"):
        record_of(event_pb2.Event(event_id=8).SerializeToString())


async def test_event_builder_stamps_id_time_and_trace_of_the_call() -> None:
    current_call.set(Call(traceparent=TRACE))
    events = EventBuilder(Snowflake(0, lambda: 1_800_000_000_000), lambda: 2.5)
    first, second = [await events.record(event_pb2.TweetLiked(tweet_id=1, user_id=2)) for _ in range(2)]
    assert (first.topic, first.key, first.traceparent) == ("tweet.liked", 2, TRACE)
    assert first.event_id < second.event_id
    assert event_pb2.Event.FromString(first.payload).occurred_at.ToMilliseconds() == 2_500
