"""The job that removes for good what was deleted longer ago than the grace."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from services.platform.periodic import PeriodicJob
from services.tweet.store import TweetStore

PURGE = "tweet-purge"
# Tweets a step: a second or two of Cassandra's work, which purges them one by one.
LIMIT = 500
# Beside a grace of days, soon; where the grace is short, as in tests, within about the grace.
EVERY_MOST_S = 60.0
EVERY_LEAST_S = 0.5


def purge_job(
    store: TweetStore, clock: Callable[[], float], grace_s: int, may_run: Callable[[], Awaitable[bool]]
) -> PeriodicJob:
    """Makes the job over a store. `clock` gives unix seconds; tweets are kept for `grace_s` seconds after their deletion."""

    async def step(limit: int) -> int:
        return await store.purge(int(clock()) - grace_s, limit)

    every_s = min(max(grace_s / 2, EVERY_LEAST_S), EVERY_MOST_S)
    return PeriodicJob(PURGE, step, limit=LIMIT, every_s=every_s, may_run=may_run)
