"""Reads the start time of a process. It distinguishes the process from a later process or thread with the same id."""

from __future__ import annotations

import subprocess
from pathlib import Path


def birth(pid: int) -> str | None:
    """Returns an opaque text with the start time of a process; None if the process does not exist or is a zombie."""
    try:
        # The second field is the command name in parentheses, which may contain any character. So the fields after it
        # are counted from the last parenthesis.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        pass
    else:
        # After SIGKILL, the first thread may be a zombie while other threads still keep ports and files open. Such a
        # process has not ended.
        ended = fields[0] in "ZX" and int(fields[17]) <= 1
        return None if ended else f"{_boot()} {fields[19]}"
    if Path("/proc/self").exists():
        return None
    found = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)  # noqa: S603, S607 – systems without /proc.
    return found.stdout.strip() or None


def _boot() -> str:
    """Returns the id of the current boot, "" if unknown. It is part of a start time, because Linux counts start times
    from the boot."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
