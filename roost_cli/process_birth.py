"""The start time of a process, which distinguishes it from a later process or thread with the same id."""

from __future__ import annotations

import subprocess
from pathlib import Path


def birth(pid: int) -> str | None:
    """Returns the start time of a process as the system reports it; None if it does not exist or is a zombie."""
    try:
        # The command name is in parentheses and may contain any character.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        pass
    else:
        # After SIGKILL the first thread is a zombie while the others still hold the ports and files.
        ended = fields[0] in "ZX" and int(fields[17]) <= 1
        return None if ended else f"{_boot()} {fields[19]}"
    if Path("/proc/self").exists():
        return None
    found = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)  # noqa: S603, S607 – systems without /proc.
    return found.stdout.strip() or None


def _boot() -> str:
    """Returns an id of the current boot, because start times count from the boot."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
