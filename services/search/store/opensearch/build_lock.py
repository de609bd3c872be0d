"""The build lock: a document in OpenSearch that lets only one process build the search index. The process that holds
the lock renews it by writing the document.

The lock expires if the document does not change for EXPIRES_S seconds. A process that wants the lock measures this time
itself, so clocks of different processes are never compared.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import secrets
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import structlog

from services.platform.log_events import LogEvent
from services.platform.opensearch.client import BACKGROUND_TIMEOUT_S, CONFLICT, NOT_FOUND, OpenSearch, RequestRejected
from services.platform.rpc import errors
from services.platform.rpc.reasons import Reason

# If the lock is not renewed for this many seconds, it expires, and another process may acquire it.
EXPIRES_S = 20.0
# Seconds between two renewals: three may fail before the lock expires.
RENEW_EVERY_S = 5.0

# Settings of the index that contains the lock document. None of its fields is indexed, because it is only read by id.
_BODY = {
    "settings": {"index": {"number_of_shards": 1, "auto_expand_replicas": "0-1"}},
    "mappings": {"dynamic": False},
}
_DOCUMENT = "build"
log = structlog.get_logger(__name__)


class LockDocument(NamedTuple):
    """The lock document. `token` identifies the holder, "" if nobody holds the lock. `filled` is the number of
    documents that the build has filled. `sequence` is (_seq_no, _primary_term) of the last write."""

    token: str
    filled: int
    sequence: tuple[int, int]


class BuildLock:
    """Acquires, renews and releases the build lock for this process. `clock` returns monotonic seconds. All methods
    raise UNAVAILABLE if OpenSearch does not answer."""

    def __init__(self, opensearch: OpenSearch, namespace: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._opensearch = opensearch
        self._index = f"{namespace}-search"
        self._clock = clock
        self._token = secrets.token_hex(8)
        self._filled = 0
        self._writing = asyncio.Lock()
        self._renewing: asyncio.Task[None] | None = None
        self._held = False
        # `sequence` of the lock document of another holder as last read, and the time since when it has not changed.
        self._seen: tuple[tuple[int, int], float] = ((0, 0), 0.0)

    async def acquire(self) -> None:
        """Acquires the lock, or renews it if this process holds it, and starts a task that renews it every
        RENEW_EVERY_S seconds. Raises ALREADY_EXISTS (INDEX_BEING_BUILT) if another process holds the lock."""
        async with self._writing:
            self._filled = 0
            found = await self.read()
            if found is None:
                await self._create_index()
                await self._write(self._token, {"op_type": "create"})
            else:
                if found.token not in ("", self._token):
                    self._raise_unless_expired(found.sequence)
                await self._write(self._token, _if_unchanged(found.sequence))
            self._held = True
        if self._renewing is None:
            # An empty context, because the task runs longer than the call that starts it and must not have the call's
            # deadline.
            self._renewing = asyncio.get_running_loop().create_task(
                self._renew_forever(), context=contextvars.Context()
            )

    def count(self, filled: int) -> None:
        """Adds `filled` to the number of filled documents. The next renewal writes this number to the lock document."""
        self._filled += filled

    async def renew(self) -> None:
        """Renews the lock now. Raises FAILED_PRECONDITION if this process does not hold the lock, because the lock
        expired and another process acquired it."""
        async with self._writing:
            # The lock document is read each time, because a write whose response was lost may have changed the
            # document's `sequence`.
            found = await self.read()
            if not self._held or found is None or found.token != self._token:
                self._held = False
                raise errors.failed_precondition(
                    "this process lost the build lock: another process builds the search index"
                )
            await self._write(self._token, _if_unchanged(found.sequence))

    async def release(self) -> None:
        """Stops the renewals and releases the lock. If OpenSearch does not answer, ignores the error: the lock
        expires."""
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.gather(self._renewing, return_exceptions=True)
            self._renewing = None
        if not self._held:
            return
        self._held = False
        with contextlib.suppress(errors.RoostError):
            found = await self.read()
            if found is not None and found.token == self._token:
                await self._write("", _if_unchanged(found.sequence))

    async def read(self) -> LockDocument | None:
        """Returns the lock document, None if it does not exist."""
        try:
            found = await self._opensearch.call("GET", f"/{self._index}/_doc/{_DOCUMENT}")
        except RequestRejected as error:
            if error.status == NOT_FOUND:
                return None
            raise
        kept = found["_source"]
        return LockDocument(kept["token"], kept["filled"], (found["_seq_no"], found["_primary_term"]))

    def _raise_unless_expired(self, sequence: tuple[int, int]) -> None:
        """Raises ALREADY_EXISTS (INDEX_BEING_BUILT) if the lock of another process has not expired. `sequence` is that
        of the lock document as read now."""
        now_s = self._clock()
        if sequence != self._seen[0]:
            self._seen = (sequence, now_s)
        if now_s - self._seen[1] < EXPIRES_S:
            raise _being_built_elsewhere()
        log.warning(LogEvent.BUILD_LOCK_EXPIRED)

    async def _create_index(self) -> None:
        # A rejection is ignored: another process has created the index meanwhile. On a busy server the request takes
        # seconds, hence the longer timeout.
        with contextlib.suppress(RequestRejected):
            await self._opensearch.call("PUT", f"/{self._index}", _BODY, timeout_s=BACKGROUND_TIMEOUT_S)

    async def _write(self, token: str, condition: Mapping[str, str | int]) -> None:
        body = {"token": token, "filled": self._filled}
        try:
            await self._opensearch.call("PUT", f"/{self._index}/_doc/{_DOCUMENT}", body, parameters=condition)
        except RequestRejected as error:
            if error.status == CONFLICT:
                raise _being_built_elsewhere() from error
            raise

    async def _renew_forever(self) -> None:
        while True:
            await asyncio.sleep(RENEW_EVERY_S)
            try:
                await self.renew()
            except errors.RoostError as error:
                if not self._held:
                    log.warning(LogEvent.BUILD_LOCK_LOST, error=str(error))
                    return


def _if_unchanged(sequence: tuple[int, int]) -> dict[str, int]:
    return {"if_seq_no": sequence[0], "if_primary_term": sequence[1]}


def _being_built_elsewhere() -> errors.RoostError:
    return errors.already_exists(
        "another process is building the search index: wait until it has finished", Reason.INDEX_BEING_BUILT
    )
