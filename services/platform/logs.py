"""Configures logging to stderr: JSON lines, or coloured text on a terminal.

Logs must not contain request bodies, tokens or texts of users.
"""

from __future__ import annotations

import logging
import sys
from collections import deque
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import structlog

from services.platform.config import Settings
from services.platform.rpc import errors
from services.platform.rpc.context import current_call

# Maximum number of buffered log records; beyond it the oldest are dropped. Drivers log far fewer during one failed
# start.
MAX_BUFFERED = 1_000


def _add_call(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    call = current_call.get()
    if call.request_id:
        event.setdefault("request_id", call.request_id)
    if call.traceparent:
        event.setdefault("trace_id", trace_id(call.traceparent))
    return event


def trace_id(traceparent: str) -> str:
    """Returns the trace id (32 hexadecimal digits) of a W3C traceparent, `00-<trace id>-<span id>-<flags>`.

    Error responses in problem+json contain the same id.
    """
    return traceparent[3:35]


class _BufferHandler(logging.Handler):
    """Buffers the latest MAX_BUFFERED log records and drops older ones."""

    def __init__(self) -> None:
        super().__init__()
        self.records: deque[logging.LogRecord] = deque(maxlen=MAX_BUFFERED)

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@contextmanager
def buffered_driver_logs() -> Iterator[None]:
    """Buffers the log records of drivers (the standard `logging` module) during the block and emits them at its end.

    If the block raises a RoostError, the records are dropped, because the error describes the failure in one sentence
    and drivers log tracebacks. Log lines of Roost (structlog) are not buffered.
    """
    root, buffer = logging.getLogger(), _BufferHandler()
    handlers, root.handlers = root.handlers, [buffer]
    try:
        yield
    except errors.RoostError:
        buffer.records.clear()
        raise
    finally:
        root.handlers = handlers
        for record in buffer.records:
            root.handle(record)


def configure(settings: Settings, service: str) -> None:
    """Configures structlog and `logging` to write to stderr, with the format and the level of the settings.

    Every line has the field `service`, the comma-separated names of the services of this process. Drivers log at
    WARNING or above.
    """

    def add_service(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event["service"] = service
        return event

    level = getattr(logging, settings.log_level.upper())
    console = settings.log_format == "console" or (settings.log_format == "auto" and sys.stderr.isatty())
    # No local variables in tracebacks, because they contain tokens and texts of users.
    traceback = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    exceptions = [] if console else [structlog.processors.ExceptionRenderer(traceback)]
    plain = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    renderer: Any = plain if console else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            add_service,
            _add_call,
            *exceptions,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    # Formats the log lines of drivers in the same way.
    handler = logging.StreamHandler(sys.stderr)
    shared = (structlog.processors.add_log_level, structlog.processors.TimeStamper(fmt="iso"), add_service, _add_call)
    logger_name = structlog.stdlib.add_logger_name
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *exceptions, renderer],
        )
    )
    logging.basicConfig(handlers=[handler], level=max(level, logging.WARNING))
