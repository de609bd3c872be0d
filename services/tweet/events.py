"""Builds the events that the tweet service publishes."""

from __future__ import annotations

from collections.abc import Callable

from roost.event.v1 import event_pb2
from roost.tweet.v1 import tweet_pb2

from services.platform.events.log import Record
from services.platform.ids.snowflake import Snowflake
from services.platform.rpc import context as calls


class TweetEvents:
    """Builds records for the outbox, keyed by author. `clock` returns Unix seconds. A record has the trace context of the current
    call."""

    def __init__(self, ids: Snowflake, clock: Callable[[], float]) -> None:
        self._ids = ids
        self._clock = clock

    async def created(self, head: tweet_pb2.TweetHead) -> Record:
        """Returns `tweet.created` with the links of the tweet."""
        body = event_pb2.TweetCreated(
            tweet_id=head.id,
            author_id=head.author_id,
            reply_to_id=head.reply_to_id,
            reply_to_author_id=head.reply_to_author_id,
            retweet_of_id=head.retweet_of_id,
            retweet_of_author_id=head.retweet_of_author_id,
            quote_of_id=head.quote_of_id,
            quote_of_author_id=head.quote_of_author_id,
        )
        return await self._record("tweet.created", head.author_id, event_pb2.Event(tweet_created=body))

    async def edited(self, tweet_id: int, author_id: int, version: int) -> Record:
        """Returns `tweet.edited` with the new version number."""
        body = event_pb2.TweetEdited(tweet_id=tweet_id, author_id=author_id, version=version)
        return await self._record("tweet.edited", author_id, event_pb2.Event(tweet_edited=body))

    async def deleted(self, tweet_id: int, author_id: int) -> Record:
        """Returns `tweet.deleted`, for deletions by the author and removals by a moderator."""
        body = event_pb2.TweetDeleted(tweet_id=tweet_id, author_id=author_id)
        return await self._record("tweet.deleted", author_id, event_pb2.Event(tweet_deleted=body))

    async def restored(self, tweet_id: int, author_id: int) -> Record:
        """Returns `tweet.restored`."""
        body = event_pb2.TweetRestored(tweet_id=tweet_id, author_id=author_id)
        return await self._record("tweet.restored", author_id, event_pb2.Event(tweet_restored=body))

    async def _record(self, topic: str, author_id: int, event: event_pb2.Event) -> Record:
        event.event_id = await self._ids.mint()
        event.key = author_id
        event.occurred_at.FromMilliseconds(int(self._clock() * 1000))
        event.traceparent = calls.current().traceparent
        return Record(topic, author_id, event.event_id, event.SerializeToString(), event.traceparent)
