"""Removes deleted tweets from the SQLite file for good."""

from __future__ import annotations

from services.platform.detached import run_to_completion
from services.platform.sqlite.database import Database
from services.tweet.store.sqlite import transactions
from services.tweet.store.sqlite.cached_reads import CachedReads

# Maximum number of rows that a purge deletes per transaction. Posts wait while a transaction runs.
PURGE_STEP = 500


class SqlitePurgeStore:
    """Implements PurgeStore on SQLite."""

    def __init__(self, db: Database, cached: CachedReads) -> None:
        self._db = db
        self._cached = cached
        # Whether the write-ahead log may contain texts of purged tweets. True at the start, because an earlier process
        # may have died after a purge, before it wiped the log.
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
            # Without this the purged texts would stay in the write-ahead log until SQLite overwrites it.
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
