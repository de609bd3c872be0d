"""The consumer that deletes the tweets of purged users, on the store of every backend."""

from __future__ import annotations

import time

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from roost.event.v1 import event_pb2

from services.platform.events.log import ConsumedEvent
from services.platform.events.records import EventBuilder, new_record
from services.platform.ids.snowflake import Snowflake, wall_clock_ms
from services.tweet import purged_authors
from tests.contract.tweet.conftest import Opened, event

LEAVER, OTHER, DEACTIVATED_S = 1, 2, 50


def purged(user_id: int) -> ConsumedEvent:
    body = event_pb2.UserPurged(user_id=user_id, deactivated_at=Timestamp(seconds=DEACTIVATED_S))
    return ConsumedEvent(1, 0, *new_record(body, 1, 0, ""))


async def test_purged_event_deletes_all_tweets_since_deactivation(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(purged_authors, "MAX_PAGE", 2)
    await opened.post(10, OTHER)
    for tweet_id in range(11, 16):
        await opened.post(tweet_id, LEAVER)
    await opened.post(16, LEAVER, retweet_of_id=10)
    removed_ids = [19, 18, 17]
    for tweet_id in removed_ids:
        await opened.post(tweet_id, LEAVER)
        await opened.stores.tweets.remove(tweet_id, 7, 40, event("tweet.deleted", tweet_id))
    assert await opened.stores.lists.list_removed(LEAVER, 0, 5) == removed_ids
    assert await opened.stores.lists.list_removed(LEAVER, 19, 1) == [18]
    apply = purged_authors.deleting_tweets(opened.stores, EventBuilder(Snowflake(1, wall_clock_ms), time.time))
    # The log may deliver an event again.
    for _ in range(2):
        await apply([purged(LEAVER), purged(3)])
        assert await opened.ids_of(LEAVER) == []
        assert await opened.stores.lists.list_removed(LEAVER, 0, 5) == []
        assert await opened.ids_of(OTHER) == [10]
    published = [record for record in await opened.backend.published(opened.stores) if record.topic == "tweet.deleted"]
    assert not await opened.stores.tweets.restore(19, 7, event("tweet.restored", 19))
    events = [event_pb2.Event.FromString(record.payload).tweet_deleted for record in published[len(removed_ids) :]]
    assert sorted((one.tweet_id, one.author_id) for one in events) == [(number, LEAVER) for number in range(11, 17)]
    # The grace period began with the deactivation.
    assert await opened.stores.purge.purge(DEACTIVATED_S, 100) == 0
    await opened.stores.purge.purge(DEACTIVATED_S + 1, 100)
    assert [core.head.id for core in await opened.stores.tweets.scan(0, 100)] == [10]
