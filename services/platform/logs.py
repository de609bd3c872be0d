"""Log lines: JSON where a machine reads them, colours on a terminal. No bodies, no tokens, no texts of users."""

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

# Far more than drivers say of one failed start.
MAX_HELD = 1_000


def _add_call(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    call = current_call.get()
    if call.request_id:
        event.setdefault("request_id", call.request_id)
    if call.traceparent:
        event.setdefault("trace_id", trace_id(call.traceparent))
    return event


def trace_id(traceparent: str) -> str:
    """Returns the trace's id out of a W3C traceparent, `00-<trace id>-<span id>-<flags>`; the same that problem+json gives to clients."""
    return traceparent[3:35]


class _Held(logging.Handler):
    """Keeps records, the last MAX_HELD of them."""

    def __init__(self) -> None:
        super().__init__()
        self.records: deque[logging.LogRecord] = deque(maxlen=MAX_HELD)

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@contextmanager
def drivers_held() -> Iterator[None]:
    """Holds back what drivers log within it, and gives it out at its end. A RoostError drops it: that says in a sentence what a driver
    tells in tracebacks. Our own lines are not held."""
    root, held = logging.getLogger(), _Held()
    outlets, root.handlers = root.handlers, [held]
    try:
        yield
    except errors.RoostError:
        held.records.clear()
        raise
    finally:
        root.handlers = outlets
        for record in held.records:
            root.handle(record)


def configure(settings: Settings, service: str) -> None:
    """Sends log lines to stderr, in the format and from the level that the settings name; every line has `service`, what this process
    is called: one name, or several with commas between them."""

    def add_service(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event["service"] = service
        return event

    level = getattr(logging, settings.log_level.upper())
    console = settings.log_format == "console" or (settings.log_format == "auto" and sys.stderr.isatty())
    # Tracebacks without local variables: those hold tokens and texts.
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
    # Lines of drivers, in the same format as ours.
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
