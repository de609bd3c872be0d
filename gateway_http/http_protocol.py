"""HTTP/1.1 on one connection: uvicorn's httptools protocol, with additional bounds and error responses.

The parser (llhttp) rejects ambiguous requests: two values of Content-Length, Content-Length together with
Transfer-Encoding, line feeds without carriage returns, and control characters in header values. This module adds bounds
on headers and on pipelined requests, timeouts for slow clients, and error responses in problem+json.
"""

from __future__ import annotations

import asyncio
import enum
import re
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway_http import whole_responses
from gateway_http.connections import Connections, Stage
from gateway_http.health_routes import PROBE_PATHS
from gateway_http.request import BODY_TIMEOUT_S

# Maximum size in bytes of the request line and all headers of a request; a larger request is rejected with status 431.
# An access token has 350 bytes, a query of 100 ids 2 kB.
MAX_HEADER_BYTES = 16 * 1024
# Maximum number of headers of a request; a request with more is rejected with status 431. Browsers send about 20.
MAX_HEADERS = 100
# Maximum number of seconds until the headers of a request are complete, else the request is rejected with status 408.
# The time begins with the connection, for a later request with its first byte.
HEADER_TIMEOUT_S = 10.0
# Seconds that a body may take, from the end of the headers. After this time the connection is closed if the response
# was sent; otherwise the time starts again. It is longer than the application's timeout for the body, so that the
# application has sent its error response (408) by then.
MESSAGE_TIMEOUT_S = BODY_TIMEOUT_S + 1.0
# A client that reads less than MIN_WRITE_PROGRESS_BYTES bytes of a response in WRITE_TIMEOUT_S seconds is disconnected
# by aborting the transport. A close without abort would wait until the client has read the rest, possibly forever.
WRITE_TIMEOUT_S = 30.0
MIN_WRITE_PROGRESS_BYTES = 16 * 1024
# Maximum number of pipelined requests that wait for the response to the current one; if there are more, the connection
# is closed.
MAX_PIPELINED = 64
# Maximum number of seconds until the headers of a request are complete on a connection that a bound rejected. It is
# short, because such a connection can only request a probe.
REJECTED_HEADER_TIMEOUT_S = 1.0
# Seconds that an evicted connection has to receive its error response before it is aborted.
EVICTION_GRACE_S = 1.0

_UNKNOWN_METHOD = re.compile(rb"[A-Z-]{1,32} /")
_METHODS = b"allow: DELETE, GET, HEAD, PATCH, POST, PUT\r\n"


def _error_response(status: int, code: str, detail: str, extra: bytes = b"") -> bytes:
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


BAD_REQUEST = _error_response(400, "malformed_request", "the request is not well-formed HTTP/1.1")
BAD_METHOD = _error_response(405, "method_not_allowed", "no route supports this method", _METHODS)
TOO_SLOW = _error_response(408, "request_timeout", f"the headers did not arrive within {HEADER_TIMEOUT_S:.0f} s")
HEADERS_TOO_LARGE = _error_response(
    431,
    "headers_too_large",
    f"the headers are too large: at most {MAX_HEADER_BYTES} bytes and {MAX_HEADERS} fields are allowed",
)
OVERLOADED = _error_response(503, "overloaded", "too many connections are open: retry later", b"retry-after: 1\r\n")


class _StopParsingError(Exception):
    """Stops the parser, if a callback of the parser raises it."""


class _State(enum.Enum):
    BETWEEN_MESSAGES = enum.auto()
    HEADERS = enum.auto()
    BODY = enum.auto()


class _Timer:
    """Calls `on_timeout` once, after the number of seconds given to `start`. `stop` cancels the call."""

    def __init__(self, loop: asyncio.AbstractEventLoop, on_timeout: Callable[[], None]) -> None:
        self._loop = loop
        self._on_timeout = on_timeout
        self._handle: asyncio.TimerHandle | None = None

    @property
    def running(self) -> bool:
        return self._handle is not None

    def start(self, seconds: float) -> None:
        """Starts the timer. If it runs already, it starts from the beginning."""
        self.stop()
        self._handle = self._loop.call_later(seconds, self._expire)

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _expire(self) -> None:
        self._handle = None
        self._on_timeout()


