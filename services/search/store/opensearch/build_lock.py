"""Only one process builds an index: it holds a document on the server, and renews it for as long as it lives.

A holder is taken for dead when the document has not changed while others watched it for EXPIRES_S by their own clocks: no two
clocks are compared.
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

from services.platform.opensearch.client import CONFLICT, NOT_FOUND, OpenSearch, RequestRejected
from services.platform.rpc import errors
from services.platform.rpc.reasons import Reason

# A build without its process is taken up by another one this long after somebody noticed.
EXPIRES_S = 20.0
# Three may be late or lost before the lock is.
RENEW_EVERY_S = 5.0

# Read by its id alone: nothing in it is searched.
_BODY = {
    "settings": {"index": {"number_of_shards": 1, "auto_expand_replicas": "0-1"}},
    "mappings": {"dynamic": False},
}
_DOCUMENT = "build"
_log = structlog.get_logger(__name__)


class Held(NamedTuple):
    """The document: whose it is (empty: nobody's), how many documents were filled in, and its place in the order of changes."""

    token: str
    filled: int
    place: tuple[int, int]


class BuildLock:
    """The lock of one process. `clock` gives seconds that never go back."""

    def __init__(self, opensearch: OpenSearch, namespace: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._opensearch = opensearch
        self._index = f"{namespace}-search"
        self._clock = clock
        self._token = secrets.token_hex(8)
        self._filled = 0
        self._writing = asyncio.Lock()
        self._renewing: asyncio.Task[None] | None = None
        self._held = False
        # The document of another holder as last seen, and since when it has not changed.
        self._seen: tuple[tuple[int, int], float] = ((0, 0), 0.0)

    async def take(self) -> None:
        """Takes it, or keeps it where it is held. ALREADY_EXISTS, reason INDEX_BEING_BUILT, while another process has it."""
        async with self._writing:
            self._filled = 0
            found = await self.read()
            if found is None:
                await self._ready()
                await self._write(self._token, {"op_type": "create"})
            else:
                if found.token not in ("", self._token):
                    self._judge(found.place)
                await self._write(self._token, _only_over(found.place))
            self._held = True
        if self._renewing is None:
            # In an empty context: it outlives the call that began the build.
            self._renewing = asyncio.get_running_loop().create_task(self._renew(), context=contextvars.Context())

    def count(self, filled: int) -> None:
        """Lets others know, at the next renewal, that so many more documents were filled in."""
        self._filled += filled

    async def confirm(self) -> None:
        """Renews it now. FAILED_PRECONDITION where it was lost."""
        async with self._writing:
            # Read each time: whether a write came through whose answer was lost shows there.
            found = await self.read()
            if not self._held or found is None or found.token != self._token:
                self._held = False
                raise errors.failed_precondition("the search index is not being built by this process any more")
            await self._write(self._token, _only_over(found.place))

    async def leave(self) -> None:
        """Gives it free. Where the server does not answer it expires."""
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
                await self._write("", _only_over(found.place))

    async def read(self) -> Held | None:
        """The document as it stands; None where there is none yet."""
        try:
            found = await self._opensearch.call("GET", f"/{self._index}/_doc/{_DOCUMENT}")
        except RequestRejected as error:
            if error.status == NOT_FOUND:
                return None
            raise
        kept = found["_source"]
        return Held(kept["token"], kept["filled"], (found["_seq_no"], found["_primary_term"]))

    def _judge(self, place: tuple[int, int]) -> None:
        now_s = self._clock()
        if place != self._seen[0]:
            self._seen = (place, now_s)
        if now_s - self._seen[1] < EXPIRES_S:
            raise _held()
        _log.warning("the process that built the search index is gone: the build begins again")

    async def _ready(self) -> None:
        # It may be there: another process was faster.
        with contextlib.suppress(RequestRejected):
            await self._opensearch.call("PUT", f"/{self._index}", _BODY)

    async def _write(self, token: str, condition: Mapping[str, str | int]) -> None:
        body = {"token": token, "filled": self._filled}
        try:
            await self._opensearch.call("PUT", f"/{self._index}/_doc/{_DOCUMENT}", body, parameters=condition)
        except RequestRejected as error:
            if error.status == CONFLICT:
                raise _held() from error
            raise

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(RENEW_EVERY_S)
            try:
                await self.confirm()
            except errors.RoostError as error:
                if not self._held:
                    _log.warning("another process builds the search index now", error=str(error))
                    return


def _only_over(place: tuple[int, int]) -> dict[str, int]:
    return {"if_seq_no": place[0], "if_primary_term": place[1]}


def _held() -> errors.RoostError:
    return errors.already_exists("another process builds the search index", Reason.INDEX_BEING_BUILT)
