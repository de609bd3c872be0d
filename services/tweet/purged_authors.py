"""Consumes the events that accounts were purged: deletes the tweets and retweets of their owners, also those that a
moderator removed.

They count as deleted since the owner deactivated the account, so the purge of deleted tweets removes them soon.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from roost.event.v1 import event_pb2

from services.platform.events.log import Apply, ConsumedEvent
from services.platform.events.records import EventBuilder
from services.tweet.store import MAX_PAGE, TweetStores

GROUP = "tweet-purged-authors"
TOPICS = ("user.purged",)
# Maximum number of concurrent deletions. They serve nobody who waits, so they leave most of the store to requests.
CONCURRENCY = 8


def deleting_tweets(stores: TweetStores, events: EventBuilder) -> Apply:
    """Returns the callback of a consumer of TOPICS. If the store cannot delete a tweet, it raises, and the log delivers
    the event again."""

    async def apply(delivered: Sequence[ConsumedEvent]) -> None:
        for one in delivered:
            purged = event_pb2.Event.FromString(one.payload).user_purged
            await _delete_all(stores, events, purged.user_id, purged.deactivated_at.seconds)

    return apply


async def _delete_all(stores: TweetStores, events: EventBuilder, author_id: int, at_s: int) -> None:
    slots = asyncio.Semaphore(CONCURRENCY)

    async def delete(tweet_id: int) -> None:
        async with slots:
            event = await events.record(event_pb2.TweetDeleted(tweet_id=tweet_id, author_id=author_id))
            await stores.tweets.delete(tweet_id, at_s, event)

    for list_ids in (stores.lists.list_author, stores.lists.list_removed):
        before_id = 0
        while ids := await list_ids(author_id, before_id, MAX_PAGE):
            await asyncio.gather(*map(delete, ids))
            before_id = ids[-1]
