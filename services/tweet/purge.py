"""The periodic job that removes deleted tweets for good after the grace period."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from services.platform import periodic
from services.tweet.store import PurgeStore

PURGE = "tweet-purge"
# Maximum number of tweets per step. Cassandra purges them one by one; 500 take a second or two.
LIMIT = 500


def purge_job(
    store: PurgeStore, clock: Callable[[], float], grace_s: int, may_run: Callable[[], Awaitable[bool]]
) -> periodic.PeriodicJob:
    """Returns a worker that purges tweets `grace_s` seconds after their deletion. `clock` returns Unix seconds.
    `may_run` returns whether this process may run the job now: it holds the job's lease."""
    return periodic.purge_job(PURGE, store.purge, clock=clock, grace_s=grace_s, limit=LIMIT, may_run=may_run)
