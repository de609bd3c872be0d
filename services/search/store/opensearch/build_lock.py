"""A lock in OpenSearch, so that only one process builds an index. It is a document that the holder of the lock renews.

The lock has expired if the document did not change for EXPIRES_S seconds, measured by the process that wants the lock.
Clocks of different processes are never compared.
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

# After this time without a renewal, another process may take over the build.
EXPIRES_S = 20.0
# Three renewals may be lost before the lock expires.
RENEW_EVERY_S = 5.0

# The document is only read by id, so none of its fields is indexed.
_BODY = {
    "settings": {"index": {"number_of_shards": 1, "auto_expand_replicas": "0-1"}},
    "mappings": {"dynamic": False},
}
_DOCUMENT = "build"
log = structlog.get_logger(__name__)


class LockDocument(NamedTuple):
    """The lock document: the holder's token (empty if free), the number of documents filled, and the (_seq_no,
    _primary_term) of its last write.
    """

    token: str
    filled: int
    sequence: tuple[int, int]


class BuildLock:
    """The build lock, as one process acquires, renews and releases it. `clock` returns monotonic seconds. All methods
    raise UNAVAILABLE if the server does not answer.
    """

    def __init__(self, opensearch: OpenSearch, namespace: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._opensearch = opensearch
        self._index = f"{namespace}-search"
        self._clock = clock
        self._token = secrets.token_hex(8)
        self._filled = 0
        self._writing = asyncio.Lock()
        self._renewing: asyncio.Task[None] | None = None
        self._held = False
        # The (_seq_no, _primary_term) of another holder's document as last read, and the time (monotonic seconds) since
        # when they have not changed.
        self._seen: tuple[tuple[int, int], float] = ((0, 0), 0.0)

    async def acquire(self) -> None:
        """Acquires the lock, or renews it if this process holds it already. From then on a background task renews the
        lock every RENEW_EVERY_S seconds.

        Raises ALREADY_EXISTS with reason INDEX_BEING_BUILT if another process holds the lock.
        """
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
            # The task gets an empty context, because it runs longer than the call that began the build and must not
            # inherit the deadline of that call.
            self._renewing = asyncio.get_running_loop().create_task(
                self._renew_forever(), context=contextvars.Context()
            )

    def count(self, filled: int) -> None:
        """Adds `filled` to the number of documents filled into the index; the next renewal stores the sum in the lock
        document."""
        self._filled += filled

    async def renew(self) -> None:
        """Renews the lock now. Raises FAILED_PRECONDITION if this process does not hold the lock any more, because
        another process acquired it after it had expired."""
        async with self._writing:
            # The document is read each time, because this shows whether an earlier write whose response was lost has
            # succeeded.
            found = await self.read()
            if not self._held or found is None or found.token != self._token:
                self._held = False
                raise errors.failed_precondition(
                    "this process lost the build lock: another process builds the search index"
                )
            await self._write(self._token, _if_unchanged(found.sequence))

    async def release(self) -> None:
        """Releases the lock. If the server does not answer, the lock expires instead."""
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
        """Returns the lock document; None if there is none yet."""
        try:
            found = await self._opensearch.call("GET", f"/{self._index}/_doc/{_DOCUMENT}")
        except RequestRejected as error:
            if error.status == NOT_FOUND:
                return None
            raise
        kept = found["_source"]
        return LockDocument(kept["token"], kept["filled"], (found["_seq_no"], found["_primary_term"]))

    def _raise_unless_expired(self, sequence: tuple[int, int]) -> None:
        """Raises ALREADY_EXISTS (INDEX_BEING_BUILT) unless the lock of the other process has expired. `sequence` is the
        sequence number of the lock document as just read."""
        now_s = self._clock()
        if sequence != self._seen[0]:
            self._seen = (sequence, now_s)
        if now_s - self._seen[1] < EXPIRES_S:
            raise _being_built_elsewhere()
        log.warning(LogEvent.BUILD_LOCK_EXPIRED)

    async def _create_index(self) -> None:
        # The server rejects the request if another process has created the index meanwhile, which does no harm. On a
        # busy server the creation takes seconds.
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
