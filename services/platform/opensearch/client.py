"""The OpenSearch client. The deadline of the current call limits each request. Errors of the server become RoostError.

Request bodies are built as data, never as text, so user input cannot become an operator of the query language.
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

# Time limit in seconds of a search: users do not wait longer. If the deadline of the current call is earlier, this
# deadline is the limit.
MAX_CALL_S = 2.0
# Time limit in seconds of requests for which no user waits, such as indexing. A bulk of 1,000 documents takes about 0.2
# s on an idle server.
BACKGROUND_TIMEOUT_S = 30.0
# Maximum number of connections per process and server. Beyond it a call waits for a free connection within its time
# limit.
MAX_CONNECTIONS = 16
# Number of times a request is sent again after its connection failed. A client notices only at the next request that
# the server has closed an idle connection; then the request is sent once more on another connection.
RETRIES = 1

OK_FROM, OK_BELOW = 200, 300
BAD_REQUEST, NOT_FOUND, CONFLICT = 400, 404, 409
# Status 429 and server errors are transient.
_TOO_MANY, _SERVER_ERRORS = 429, 500

# The library logs every rejected request as a warning, even expected ones, and at DEBUG logs texts and queries of
# users.
logging.getLogger("opensearch").setLevel(logging.ERROR)


class RequestRejected(Exception):
    """The server rejected a request, and a retry would be rejected too. `status` is the HTTP status (below 500, not
    429), `kind` the server's error type and `reason` its message."""

    def __init__(self, status: int, kind: str, reason: str) -> None:
        super().__init__(f"{status} {kind}: {reason}")
        self.status = status
        self.kind = kind
        self.reason = reason


class BulkOperation(NamedTuple):
    """One operation of a bulk request: `action` is `index` or `create`, `options` are its metadata, `document` is
    JSON."""

    action: str
    options: Mapping[str, Any]
    document: bytes


class OpenSearch:
    """The client of one process. Methods raise UNAVAILABLE, reason SEARCH_UNAVAILABLE, if the server is unreachable or
    overloaded."""

    def __init__(self, client: AsyncOpenSearch) -> None:
        self._client = client

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Returns a client of the servers in the setting `opensearch_urls` (URLs, comma-separated); connects at the
        first call."""
        hosts = [host.strip() for host in settings.opensearch_urls.split(",") if host.strip()]
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
        """Sends one request and returns the decoded response. Raises RequestRejected for a 4xx status except 429,
        DEADLINE_EXCEEDED if the deadline of the current call has passed, and UNAVAILABLE if the server does not answer
        within `timeout_s` seconds or is overloaded."""
        raw = body if body is None or isinstance(body, bytes) else orjson.dumps(body)
        try:
            return await self._client.transport.perform_request(
                method, path, params=parameters, body=raw, timeout=_time_left(timeout_s)
            )
        except ConnectionTimeout as error:
            raise unavailable("search did not answer in time: retry later") from error
        except TransportError as error:
            raise _error_of(error) from error

    async def bulk(
        self, operations: Sequence[BulkOperation], timeout_s: float = MAX_CALL_S
    ) -> list[RequestRejected | None]:
        """Executes the operations in order. Returns for each operation the error with which the server rejected it, or
        None if it succeeded.

        Raises UNAVAILABLE if an operation failed transiently, although other operations may have succeeded: then the
        caller must repeat the whole bulk.
        """
        answer = await self.call("POST", "/_bulk", b"".join(_lines(operations)), timeout_s)
        if not answer["errors"]:
            return [None] * len(operations)
        return [_rejection_of(next(iter(item.values()))) for item in answer["items"]]

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()


class _OrjsonSerializer(JSONSerializer):
    """Decodes responses with orjson, which takes a tenth of the time of `json` for a response with 300 hits."""

    def loads(self, s: Any) -> Any:
        return orjson.loads(s)


def unavailable(message: str) -> errors.RoostError:
    """Returns UNAVAILABLE, reason SEARCH_UNAVAILABLE: clients learn that only search is down."""
    return errors.unavailable(message, reason=Reason.SEARCH_UNAVAILABLE)


def _time_left(timeout_s: float) -> float:
    left_s = context.current().deadline - asyncio.get_running_loop().time()
    if left_s <= 0:
        raise errors.deadline_exceeded()
    return min(left_s, timeout_s)


def _error_of(error: TransportError) -> Exception:
    status = error.status_code
    if not isinstance(status, int):
        return unavailable("search cannot be reached: retry later")
    if status == _TOO_MANY or status >= _SERVER_ERRORS:
        return unavailable(f"search is overloaded or failing (HTTP status {status}): retry later")
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
        raise unavailable(f"search does not accept changes now (HTTP status {status}): retry later")
    return RequestRejected(status, item["error"]["type"], item["error"]["reason"])
