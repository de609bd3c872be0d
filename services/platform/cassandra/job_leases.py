"""Which process runs a periodic job: whoever holds its lease, a row that goes by itself if its owner dies."""

from __future__ import annotations

import secrets

from services.platform.cassandra.keyspace import Keyspace

# To be one of the migrations of the keyspace that is given to `JobLease`. Conditional writes only.
JOB_LEASES_MIGRATION = "CREATE TABLE IF NOT EXISTS job_leases (job text PRIMARY KEY, owner text)"

# Longer than a step takes, for the lease is renewed before each; and the longest that nobody runs a job whose owner died.
TTL_S = 120

_CLAIM = "UPDATE job_leases USING TTL ? SET owner = ? WHERE job = ? IF owner = null"
_RENEW = "UPDATE job_leases USING TTL ? SET owner = ? WHERE job = ? IF owner = ?"


class JobLease:
    """The lease of one job, as one process sees it. Two may run a job for a moment, after a step that took longer than `ttl_s`
    seconds: each step must be harmless twice."""

    def __init__(self, keyspace: Keyspace, job: str, ttl_s: int = TTL_S) -> None:
        self._keyspace = keyspace
        self._job = job
        self._ttl_s = ttl_s
        self._owner = secrets.token_hex(8)
        self._held = False

    async def hold(self) -> bool:
        """Takes or renews the lease; False if another process has it. Errors as `Keyspace.execute_lwt`."""
        if self._held:
            self._held, _ = await self._keyspace.execute_lwt(_RENEW, self._ttl_s, self._owner, self._job, self._owner)
        if not self._held:
            self._held, _ = await self._keyspace.execute_lwt(_CLAIM, self._ttl_s, self._owner, self._job)
        return self._held
