"""Opens the embedded backend in the data directory: a worker id leased by a file, the event log, and the cursor key."""

from __future__ import annotations

import secrets
import time
from contextlib import AsyncExitStack

from services.platform.config import Settings
from services.platform.files import load_or_create_key, open_data_dir
from services.platform.pagination.cursors import KEY_BYTES
from services.platform.rpc import errors
from services.platform.rpc.rate_limit_counts import MemoryCounts
from services.platform.service import Backends
from services.platform.sqlite.event_log import EmbeddedLog
from services.platform.sqlite.worker_id import FileLease
from services.platform.versions import MemoryVersions

_CURSORS_LOST = "clients that are reading a list page by page must start again at its first page"


async def open_embedded(settings: Settings, stack: AsyncExitStack) -> Backends:
    """Opens the backend; creates the data directory if missing. Raises FAILED_PRECONDITION if another process uses the
    directory."""
    if settings.backend != "embedded":
        raise errors.failed_precondition(
            f"this process was started for the embedded backend, but the setting `backend` is {settings.backend}"
        )
    data_dir = open_data_dir(settings.data_dir)
    lease = FileLease(data_dir / "worker.lease")
    stack.callback(lease.close)
    cursor_key = load_or_create_key(data_dir / "cursor.key", lambda: secrets.token_bytes(KEY_BYTES), _CURSORS_LOST)
    log = await EmbeddedLog.open(data_dir / "log.db")
    stack.push_async_callback(log.close)
    ids = lease.snowflake()
    return Backends(log, ids, cursor_key, ids.fault, MemoryVersions(), MemoryCounts(time.monotonic))
