"""Job leases: one process holds a lease at a time; another acquires it after the owner died."""

from __future__ import annotations

from typing import Any

import pytest

from services.platform.cassandra.job_leases import JOB_LEASES_MIGRATION, JobLease
from services.platform.cassandra.keyspace import Cassandra, Keyspace
from services.platform.rpc import errors
from tests.cluster import KIT_JOBS
from tests.contract.platform.conftest import until

pytestmark = pytest.mark.cluster


async def test_hold_other_process_acquires_after_expiry(cassandra: Cassandra) -> None:
    keyspace = await Keyspace.open(cassandra, KIT_JOBS, (JOB_LEASES_MIGRATION,))
    first, second, other = (JobLease(keyspace, job) for job in ("purge", "purge", "another"))
    assert await first.hold()
    assert await first.hold()
    assert not await second.hold()
    assert await other.hold()
    # The first process dies: its last renewal is a short one, because the steps before may take any time.
    first._ttl_s = 1
    assert await first.hold()
    await until(second.hold)
    assert not await first.hold()


async def test_hold_after_lost_reply_holds_the_lease(cassandra: Cassandra, monkeypatch: pytest.MonkeyPatch) -> None:
    keyspace = await Keyspace.open(cassandra, KIT_JOBS, (JOB_LEASES_MIGRATION,))
    lease, other = JobLease(keyspace, "purge"), JobLease(keyspace, "purge")
    execute = Keyspace.execute_lwt

    async def losing(self: Keyspace, cql: str, *values: Any) -> Any:
        await execute(self, cql, *values)
        raise errors.unavailable("the reply was lost")

    with monkeypatch.context() as patch:
        patch.setattr(Keyspace, "execute_lwt", losing)
        with pytest.raises(errors.RoostError):
            await lease.hold()
    assert not await other.hold()
    assert await lease.hold()
