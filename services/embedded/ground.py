"""The ground of the embedded family: ids by a file lease, a log of their own, secrets in the data directory."""

from __future__ import annotations

import os
import secrets
from contextlib import AsyncExitStack
from pathlib import Path

from services.common import errors
from services.common.config import Settings, private_dir
from services.common.cursor import KEY_BYTES
from services.common.kit import Ground
from services.embedded.lease import FileLease
from services.embedded.log import EmbeddedLog


async def open_embedded(settings: Settings, stack: AsyncExitStack) -> Ground:
    """The ground in the data directory, which is made where there is none. FAILED_PRECONDITION where another process has it."""
    if settings.family != "embedded":
        raise errors.failed_precondition(
            f"this process was started for the embedded family, and family is {settings.family}"
        )
    data_dir = private_dir(settings.data_dir)
    lease = FileLease(data_dir / "worker.lease")
    stack.callback(lease.close)
    log = await EmbeddedLog.open(data_dir / "log.db")
    stack.push_async_callback(log.close)
    return Ground(log, lease.snowflake(), _kept_secret(data_dir / "cursor.key"))


def _kept_secret(path: Path) -> bytes:
    """A random secret that outlives restarts, readable by its owner alone."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_bytes()
    with os.fdopen(descriptor, "wb") as file:
        file.write(secrets.token_bytes(KEY_BYTES))
    return path.read_bytes()