class _WriteTimeout:
    """Aborts the transport if the client reads less than MIN_WRITE_PROGRESS_BYTES bytes of a response in
    WRITE_TIMEOUT_S seconds.

    It must also run after `transport.close()`, which waits until the client has read all unsent bytes.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._progress = _Timer(loop, self._check_progress)
        self._abort = _Timer(loop, transport.abort)
        # Number of unsent bytes at the last `start`.
        self._unsent_bytes = 0

    def start(self) -> None:
        """Starts the timeout. Does nothing if the timeout runs already, or after a call of `abort_after`."""
        if not (self._progress.running or self._abort.running):
            self._unsent_bytes = self._transport.get_write_buffer_size()
            self._progress.start(WRITE_TIMEOUT_S)

    def stop(self) -> None:
        self._progress.stop()
        self._abort.stop()

    def abort_after(self, seconds: float) -> None:
        """Aborts the transport after `seconds`, even if the client reads."""
        self._progress.stop()
        self._abort.start(seconds)

    def _check_progress(self) -> None:
        unsent = self._transport.get_write_buffer_size()
        if unsent and unsent > self._unsent_bytes - MIN_WRITE_PROGRESS_BYTES:
            self._transport.abort()
        elif unsent:
            self.start()


class _HeaderBytes:
    """Counts the bytes of the request line and the headers of the current request, to reject it above
    MAX_HEADER_BYTES."""

    def __init__(self) -> None:
        self._began_in_chunk = False
        self._parsed = 0
        # Bytes of the chunks received since the request began. They include a header that is incomplete, which the
        # parser does not report.
        self._unparsed = 0

    def begin_chunk(self) -> None:
        self._began_in_chunk = False

    def begin_message(self) -> None:
        self._began_in_chunk = True
        self._parsed = self._unparsed = 0

    def exceeds_with_field(self, size: int) -> bool:
        """Adds `size` bytes of a header, or of the request target, that the parser reported. Returns whether the sum
        exceeds the bound."""
        self._parsed += size
        return self._parsed > MAX_HEADER_BYTES

    def exceeds_with_chunk(self, size: int) -> bool:
        """Adds a chunk of `size` bytes after which the headers are still incomplete. Returns whether the sum exceeds
        the bound.

        Does not count the chunk in which the request began, because it may contain the end of an earlier request.
        """
        if not self._began_in_chunk:
            self._unparsed += size
        return self._unparsed > MAX_HEADER_BYTES


class BoundedProtocol(HttpToolsProtocol):
    """One HTTP/1.1 connection. `_state` is the part of a request that the parser expects next."""

    def __init__(self, connections: Connections, **options: Any) -> None:
        super().__init__(**options)
        self._connections = connections
        self._rejected = False
        self._stage = Stage.IDLE
        self._state = _State.BETWEEN_MESSAGES
        # The response that is sent if the parser stops while it parses the current request.
        self._parse_error = BAD_REQUEST
        self._header_bytes = _HeaderBytes()
        self._is_closed = False
        self._read_timer = _Timer(self.loop, self._on_read_timeout)
        self._timed_state = _State.BETWEEN_MESSAGES

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Admits or rejects the connection, and starts its header timeout."""
        super().connection_made(transport)  # type: ignore[arg-type]
        self._write_timeout = _WriteTimeout(self.loop, self.transport)
        self._rejected = not self._connections.admit(self, self.client[0] if self.client else "")
        self._start_read_timer(REJECTED_HEADER_TIMEOUT_S if self._rejected else HEADER_TIMEOUT_S)

    def connection_lost(self, exc: Exception | None) -> None:
        """Removes this connection from the open ones and stops its timers."""
        self._connections.remove(self)
        self._read_timer.stop()
        self._write_timeout.stop()
        super().connection_lost(exc)

    def evict(self, stage: Stage) -> None:
        """Closes this connection, so that a new one can be admitted. If `stage` is not IDLE, sends status 503 first."""
        if self.transport.get_write_buffer_size():
            # The client does not read its response. Waiting for the client would keep the file descriptor open.
            self.transport.abort()
            return
        if stage is Stage.IDLE:
            self._is_closed = True
            self._read_timer.stop()
            self.transport.close()
        else:
            self._reject(OVERLOADED)
        self._write_timeout.abort_after(EVICTION_GRACE_S)

    def pause_writing(self) -> None:
        """Starts the write timeout, because the client reads more slowly than the response is written."""
        super().pause_writing()
        self._write_timeout.start()

    def resume_writing(self) -> None:
        """Stops the write timeout, because the client has read most of what was written."""
        if not self.transport.is_closing():
            self._write_timeout.stop()
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        """Closes the connection, because it was idle for `server.KEEP_ALIVE_S` seconds."""
        super().timeout_keep_alive_handler()
        self._write_timeout.start()

    def shutdown(self) -> None:
        """Closes the connection, after the response if a request is being processed."""
        super().shutdown()
        self._write_timeout.start()

    def data_received(self, data: bytes) -> None:
        """Passes received bytes to the parser. Starts a timeout for an incomplete request; rejects an invalid one."""
        # Bytes may still arrive after the gateway has closed its side of the connection.
        if self._is_closed or self.transport.is_closing():
            return
        self._header_bytes.begin_chunk()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # Protocol upgrades are not supported: the request is served without upgrade, then the connection is closed.
            self._end_after_response()
        except httptools.HttpParserInvalidMethodError:
            self._reject(BAD_METHOD if _UNKNOWN_METHOD.match(data) else BAD_REQUEST)
        except httptools.HttpParserError:
            self._reject(self._parse_error)
        else:
            self._check_incomplete(len(data))
        self._update_stage()

    def _check_incomplete(self, received: int) -> None:
        if self._state is _State.BETWEEN_MESSAGES:
            # Blank lines before a request do not start the request, so the header timeout goes on.
            if self._is_responding():
                self._unset_keepalive_if_required()
                self._read_timer.stop()
            return
        self._unset_keepalive_if_required()
        if self._state is _State.HEADERS and self._header_bytes.exceeds_with_chunk(received):
            self._reject(HEADERS_TOO_LARGE)
            return
        if not self._read_timer.running or self._timed_state is not self._state:
            self._start_read_timer(HEADER_TIMEOUT_S if self._state is _State.HEADERS else MESSAGE_TIMEOUT_S)

    def on_message_begin(self) -> None:
        """Starts to count header bytes: the parser has found the first byte of a request."""
        super().on_message_begin()
        self._state = _State.HEADERS
        self._header_bytes.begin_message()

    def on_url(self, url: bytes) -> None:
        """Adds a part of the request target. Stops the parser if the request line and headers are too large."""
        self._count_header_bytes(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Adds a header to the request. Stops the parser if the headers are too large or too many."""
        self._count_header_bytes(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Passes the request to the application, unless a bound or the HTTP version forbids it."""
        if self.parser.get_http_version() not in ("1.1", "1.0") or len(self.pipeline) >= MAX_PIPELINED:
            raise _StopParsingError
        if self._rejected and self.url not in PROBE_PATHS:
            self._parse_error = OVERLOADED
            raise _StopParsingError
        super().on_headers_complete()
        whole_responses.offer(self.cycle)
        self._state = _State.BODY
        if self._rejected or self._connections.draining:
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        """Notifies the application that the body is complete."""
        super().on_message_complete()
        self._state = _State.BETWEEN_MESSAGES

    def on_response_complete(self) -> None:
        """Starts the write timeout if the connection closes after this response, because the client has perhaps not
        read the whole response yet."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._write_timeout.start()
        self._update_stage()

    def _is_responding(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _update_stage(self) -> None:
        """Reports a changed stage to `Connections`, which evicts connections by their stage."""
        if self._state is _State.BETWEEN_MESSAGES:
            stage = Stage.WORKING if self._is_responding() else Stage.IDLE
        elif self._is_responding() and (self._state is _State.HEADERS or self.pipeline or self.cycle.response_started):
            stage = Stage.WORKING
        else:
            stage = Stage.SENDING
        if stage is not self._stage:
            self._stage = stage
            self._connections.set_stage(self, stage)

    def _count_header_bytes(self, received: int) -> None:
        if self._header_bytes.exceeds_with_field(received) or len(self.headers) >= MAX_HEADERS:
            self._parse_error = HEADERS_TOO_LARGE
            raise _StopParsingError

    def _reject(self, response: bytes) -> None:
        """Rejects the request that is being received: sends `response`, or if an earlier request is still being
        processed, only the response to that one; then closes."""
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            if self._state is not _State.BODY:
                self._end_after_response()
                return
            # The application is already processing the rejected request: the rest of the body will not arrive.
            cycle.disconnected = True
            cycle.message_event.set()
            if cycle.response_started or self.pipeline:
                response = b""
        self._is_closed = True
        self._read_timer.stop()
        if response:
            self.transport.write(response)
        self.transport.close()
        self._write_timeout.start()

    def _end_after_response(self) -> None:
        self._is_closed = True
        self._read_timer.stop()
        if self.cycle is not None:
            self.cycle.keep_alive = False

    def _start_read_timer(self, seconds: float) -> None:
        self._timed_state = self._state
        self._read_timer.start(seconds)

    def _on_read_timeout(self) -> None:
        if self._state is _State.HEADERS:
            self._reject(TOO_SLOW)
        elif self.cycle is None or self.cycle.response_complete:
            # No response is due: no request has begun, or the response was sent before the whole body arrived.
            self._is_closed = True
            self.transport.close()
            self._write_timeout.start()
        else:
            self._start_read_timer(MESSAGE_TIMEOUT_S)
