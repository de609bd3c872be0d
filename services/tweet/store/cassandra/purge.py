"""Purges deleted tweets from Cassandra."""

from __future__ import annotations

from services.tweet.store.cassandra import schema as cql
from services.tweet.store.cassandra.rows import Stored, delete_rows
from services.tweet.store.cassandra.writes import BatchWriter

# Maximum number of rows that one read returns.
STEP = 500
# Maximum number of hours that one read of the list of hours with deletions returns.
HOURS_PAGE = 64
# Smaller than every hour and id: the bound of a list in ascending order from the first entry on.
_NO_BOUND = -1


class Purger:
    """Purges deleted tweets by the hour of their deletion, the earliest first."""

    def __init__(self, writer: BatchWriter) -> None:
        self._writer = writer
        self._keyspace = writer.keyspace

    async def purge(self, before_s: int, limit: int) -> int:
        """Implements `PurgeStore.purge`."""
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
            # If a tweet is listed in this hour meanwhile, the row of the hour is written with a timestamp later than
            # `begun_us`, so it stays.
            await self._keyspace.write(cql.DROP_DELETION_HOUR, begun_us, cql.ALL_HOURS, hour)
        return purged

    async def _purge_deleted(self, hour: int, at_s: int, tweet_id: int, before_s: int, remaining: int) -> int:
        """Purges the retweets of a tweet that was deleted at `at_s`, and then the tweet, at most `remaining` (> 0) rows
        in all. Returns the number of purged rows."""
        known = (await self._writer.read_stored((tweet_id,))).get(tweet_id)
        purged = 0
        if known is not None:
            # Two concurrent deletions list the tweet twice. The row of the tweet has the later time, so the tweet is
            # purged when the later entry is read.
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
        """Deletes all rows of one tweet. The row in `tweets_by_id` is deleted after the claim and the revisions: if
        this purge is interrupted, the next purge finds by this row what is left of both."""
        head = known.head
        if head.retweet_of_id:
            await self._writer.release_retweet_claim(known)
        for version, _text, _created_at in await self._keyspace.read(cql.REVISIONS, head.id):
            await self._keyspace.execute_lwt(cql.DROP_REVISION, head.id, version)
        await self._keyspace.batch(delete_rows(head))
        await self._writer.publish_versions((head.id,), (head.author_id,))
