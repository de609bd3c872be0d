"""Defines the types that the application and its routes exchange: a request, a response, and the interface of a
route."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping, Sequence
from typing import Any, Protocol

from gateway_http.load import Load
from gateway_http.problem import HttpError
from services.platform.rpc.client_address import TrustedProxies

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = Collection[tuple[bytes, bytes]]
# The key in the scope of a function `(status, headers, body)` that sends a whole response. Only Roost's own protocol sets
# it; with another ASGI server, and for a response in parts, the application calls `send`.
SEND_WHOLE = "roost.send_whole"

# Maximum size of a JSON body in bytes; a larger one is rejected with status 413. The largest requests of the API have a
# few kilobytes: a tweet has at most 4 kB.
MAX_BODY_BYTES = 64 * 1024
# Maximum number of seconds for receiving a body, else the request is rejected with status 408. A body of MAX_BODY_BYTES
# must arrive at 6.5 kB/s or faster.
BODY_TIMEOUT_S = 10.0

# The header of a response after which the connection is closed.
CLOSE = (b"connection", b"close")
JSON_CONTENT_TYPE = (b"content-type", b"application/json")
# Headers that forbid a browser to guess another content type than the declared one, and to execute anything in the
# response.
SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)

# Headers that must not be repeated. If a header is repeated, a proxy and the gateway may use different values of it
# (request smuggling).
SINGLETON_HEADERS = frozenset(
    {
        b"authorization",
        b"content-encoding",
        b"content-length",
        b"content-type",
        b"host",
        b"idempotency-key",
        b"if-none-match",
        b"traceparent",
        b"x-request-id",
    }
)

# The syntax of the header Host: host and optional port by RFC 3986. A client whose URL has no host sends an empty
# value.
_HOST = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+,;=%-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?").fullmatch
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}").fullmatch
# W3C trace context; an all-zero trace or span id is not valid.
_TRACEPARENT = re.compile(rb"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}").fullmatch


class ClientGoneError(Exception):
    """The client closed the connection before it had sent the whole request, so no response can be sent."""


class Request:
    """One HTTP request. `response_headers` are added to its response, also to an error response.

    `raw_path` is the path, percent-encoded as received. `path_values` are the decoded values of the path variables; the
    application sets them after it has matched a route. `request_id` and `traceparent` are the values of the client's
    headers; if a header is missing or malformed, a random value replaces it.
    """

    __slots__ = (
        "_load",
        "address",
        "headers",
        "path_values",
        "raw_path",
        "receive",
        "request_id",
        "response_headers",
        "scope",
        "trace_id",
        "traceparent",
        "user_id",
    )

    def __init__(self, scope: Scope, receive: Receive, load: Load, proxies: TrustedProxies) -> None:
        self.scope = scope
        self.receive = receive
        self._load = load
        self.raw_path: bytes = scope.get("raw_path") or scope["path"].encode()
        self.headers: Mapping[bytes, bytes] = dict(scope["headers"])
        self.path_values: Sequence[str] = ()
        # The client's IP address, "" if unknown. Rate limits count requests per address.
        self.address = self._address(proxies)
        # The user id of the access token, for the log. It is 0 until the token is verified, and if the request has no
        # token.
        self.user_id = 0
        traceparent = self.headers.get(b"traceparent", b"")
        if _TRACEPARENT(traceparent):
            self.traceparent = traceparent.decode()
            self.trace_id = self.traceparent[3:35]
        else:
            # Trace ids only correlate log lines, so they need not be cryptographically random.
            digits = f"{random.getrandbits(192):048x}"
            self.trace_id = digits[:32]
            self.traceparent = f"00-{self.trace_id}-{digits[32:]}-01"
        request_id = self.headers.get(b"x-request-id", b"")
        self.request_id = request_id.decode() if _REQUEST_ID(request_id) else self.trace_id
        self.response_headers: list[tuple[bytes, bytes]] = [
            (b"x-request-id", self.request_id.encode()),
            (b"traceparent", self.traceparent.encode()),
        ]

    @property
    def path(self) -> str:
        """Returns the requested path, percent-encoded as received."""
        return self.raw_path.decode("ascii", "replace")

    def _address(self, proxies: TrustedProxies) -> str:
        client = self.scope.get("client")
        peer: str = client[0] if client else ""
        if b"x-forwarded-for" not in self.headers:
            return peer
        # Each proxy may append its value to the header or send the header again, so all its lines are read.
        lines = [value.decode("latin-1") for name, value in self.scope["headers"] if name == b"x-forwarded-for"]
        return proxies.client(peer, lines)

    def check_headers(self) -> None:
        """Raises HttpError with status 400 if a header of SINGLETON_HEADERS is repeated, if the header Host is
        malformed, or if it is missing in an HTTP/1.1 request (RFC 9112, 3.2)."""
        host = self.headers.get(b"host")
        if host is None:
            if self.scope.get("http_version") == "1.1":
                raise HttpError(400, "invalid_argument", "the header host is missing: HTTP/1.1 requires it")
        elif not _HOST(host):
            raise HttpError(
                400, "invalid_argument", "the header host must be a name or an address, optionally with a port"
            )
        if len(self.headers) == len(self.scope["headers"]):
            return
        seen: set[bytes] = set()
        for name, _ in self.scope["headers"]:
            if name in SINGLETON_HEADERS and name in seen:
                raise HttpError(400, "invalid_argument", f"the header {name.decode()} is repeated: send it once")
            seen.add(name)

    def has_body(self) -> bool:
        """Returns whether the headers announce a body: Transfer-Encoding, or a Content-Length other than 0."""
        return b"transfer-encoding" in self.headers or self.headers.get(b"content-length", b"0") != b"0"

    async def read_body(self, max_bytes: int = MAX_BODY_BYTES) -> bytes:
        """Returns the whole body.

        Raises HttpError with status 413 as soon as the body exceeds `max_bytes`, and with 408 if the body takes longer
        than BODY_TIMEOUT_S seconds. Raises UNAVAILABLE (OVERLOADED) if the gateway has no memory for a large body, or
        processes too many requests when the body is complete. Raises ClientGoneError if the client disconnects.
        """
        length = self.headers.get(b"content-length", b"0")
        # A number of more than 18 digits always exceeds `max_bytes`, and int() is slow for very many digits.
        if len(length) > 18 or (length.isdigit() and int(length) > max_bytes):
            raise _too_large(max_bytes)
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                body = await self._read_all(max_bytes)
        except TimeoutError:
            raise HttpError(
                408,
                "request_timeout",
                f"the body did not arrive within {BODY_TIMEOUT_S:.0f} s",
                (CLOSE,),
            ) from None
        # A request that waits for its body does not count as active, so thousands may become active at the same time.
        self._load.check()
        return body

    async def _read_all(self, max_bytes: int) -> bytes:
        body = bytearray()
        reserved = 0
        try:
            while True:
                with self._load.waiting_for_client:
                    event = await self.receive()
                if event["type"] == "http.disconnect":
                    raise ClientGoneError
                body += event.get("body", b"")
                if len(body) > max_bytes:
                    raise _too_large(max_bytes)
                if not event.get("more_body", False):
                    return bytes(body)
                if len(body) > MAX_BODY_BYTES:
                    self._load.reserve(len(body) - reserved)
                    reserved = len(body)
        finally:
            self._load.release(reserved)


def _too_large(max_bytes: int) -> HttpError:
    text = f"the body is too large: at most {max_bytes} bytes are allowed"
    return HttpError(413, "payload_too_large", text, (CLOSE,))


class Response:
    """An HTTP response. The application adds the header content-length. If `gzip` is not None, it is a function that
    returns the gzipped body, which is sent to clients that accept gzip."""

    __slots__ = ("body", "gzip", "headers", "status")

    def __init__(
        self,
        status: int,
        headers: Sequence[tuple[bytes, bytes]],
        body: bytes,
        *,
        gzip: Callable[[], bytes] | None = None,
    ) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        self.gzip = gzip


class Route(Protocol):
    """Serves the requests of one route. `name` is its label in metrics and logs."""

    name: str
    # True for the routes of liveness, readiness and metrics, which are served even if the gateway is overloaded.
    is_probe: bool

    async def serve(self, request: Request) -> Response:
        """Returns the response. The application renders exceptions as problem+json, such as RoostError and
        HttpError."""
