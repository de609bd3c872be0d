"""Log lines: JSON where a machine reads them, colours on a terminal. No bodies, no tokens, no texts of users."""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

from services.common.config import Settings
from services.common.context import current_call


def _add_call(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    call = current_call.get()
    if call.request_id:
        event.setdefault("request_id", call.request_id)
    return event


def configure(settings: Settings) -> None:
    """Sends log lines to stderr, in the format and from the level that the settings name."""
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
            _add_call,
            *exceptions,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(stream=sys.stderr, level=max(level, logging.WARNING), format="%(name)s: %(message)s")
