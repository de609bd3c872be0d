"""HTTP/1.1 on one connection: uvicorn's httptools protocol, with the bounds and refusals it lacks.

The parser (llhttp) refuses what could be understood in two ways: two lengths, length beside chunks, bare line feeds, controls in
values. Here come bounds on headers and on pipelined requests, time-outs for slow senders, and answers in problem+json.
"""

from __future__ import annotations

import asyncio
import enum
import re
from http import HTTPStatus
from typing import Any

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway_http.request import BODY_TIMEOUT_S

# Request line and headers together; a token has 350 bytes, a page of 100 ids 2 kB.
MAX_HEADER_BYTES = 16 * 1024
MAX_HEADERS = 100
# From the connection, or the first byte of a later request, to the empty line.
HEADER_TIMEOUT_S = 10.0
# Past the application's own time-out for the body: by then it has answered, and what still trickles in is of no use.
MESSAGE_TIMEOUT_S = BODY_TIMEOUT_S + 1.0
# A client that takes nothing of its answer for so long is cut off: a close would wait for it.
WRITE_TIMEOUT_S = 30.0
# Requests that may wait behind the one at work.
MAX_PIPELINED = 64
# Sockets open at once; each costs about 20 kB idle.
MAX_CONNECTIONS = 10_000

_UNKNOWN_METHOD = re.compile(rb"[A-Z-]{1,32} /")
_METHODS = b"allow: DELETE, GET, HEAD, PATCH, POST, PUT\r\n"


def _refusal(status: int, code: str, detail: str, extra: bytes = b"") -> bytes:
    title = HTTPStatus(status).phrase
    body = orjson.dumps(
        {
            "type": f"urn:roost:problem:{code}",
            "title": title,
            "status": status,
            "detail": detail,
            "instance": "",
            "code": code,
            "trace_id": "",
            "violations": [],
        }
    )
    head = f"HTTP/1.1 {status} {title}\r\ncontent-type: application/problem+json\r\ncontent-length: {len(body)}\r\n"
    return head.encode() + extra + b"cache-control: no-store\r\nconnection: close\r\n\r\n" + body


BAD_REQUEST = _refusal(400, "malformed_request", "the request is not well-formed HTTP/1.1")
BAD_METHOD = _refusal(405, "method_not_allowed", "no route takes this method", _METHODS)
TOO_SLOW = _refusal(408, "request_timeout", "the headers came too slowly")
HEADERS_TOO_LARGE = _refusal(
    431, "headers_too_large", f"headers may have {MAX_HEADER_BYTES} bytes and {MAX_HEADERS} fields"
)
TOO_MANY = _refusal(503, "overloaded", "too many connections are open", b"retry-after: 1\r\n")


class _StopParsingError(Exception):
    """Raised inside the parser's callbacks to stop it."""


class _State(enum.Enum):
    AWAITED = enum.auto()
    HEADERS = enum.auto()
    BODY = enum.auto()


class BoundedProtocol(HttpToolsProtocol):
    """One connection; `_state` says which part of a message comes next."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._state = _State.AWAITED
        # What is wrong with the message at hand, should the parser stop.
        self._fault = BAD_REQUEST
        self._begun_now = False
        self._header_bytes = 0
        # Bytes of headers that the parser has not shown yet: it shows a field only when it is whole.
        self._unshown = 0
        self._ended = False
        self._watch: asyncio.TimerHandle | None = None
        self._watched = _State.AWAITED
        self._stuck: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Takes the connection, or refuses it above MAX_CONNECTIONS."""
        super().connection_made(transport)  # type: ignore[arg-type]
        if len(self.connections) > MAX_CONNECTIONS:
            self._refuse(TOO_MANY)
        else:
            self._arm(HEADER_TIMEOUT_S)

    def connection_lost(self, exc: Exception | None) -> None:
        """Lets go of the timers."""
        self._disarm()
        self._unstick()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client reads more slowly than it is answered."""
        super().pause_writing()
        if self._stuck is None:
            self._stuck = self.loop.call_later(WRITE_TIMEOUT_S, self.transport.abort)

    def resume_writing(self) -> None:
        """It has caught up."""
        self._unstick()
        super().resume_writing()

    def _unstick(self) -> None:
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None

    def data_received(self, data: bytes) -> None:
        """Feeds the parser, and watches a message that is not complete yet."""
        # Bytes may still be on their way when the connection has ended for us.
        if self._ended or self.transport.is_closing():
            return
        self._unset_keepalive_if_required()
        self._begun_now = False
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # We speak nothing else: the request is answered as if no upgrade had been asked for, and is the last one.
            self._end_after_answer()
        except httptools.HttpParserInvalidMethodError:
            self._refuse(BAD_METHOD if _UNKNOWN_METHOD.match(data) else BAD_REQUEST)
        except httptools.HttpParserError:
            self._refuse(self._fault)
        else:
            self._keep_watch(len(data))

    def _keep_watch(self, received: int) -> None:
        if self._state is _State.AWAITED:
            self._disarm()
            return
        if self._state is _State.HEADERS and not self._begun_now:
            self._unshown += received
            if self._unshown > MAX_HEADER_BYTES:
                self._refuse(HEADERS_TOO_LARGE)
                return
        if self._watch is None or self._watched is not self._state:
            self._arm(HEADER_TIMEOUT_S if self._state is _State.HEADERS else MESSAGE_TIMEOUT_S)

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        self._state = _State.HEADERS
        self._begun_now = True
        self._header_bytes = self._unshown = 0

    def on_url(self, url: bytes) -> None:
        """A piece of the target."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The empty line: the request goes to the application."""
        if self.parser.get_http_version() not in ("1.1", "1.0") or len(self.pipeline) >= MAX_PIPELINED:
            raise _StopParsingError
        super().on_headers_complete()
        self._state = _State.BODY

    def on_message_complete(self) -> None:
        """The last byte of a request."""
        super().on_message_complete()
        self._state = _State.AWAITED

    def _count(self, received: int) -> None:
        self._header_bytes += received
        if self._header_bytes > MAX_HEADER_BYTES or len(self.headers) >= MAX_HEADERS:
            self._fault = HEADERS_TOO_LARGE
            raise _StopParsingError

    def _refuse(self, answer: bytes) -> None:
        """Answers and closes; an earlier request that is still at work gets its own answer first."""
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            if self._state is not _State.BODY:
                self._end_after_answer()
                return
            # The request at work is the broken one: its application learns that the rest will not come.
            cycle.disconnected = True
            cycle.message_event.set()
            if cycle.response_started or self.pipeline:
                answer = b""
        self._ended = True
        self._disarm()
        if answer:
            self.transport.write(answer)
        self.transport.close()

    def _end_after_answer(self) -> None:
        self._ended = True
        self._disarm()
        if self.cycle is not None:
            self.cycle.keep_alive = False

    def _arm(self, seconds: float) -> None:
        self._disarm()
        self._watched = self._state
        self._watch = self.loop.call_later(seconds, self._too_slow)

    def _disarm(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    def _too_slow(self) -> None:
        self._watch = None
        if self._state is _State.HEADERS:
            self._refuse(TOO_SLOW)
        elif self.cycle is None or self.cycle.response_complete:
            # Nothing was asked, or what still trickles in was answered long ago.
            self._ended = True
            self.transport.close()
        else:
            self._arm(MESSAGE_TIMEOUT_S)
