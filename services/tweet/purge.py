"""The periodic job that removes deleted tweets for good after the grace period."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from services.platform.periodic import PeriodicJob
from services.tweet.store import PurgeStore

PURGE = "tweet-purge"
# Tweets per step: Cassandra purges them one by one, which takes a second or two.
LIMIT = 500
# The interval is half the grace period within these bounds, so that short graces, as in tests, are purged soon as well.
EVERY_MOST_S = 60.0
EVERY_LEAST_S = 0.5


def purge_job(
    store: PurgeStore, clock: Callable[[], float], grace_s: int, may_run: Callable[[], Awaitable[bool]]
) -> PeriodicJob:
    """Returns the job over `store`. `clock` returns Unix seconds; tweets are purged `grace_s` seconds after their
    deletion; `may_run` returns whether this process holds the right to run it."""

    async def step(limit: int) -> int:
        return await store.purge(int(clock()) - grace_s, limit)

    every_s = min(max(grace_s / 2, EVERY_LEAST_S), EVERY_MOST_S)
    return PeriodicJob(PURGE, step, limit=LIMIT, every_s=every_s, may_run=may_run)
