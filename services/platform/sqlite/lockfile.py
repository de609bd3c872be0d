"""An exclusive lock on a file, held until `close` is called or the process dies."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from services.platform.files import FILE_MODE, naming
from services.platform.rpc import errors
from services.platform.rpc.reasons import Reason


class LockFile:
    """Locks the file `path` for one owner and creates the file if it does not exist. `fd` is the descriptor of the open
    file, -1 after `close`.

    Raises FAILED_PRECONDITION if another owner holds the lock, or if this process may not write the file. The file is
    never removed: otherwise two owners could each lock a different file with the same name.
    """

    def __init__(self, path: Path) -> None:
        with naming(path):
            self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = _holder(self.fd)
            self.close()
            message = (
                f"{path.parent} is in use by another roost process{f' (pid {pid})' if pid else ''}: stop it, or choose "
                "another directory with --data"
            )
            raise errors.failed_precondition(message, reason=Reason.DATA_IN_USE) from None

    def close(self) -> None:
        """Releases the lock. A second call has no effect."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


def _holder(fd: int) -> int:
    """Returns the id of the process that locks the file; 0 if it is not known, as on systems without /proc/locks or if
    the process is outside this container."""
    status = os.fstat(fd)
    file = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    try:
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return 0
    # A line is: number, kind of lock, mode, access, process id, file, and range. The line of a process that waits for
    # the lock has `->` after the number, so its fields do not match here.
    held = (fields for line in lines if (fields := line.split())[1:2] == ["FLOCK"])
    return next((max(0, int(fields[4])) for fields in held if fields[5] == file), 0)
