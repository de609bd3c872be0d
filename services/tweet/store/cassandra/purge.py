"""Deletes tweets for good from Cassandra, some time after their authors deleted them."""

from __future__ import annotations

from services.tweet.store.cassandra import schema as cql
from services.tweet.store.cassandra.rows import Stored, delete_rows
from services.tweet.store.cassandra.writes import BatchWriter

# Rows read at a time.
STEP = 500
# Hours with deletions that one read looks up.
HOURS_PAGE = 64
# Smaller than every hour and id.
_NO_BOUND = -1


class Purger:
    """Purges deleted tweets hour by hour, the longest deleted first."""

    def __init__(self, writer: BatchWriter) -> None:
        self._writer = writer
        self._keyspace = writer.keyspace

    async def purge(self, before_s: int, limit: int) -> int:
        """Implements `TweetStore.purge`."""
        purged, hour = 0, _NO_BOUND
        last_hour = before_s * 1000 // cql.HOUR_MS
        while hours := await self._keyspace.read(cql.DELETION_HOURS, cql.ALL_HOURS, hour, last_hour, HOURS_PAGE):
            for (hour,) in hours:
                purged += await self._purge_hour(hour, before_s, limit - purged)
                if purged == limit:
                    return purged
        return purged

    async def _purge_hour(self, hour: int, before_s: int, remaining: int) -> int:
        begun_us = self._writer.now_us(0)
        after, purged = (_NO_BOUND, _NO_BOUND), 0
        while rows := await self._keyspace.read(cql.DELETIONS, hour, *after, before_s, min(remaining - purged, STEP)):
            for after in rows:
                purged += await self._purge_deleted(hour, *after, before_s, remaining - purged)
                if purged == remaining:
                    return purged
        past = hour < before_s * 1000 // cql.HOUR_MS
        if past and not await self._keyspace.read(cql.ANY_DELETION, hour):
            # A later deletion writes the row of its hour again, with a later timestamp.
            await self._keyspace.write(cql.DROP_DELETION_HOUR, begun_us, cql.ALL_HOURS, hour)
        return purged

    async def _purge_deleted(self, hour: int, at_s: int, tweet_id: int, before_s: int, remaining: int) -> int:
        """Purges the retweets of a tweet, and then the tweet if fewer than `remaining` (> 0) rows were purged so far.
        Returns the number of purged tweets."""
        known = (await self._writer.read_stored((tweet_id,))).get(tweet_id)
        purged = 0
        if known is not None:
            # If the tweet was deleted twice concurrently, the later time is used; it has its own row.
            if known.hidden != cql.DELETED or known.hidden_at_s >= before_s:
                return 0
            purged = await self._purge_retweets(tweet_id, remaining)
            if purged == remaining:
                return purged
            await self._drop(known)
            purged += 1
        await self._keyspace.write(cql.DROP_DELETION, hour, at_s, tweet_id)
        return purged

    async def _purge_retweets(self, tweet_id: int, remaining: int) -> int:
        purged, before_id = 0, cql.NO_BOUND
        while limit := min(remaining - purged, STEP):
            rows = await self._keyspace.read(cql.LINKS_DOWN, tweet_id, cql.RETWEET, before_id, limit)
            for known in (await self._writer.read_stored(row[0] for row in rows)).values():
                await self._drop(known)
                purged += 1
            if len(rows) < limit:
                break
            before_id = rows[-1][0]
        return purged

    async def _drop(self, known: Stored) -> None:
        """Deletes one tweet for good. Deletes the claim and the revisions first, because an interrupted purge finds
        them through the tweet's row."""
        head = known.head
        if head.retweet_of_id:
            await self._writer.release_retweet_claim(known)
        for version, _text, _created_at in await self._keyspace.read(cql.REVISIONS, head.id):
            await self._keyspace.execute_lwt(cql.DROP_REVISION, head.id, version)
        await self._keyspace.batch(delete_rows(head))
        await self._writer.publish_versions((head.id,), (head.author_id,))
