"""Leases for periodic jobs: the process that holds a job's lease runs it. A lease is a row with a TTL, so it expires if
its owner dies."""

from __future__ import annotations

import secrets

from services.platform.cassandra.keyspace import Keyspace

# The keyspace that is passed to `JobLease` must have this script among its migrations. Only conditional writes may
# change the table.
JOB_LEASES_MIGRATION = "CREATE TABLE IF NOT EXISTS job_leases (job text PRIMARY KEY, owner text)"

# The TTL in seconds of a lease. It is longer than one step of a job, because the owner renews the lease before each
# step. If the owner dies, the job does not run until the TTL has passed.
TTL_S = 120

_CLAIM = "UPDATE job_leases USING TTL ? SET owner = ? WHERE job = ? IF owner = null"
_RENEW = "UPDATE job_leases USING TTL ? SET owner = ? WHERE job = ? IF owner = ?"


class JobLease:
    """The lease of one job, as one process acquires and renews it.

    If a step of the job takes longer than `ttl_s` seconds, the lease expires and a second process may run the job at
    the same time. So each step must be idempotent.
    """

    def __init__(self, keyspace: Keyspace, job: str, ttl_s: int = TTL_S) -> None:
        self._keyspace = keyspace
        self._job = job
        self._ttl_s = ttl_s
        self._owner = secrets.token_hex(8)
        self._held = False

    async def hold(self) -> bool:
        """Acquires the lease, or renews it if this process holds it, for `ttl_s` seconds. Returns False if another
        process holds the lease.

        Raises UNAVAILABLE or DEADLINE_EXCEEDED if Cassandra does not answer in time, and RESOURCE_EXHAUSTED if too many
        requests are queued in this process. The lease may be acquired all the same; the next call then returns True.
        """
        if self._held:
            self._held = await self._renew()
        if not self._held:
            self._held, held_by = await self._keyspace.execute_lwt(_CLAIM, self._ttl_s, self._owner, self._job)
            # An earlier call whose reply was lost may have acquired the lease, so the row may name this owner already.
            if held_by == (self._owner,):
                self._held = await self._renew()
        return self._held

    async def _renew(self) -> bool:
        renewed, _ = await self._keyspace.execute_lwt(_RENEW, self._ttl_s, self._owner, self._job, self._owner)
        return renewed
