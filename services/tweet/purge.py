"""The periodic job that removes deleted tweets for good after the grace period."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from services.platform.periodic import PeriodicJob
from services.tweet.store import PurgeStore

PURGE = "tweet-purge"
# Maximum number of tweets per step. Cassandra purges them one by one; 500 take a second or two.
LIMIT = 500
# Bounds of the interval between two steps, in seconds. The interval is half the grace period, so that tests with a
# short grace period need not wait.
EVERY_MOST_S = 60.0
EVERY_LEAST_S = 0.5


def purge_job(
    store: PurgeStore, clock: Callable[[], float], grace_s: int, may_run: Callable[[], Awaitable[bool]]
) -> PeriodicJob:
    """Returns a worker that purges tweets `grace_s` seconds after their deletion. `clock` returns Unix seconds.
    `may_run` returns whether this process may run the job now: it holds the job's lease."""

    async def step(limit: int) -> int:
        return await store.purge(int(clock()) - grace_s, limit)

    every_s = min(max(grace_s / 2, EVERY_LEAST_S), EVERY_MOST_S)
    return PeriodicJob(PURGE, step, limit=LIMIT, every_s=every_s, may_run=may_run)
