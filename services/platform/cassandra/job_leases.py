"""Leases for periodic jobs: the process that holds a job's lease runs it. A lease is a row with a TTL, so it expires if
its owner dies."""

from __future__ import annotations

import secrets

from services.platform.cassandra.keyspace import Keyspace

# Must be one of the migrations of the keyspace passed to `JobLease`. The table is written by conditional writes only.
JOB_LEASES_MIGRATION = "CREATE TABLE IF NOT EXISTS job_leases (job text PRIMARY KEY, owner text)"

# Longer than one step of a job, because the lease is renewed before each step. Also the longest time that a job does
# not run after its owner died.
TTL_S = 120

_CLAIM = "UPDATE job_leases USING TTL ? SET owner = ? WHERE job = ? IF owner = null"
_RENEW = "UPDATE job_leases USING TTL ? SET owner = ? WHERE job = ? IF owner = ?"


class JobLease:
    """One process's view of the lease of one job.

    Two processes may run the job at once for a moment, if a step takes longer than `ttl_s` seconds: each step must be
    idempotent.
    """

    def __init__(self, keyspace: Keyspace, job: str, ttl_s: int = TTL_S) -> None:
        self._keyspace = keyspace
        self._job = job
        self._ttl_s = ttl_s
        self._owner = secrets.token_hex(8)
        self._held = False

    async def hold(self) -> bool:
        """Acquires or renews the lease. Returns False if another process holds it. Raises UNAVAILABLE if Cassandra does
        not answer, and then it is unknown whether the lease was acquired."""
        if self._held:
            self._held, _ = await self._keyspace.execute_lwt(_RENEW, self._ttl_s, self._owner, self._job, self._owner)
        if not self._held:
            self._held, _ = await self._keyspace.execute_lwt(_CLAIM, self._ttl_s, self._owner, self._job)
        return self._held
