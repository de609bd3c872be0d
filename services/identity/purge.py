"""The periodic job that erases deactivated accounts after the grace period."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from google.protobuf.timestamp_pb2 import Timestamp
from roost.event.v1 import event_pb2

from services.identity.store import PurgeStore
from services.platform import periodic
from services.platform.events.log import Record
from services.platform.events.records import EventBuilder
from services.platform.service import ServiceContext

PURGE = "account-purge"
# Maximum number of accounts per step. Cassandra erases them one by one, with four conditional writes each; 100 take a
# few seconds.
LIMIT = 100


def purge_job(
    store: PurgeStore, context: ServiceContext, may_run: Callable[[], Awaitable[bool]]
) -> periodic.PeriodicJob:
    """Returns a worker that erases accounts `delete_grace_s` seconds (a setting) after their deactivation. `may_run`
    returns whether this process may run the job now: it holds the job's lease."""
    events = EventBuilder(context.ids, context.clock)

    async def purged(user_id: int, deactivated_s: int) -> Record:
        deactivated_at = Timestamp(seconds=deactivated_s)
        return await events.record(event_pb2.UserPurged(user_id=user_id, deactivated_at=deactivated_at))

    async def purge(before_s: int, limit: int) -> int:
        return await store.purge(before_s, limit, purged)

    grace_s = context.settings.delete_grace_s
    return periodic.purge_job(PURGE, purge, clock=context.clock, grace_s=grace_s, limit=LIMIT, may_run=may_run)
