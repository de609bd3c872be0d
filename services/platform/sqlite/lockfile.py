"""An exclusive lock on a file, held until `close` is called or the process dies."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from services.platform.files import FILE_MODE, naming
from services.platform.rpc import errors
from services.platform.rpc.reasons import Reason


class LockFile:
    """Locks the file `path`, created if missing, for one owner; `fd` is open on it.

    Raises FAILED_PRECONDITION if another process holds the lock, or if this process may not write the file. The file is
    never removed: otherwise two owners could each lock a different file of that name.
    """

    def __init__(self, path: Path) -> None:
        with naming(path):
            self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            message = f"{path.parent} is in use (another owner holds {path.name}): stop that, or choose other data"
            raise errors.failed_precondition(message, reason=Reason.DATA_IN_USE) from None

    def close(self) -> None:
        """Releases the lock. A second call has no effect."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)
