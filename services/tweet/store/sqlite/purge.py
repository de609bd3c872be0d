"""Removes deleted tweets from the SQLite file for good."""

from __future__ import annotations

from functools import partial

from services.platform.sqlite.database import Database
from services.platform.sqlite.versioned_writes import VersionedWrites
from services.tweet.store.sqlite import transactions
from services.tweet.store.sqlite.cached_reads import CachedReads

# Maximum number of rows that a purge deletes per transaction. Posts wait while a transaction runs.
PURGE_STEP = 500


class SqlitePurgeStore:
    """Implements PurgeStore on SQLite."""

    def __init__(self, db: Database, writes: VersionedWrites, cached: CachedReads) -> None:
        self._db = db
        self._writes = writes
        self._cached = cached
        # Whether the write-ahead log may contain texts of purged tweets. True at the start, because an earlier process
        # may have died after a purge, before it wiped the log.
        self._log_to_wipe = True

    async def purge(self, before_s: int, limit: int) -> int:
        purged = 0
        while purged < limit:
            step = min(PURGE_STEP, limit - purged)
            purge = partial(transactions.purge, before_s=before_s, limit=step)
            found = len((await self._writes.write(purge, self._forget)).rows)
            purged += found
            if found < step:
                break
        self._log_to_wipe |= purged > 0
        if self._log_to_wipe:
            # Without this the purged texts would stay in the write-ahead log until SQLite overwrites it.
            await self._db.wipe_log()
            self._log_to_wipe = False
        return purged

    def _forget(self, purged: transactions.Purged) -> None:
        for tweet_id, retweeter_id in purged.rows:
            self._cached.invalidate_tweets((tweet_id,))
            if retweeter_id:
                self._cached.invalidate_author(retweeter_id)
