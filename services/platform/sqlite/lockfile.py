"""An exclusive lock on a file, held until closed or until the process dies, however it dies."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from services.platform.files import FILE_MODE, naming
from services.platform.rpc import errors
from services.platform.rpc.reasons import Reason


class LockFile:
    """Holds `path` (made if absent) for one owner, with `fd` open on it; a second owner gets FAILED_PRECONDITION,
    as does one who may not use the file.

    The file is never removed: that would let two owners each lock a file of that name.
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
        """Lets the next owner in. A second call does nothing."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)
