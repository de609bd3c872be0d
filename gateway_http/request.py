"""What passes between the application and its routes: a request as it came, a response ready to be sent, a body read within bounds."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any, Protocol

from gateway_http.compression import gzipped
from gateway_http.load import Load
from gateway_http.problem import Refusal
from services.platform.rpc.client_address import TrustedProxies

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

# The largest JSON body: a tweet has 4 kB, the longest import of the API far less than this.
MAX_BODY_BYTES = 64 * 1024
# The whole body must be here by then: at the largest size 6.5 kB/s.
BODY_TIMEOUT_S = 10.0

JSON = (b"content-type", b"application/json")
# JSON is no page: a browser must neither guess another type nor run anything in it.
SECURITY = (
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)

# Names that must not come twice: a front end and we could each believe another one.
SINGLE = frozenset(
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

# RFC 3986's host and port. Empty is what a client sends whose URL has none.
_HOST = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+,;=%-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?").fullmatch
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}").fullmatch
# W3C trace context; an all-zero trace or span id is not valid.
_TRACEPARENT = re.compile(rb"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}").fullmatch


class ClientGoneError(Exception):
    """The client closed the connection before it had sent everything: nobody waits for an answer."""


class Request:
    """One request as it came. `response_headers` are headers that every answer to it carries, refusals too."""

    __slots__ = (
        "_load",
        "address",
        "headers",
        "raw_path",
        "receive",
        "request_id",
        "response_headers",
        "scope",
        "trace_id",
        "traceparent",
        "values",
    )

    def __init__(self, scope: Scope, receive: Receive, load: Load, proxies: TrustedProxies) -> None:
        self.scope = scope
        self.receive = receive
        self._load = load
        self.raw_path: bytes = scope.get("raw_path") or scope["path"].encode()
        self.headers: Mapping[bytes, bytes] = dict(scope["headers"])
        self.values: Sequence[str] = ()
        # The client's address, "" where the server does not know it: it is what limits count.
        self.address = self._address(proxies)
        traceparent = self.headers.get(b"traceparent", b"")
        if _TRACEPARENT(traceparent):
            self.traceparent = traceparent.decode()
            self.trace_id = self.traceparent[3:35]
        else:
            # Ids to find log lines by, no secrets.
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
        """The path asked for, still encoded."""
        return self.raw_path.decode("ascii", "replace")

    def _address(self, proxies: TrustedProxies) -> str:
        client = self.scope.get("client")
        peer: str = client[0] if client else ""
        if b"x-forwarded-for" not in self.headers:
            return peer
        # Each proxy may add a line of its own.
        lines = [value.decode("latin-1") for name, value in self.scope["headers"] if name == b"x-forwarded-for"]
        return proxies.client(peer, lines)

    def check_headers(self) -> None:
        """Raises 400 if a header came twice and must not, or if HTTP/1.1 came without a valid Host (RFC 9112, 3.2)."""
        host = self.headers.get(b"host")
        if host is None:
            if self.scope.get("http_version") == "1.1":
                raise Refusal(400, "invalid_argument", "HTTP/1.1 needs the header host")
        elif not _HOST(host):
            raise Refusal(
                400, "invalid_argument", "the header host must be a name or an address, with a port or without"
            )
        if len(self.headers) == len(self.scope["headers"]):
            return
        seen: set[bytes] = set()
        for name, _ in self.scope["headers"]:
            if name in SINGLE and name in seen:
                raise Refusal(400, "invalid_argument", f"the header {name.decode()} came twice")
            seen.add(name)

    def has_body(self) -> bool:
        """Whether a body is announced, of whatever length."""
        return b"transfer-encoding" in self.headers or self.headers.get(b"content-length", b"0") != b"0"

    async def read_body(self, most: int = MAX_BODY_BYTES) -> bytes:
        """Returns the body. Raises 413 if it has more than `most` bytes, before the rest is read; 408 if it takes more than
        BODY_TIMEOUT_S; UNAVAILABLE if too much is under way once it is here; ClientGoneError if the client left.
        """
        length = self.headers.get(b"content-length", b"0")
        # A number of more than 18 digits is too large, whatever it is.
        if len(length) > 18 or (length.isdigit() and int(length) > most):
            raise _too_large(most)
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                body = await self._read_all(most)
        except TimeoutError:
            raise Refusal(408, "request_timeout", "the body came too slowly", ((b"connection", b"close"),)) from None
        # Thousands may have waited, uncounted, for bodies that end at once.
        self._load.check()
        return body

    async def _read_all(self, most: int) -> bytes:
        body = bytearray()
        held = 0
        try:
            while True:
                with self._load.waiting:
                    event = await self.receive()
                if event["type"] == "http.disconnect":
                    raise ClientGoneError
                body += event.get("body", b"")
                if len(body) > most:
                    raise _too_large(most)
                if not event.get("more_body", False):
                    return bytes(body)
                if len(body) > MAX_BODY_BYTES:
                    self._load.hold(len(body) - held)
                    held = len(body)
        finally:
            self._load.release(held)


def _too_large(most: int) -> Refusal:
    text = f"a body may have {most} bytes"
    return Refusal(413, "payload_too_large", text, ((b"connection", b"close"),))


class Response:
    """An answer ready to be sent, without its content-length. `compressible` says whether its body may be sent in gzip."""

    __slots__ = ("_gzipped", "body", "compressible", "headers", "status")

    def __init__(
        self, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes, *, compressible: bool = False
    ) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        self.compressible = compressible
        self._gzipped: bytes | None = None

    def gzipped(self) -> bytes:
        """Returns the body in gzip, made once if it is at most half as large: an answer may be given many times."""
        if self._gzipped is not None:
            return self._gzipped
        found = gzipped(self.body)
        if 2 * len(found) <= len(self.body):
            self._gzipped = found
        return found


class Route(Protocol):
    """What the router leads to."""

    name: str
    # Whether it tells an orchestrator how the process is: such a request is never refused for load.
    is_probe: bool

    async def serve(self, request: Request) -> Response:
        """Answers; raises RoostError or Refusal."""
