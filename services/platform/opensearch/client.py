"""OpenSearch: one client a process, time limits from the current call, and its refusals in our words.

Bodies are built as data, never as text: no input can become an operator of a query language.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Self, TypeVar

import orjson
from opensearchpy import AsyncOpenSearch, ConnectionTimeout, JSONSerializer, TransportError

from services.platform.config import Settings
from services.platform.rpc import context, errors
from services.platform.rpc.reasons import Reason

T = TypeVar("T")

# A search that takes longer is worth nothing to who waits for it; calls with less time left wait for less.
MAX_CALL_S = 2.0
# What is done in the background may take as long as a busy server needs for it: a bulk of 1,000 documents takes about 0.2 s.
BACKGROUND_TIMEOUT_S = 30.0
# Connections of a process; calls beyond wait for one within their time.
MAX_CONNECTIONS = 16
# A kept connection that the server closed meanwhile shows only when it is used: then once more, on another one.
RETRIES = 1

OK_FROM, OK_BELOW = 200, 300
BAD_REQUEST, NOT_FOUND, CONFLICT = 400, 404, 409
# Too many requests, and everything that the server says of itself, pass.
_TOO_MANY, _SERVER_ERRORS = 429, 500

# It logs every refusal as a warning, also those that are part of a protocol; and at DEBUG texts and questions of people.
logging.getLogger("opensearch").setLevel(logging.ERROR)


class RequestRejected(Exception):
    """What the server refuses whenever it is asked: an HTTP status below 500, its name for the error, and the reason in its words."""

    def __init__(self, status: int, kind: str, reason: str) -> None:
        super().__init__(f"{status} {kind}: {reason}")
        self.status = status
        self.kind = kind
        self.reason = reason


class BulkOperation(NamedTuple):
    """One line of a bulk: `index` or `create`, where and how it is to be done, and the document."""

    action: str
    options: Mapping[str, Any]
    document: bytes


class OpenSearch:
    """The client of one process. UNAVAILABLE, reason SEARCH_UNAVAILABLE, where the server cannot be reached or refuses for now."""

    def __init__(self, client: AsyncOpenSearch) -> None:
        self._client = client

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """A client of the servers in the settings (URLs, comma-separated); it connects at the first call."""
        hosts = [host.strip() for host in settings.opensearch.split(",") if host.strip()]
        return cls(
            AsyncOpenSearch(
                hosts,
                maxsize=MAX_CONNECTIONS,
                max_retries=RETRIES,
                retry_on_status=(),
                serializer=_OrjsonSerializer(),
            )
        )

    async def call(
        self,
        method: str,
        path: str,
        body: object = None,
        timeout_s: float = MAX_CALL_S,
        parameters: Mapping[str, str | int] | None = None,
    ) -> Any:
        """One request and its answer. Refusal where it can never work; DEADLINE_EXCEEDED where no time is left."""
        raw = body if body is None or isinstance(body, bytes) else orjson.dumps(body)
        try:
            return await self._client.transport.perform_request(
                method, path, params=parameters, body=raw, timeout=_time_left(timeout_s)
            )
        except ConnectionTimeout as error:
            raise unavailable("search does not answer in time") from error
        except TransportError as error:
            raise _error_of(error) from error

    async def bulk(
        self, operations: Sequence[BulkOperation], timeout_s: float = MAX_CALL_S
    ) -> list[RequestRejected | None]:
        """Does them in order, and answers for each why it was refused, None where it was done.

        UNAVAILABLE where one was refused for now, whatever became of the others: repeat the lot.
        """
        answer = await self.call("POST", "/_bulk", b"".join(_lines(operations)), timeout_s)
        if not answer["errors"]:
            return [None] * len(operations)
        return [_rejection_of(next(iter(item.values()))) for item in answer["items"]]

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()


class _OrjsonSerializer(JSONSerializer):
    """Answers by orjson: a page of 300 hits in a tenth of the time."""

    def loads(self, s: Any) -> Any:
        return orjson.loads(s)


def unavailable(message: str) -> errors.RoostError:
    """The error that tells callers, and through the gateway clients, that search alone is down."""
    return errors.unavailable(message, reason=Reason.SEARCH_UNAVAILABLE)


def _time_left(timeout_s: float) -> float:
    left_s = context.current().deadline - asyncio.get_running_loop().time()
    if left_s <= 0:
        raise errors.deadline_exceeded()
    return min(left_s, timeout_s)


def _error_of(error: TransportError) -> Exception:
    status = error.status_code
    if not isinstance(status, int):
        return unavailable("search cannot be reached")
    if status == _TOO_MANY or status >= _SERVER_ERRORS:
        return unavailable(f"search refuses for now ({status})")
    info = error.info
    cause = info.get("error") if isinstance(info, dict) else None
    reason = str(cause.get("reason", "")) if isinstance(cause, dict) else str(cause or "")
    return RequestRejected(status, str(error.error), reason)


def _lines(operations: Iterable[BulkOperation]) -> Iterable[bytes]:
    for action, options, document in operations:
        yield orjson.dumps({action: options})
        yield b"\n"
        yield document
        yield b"\n"


def _rejection_of(item: dict[str, Any]) -> RequestRejected | None:
    status = item["status"]
    if OK_FROM <= status < OK_BELOW:
        return None
    if status == _TOO_MANY or status >= _SERVER_ERRORS:
        raise unavailable(f"search refuses changes for now ({status})")
    return RequestRejected(status, item["error"]["type"], item["error"]["reason"])
