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

from gateway_http.connections import Connections, Stage
from gateway_http.health_routes import PROBES
from gateway_http.request import BODY_TIMEOUT_S

# Request line and headers together; a token has 350 bytes, a page of 100 ids 2 kB.
MAX_HEADER_BYTES = 16 * 1024
MAX_HEADERS = 100
# From the connection, or the first byte of a later request, to the empty line.
HEADER_TIMEOUT_S = 10.0
# Past the application's own time-out for the body: by then it has answered, and what still trickles in is of no use.
MESSAGE_TIMEOUT_S = BODY_TIMEOUT_S + 1.0
# A client that takes less than LEAST_TAKEN bytes of its answer in so long is cut off: a close would wait for it.
WRITE_TIMEOUT_S = 30.0
LEAST_TAKEN = 16 * 1024
# Requests that may wait behind the one at work.
MAX_PIPELINED = 64
# Beyond the bounds on connections a request's headers must be here by then: a probe's are at once.
TURNED_AWAY_S = 1.0
# A connection that gives way to another one gets this long to take its refusal.
LAST_WORDS_S = 1.0

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

    def __init__(self, connections: Connections, **options: Any) -> None:
        super().__init__(**options)
        self._all = connections
        self._turned_away = False
        self._stage = Stage.IDLE
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
        self._untaken = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Takes the connection, or turns it away."""
        super().connection_made(transport)  # type: ignore[arg-type]
        self._turned_away = not self._all.admit(self, self.client[0] if self.client else "")
        self._arm(TURNED_AWAY_S if self._turned_away else HEADER_TIMEOUT_S)

    def connection_lost(self, exc: Exception | None) -> None:
        """Lets go of the timers and of its place."""
        self._all.leave(self)
        self._disarm()
        self._unstick()
        super().connection_lost(exc)

    def give_way(self, stage: Stage) -> None:
        """Closes for the sake of a new connection; what is being sent is refused first."""
        if self.transport.get_write_buffer_size():
            # Its client takes nothing: a refusal would not reach it, and keep the descriptor.
            self.transport.abort()
            return
        if stage is Stage.IDLE:
            self._ended = True
            self._disarm()
            self.transport.close()
        else:
            self._refuse(TOO_MANY)
        self._unstick()
        self._stuck = self.loop.call_later(LAST_WORDS_S, self.transport.abort)

    def pause_writing(self) -> None:
        """The client reads more slowly than it is answered."""
        super().pause_writing()
        self._watch_taking()

    def resume_writing(self) -> None:
        """It has caught up."""
        if not self.transport.is_closing():
            self._unstick()
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        """Closes a connection that has been idle for too long."""
        super().timeout_keep_alive_handler()
        self._watch_taking()

    def shutdown(self) -> None:
        """Closes, or ends after the answer at work."""
        super().shutdown()
        self._watch_taking()

    def _watch_taking(self) -> None:
        """Cuts the client off if it does not take what is written: a transport that is closing waits for it without end."""
        if self._stuck is None:
            self._untaken = self.transport.get_write_buffer_size()
            self._stuck = self.loop.call_later(WRITE_TIMEOUT_S, self._check_taking)

    def _check_taking(self) -> None:
        self._stuck = None
        left = self.transport.get_write_buffer_size()
        if left and left > self._untaken - LEAST_TAKEN:
            self.transport.abort()
        elif left:
            self._watch_taking()

    def _unstick(self) -> None:
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None

    def data_received(self, data: bytes) -> None:
        """Feeds the parser, and watches a message that is not complete yet."""
        # Bytes may still be on their way when the connection has ended for us.
        if self._ended or self.transport.is_closing():
            return
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
        self._restage()

    def _keep_watch(self, received: int) -> None:
        if self._state is _State.AWAITED:
            # Blank lines before a request begin none: the time for it goes on.
            if self._is_at_work():
                self._unset_keepalive_if_required()
                self._disarm()
            return
        self._unset_keepalive_if_required()
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
        if self._turned_away and self.url not in PROBES:
            self._fault = TOO_MANY
            raise _StopParsingError
        super().on_headers_complete()
        self._state = _State.BODY
        if self._turned_away or self._all.draining:
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        """The last byte of a request."""
        super().on_message_complete()
        self._state = _State.AWAITED

    def on_response_complete(self) -> None:
        """The whole answer is written, if not yet taken."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._watch_taking()
        self._restage()

    def _is_at_work(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _restage(self) -> None:
        """Tells what this connection does, by which it may have to give way."""
        if self._state is _State.AWAITED:
            stage = Stage.WORKING if self._is_at_work() else Stage.IDLE
        elif self._is_at_work() and (self._state is _State.HEADERS or self.pipeline or self.cycle.response_started):
            stage = Stage.WORKING
        else:
            stage = Stage.SENDING
        if stage is not self._stage:
            self._stage = stage
            self._all.move(self, stage)

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
        self._watch_taking()

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
            self._watch_taking()
        else:
            self._arm(MESSAGE_TIMEOUT_S)
