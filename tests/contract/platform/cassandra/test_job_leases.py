"""One process at a time has a job, and another takes it over from one that died."""

from __future__ import annotations

import pytest

from services.platform.cassandra.job_leases import JOB_LEASES_MIGRATION, JobLease
from services.platform.cassandra.keyspace import Cassandra, Keyspace
from tests.contract.platform.conftest import until

pytestmark = pytest.mark.cluster


async def test_hold_is_one_processs_until_it_stops_renewing(cassandra: Cassandra) -> None:
    keyspace = await Keyspace.open(cassandra, "kit3", (JOB_LEASES_MIGRATION,))
    first, second, other = (JobLease(keyspace, job, ttl_s=2) for job in ("purge", "purge", "another"))
    assert await first.hold()
    assert await first.hold()
    assert not await second.hold()
    assert await other.hold()
    # The first dies: it renews no more.
    await until(second.hold)
    assert not await first.hold()
