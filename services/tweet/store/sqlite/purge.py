"""Removes deleted tweets from the SQLite file for good."""

from __future__ import annotations

from services.platform.detached import run_to_completion
from services.platform.sqlite.database import Database
from services.tweet.store.sqlite import transactions
from services.tweet.store.sqlite.cached_reads import CachedReads

# Rows that a purge deletes per transaction: a longer transaction would delay posts.
PURGE_STEP = 500


class SqlitePurgeStore:
    """Implements PurgeStore on SQLite."""

    def __init__(self, db: Database, cached: CachedReads) -> None:
        self._db = db
        self._cached = cached
        # True at the start, because an earlier process may have died between a purge and the wipe of the write-ahead
        # log, which then still contains the texts.
        self._log_to_wipe = True

    async def purge(self, before_s: int, limit: int) -> int:
        purged = 0
        while purged < limit:
            step = min(PURGE_STEP, limit - purged)
            found = await run_to_completion(self._purge_step(before_s, step))
            purged += found
            if found < step:
                break
        self._log_to_wipe |= purged > 0
        if self._log_to_wipe:
            # Otherwise the purged texts would stay in the write-ahead log until it is overwritten.
            await self._db.wipe_log()
            self._log_to_wipe = False
        return purged

    async def _purge_step(self, before_s: int, step: int) -> int:
        gone = await self._db.write(lambda c: transactions.purge(c, before_s, step))
        for tweet_id, retweeter_id in gone:
            self._cached.invalidate_tweets((tweet_id,))
            if retweeter_id:
                self._cached.invalidate_author(retweeter_id)
        return len(gone)
