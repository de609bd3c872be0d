"""The periodic job that erases deactivated accounts after the grace period."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from services.identity.store import PurgeStore
from services.platform import periodic

PURGE = "account-purge"
# Maximum number of accounts per step. Cassandra erases them one by one, with four conditional writes each; 100 take a
# few seconds.
LIMIT = 100


def purge_job(
    store: PurgeStore, clock: Callable[[], float], grace_s: int, may_run: Callable[[], Awaitable[bool]]
) -> periodic.PeriodicJob:
    """Returns a worker that erases accounts `grace_s` seconds after their deactivation. `clock` returns Unix seconds.
    `may_run` returns whether this process may run the job now: it holds the job's lease."""
    return periodic.purge_job(PURGE, store.purge, clock=clock, grace_s=grace_s, limit=LIMIT, may_run=may_run)
