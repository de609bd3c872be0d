"""Processes that outlive the shell they were started from, found again by number and time of birth."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

# Cassandra flushes and OpenSearch closes its shards on SIGTERM: seconds. Who takes longer is killed; all of them recover from that.
STOP_WITHIN_S = 30.0
POLL_S = 0.05
# Cassandra and Kafka keep a file open for each segment, index and connection.
DESCRIPTORS = 100_000


@dataclass(frozen=True, slots=True)
class Record:
    """A process that was started: `birth` tells it from another that got its number later."""

    pid: int
    birth: str
    argv: list[str]

    def alive(self) -> bool:
        """Whether this very process runs."""
        return birth(self.pid) == self.birth


def birth(pid: int) -> str | None:
    """When the process was born, as the system tells it; None where there is none, or only its remains."""
    try:
        # The command's name stands in parentheses and may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        pass
    else:
        return None if fields[0] in "ZX" else f"{_boot()} {fields[19]}"
    if Path("/proc/self").exists():
        return None
    found = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)  # noqa: S603, S607 – systems without /proc.
    return found.stdout.strip() or None


def start(argv: Sequence[str], *, cwd: Path, log: Path, user: tuple[int, int] | None, record: Path) -> Record:
    """Starts a process in a session of its own, as `user` (uid and gid) where one is given; what it prints goes to `log`, begun anew."""
    log.parent.mkdir(parents=True, exist_ok=True)
    record.parent.mkdir(parents=True, exist_ok=True)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    soft = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 – our own recipes.
            list(argv),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            user=user[0] if user else None,
            group=user[1] if user else None,
            extra_groups=[] if user else None,
        )
    # It is meant to go on without us: nobody waits for it, and nobody is to be warned of that.
    process.returncode = 0
    made = Record(process.pid, birth(process.pid) or "", list(argv))
    draft = record.with_suffix(".new")
    draft.write_text(json.dumps(asdict(made)))
    draft.replace(record)
    return made


def recorded(record: Path) -> Record | None:
    """What was started, alive or not."""
    try:
        return Record(**json.loads(record.read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def stop(found: Record, *, kill: bool = False) -> bool:
    """Ends the process and waits until it is gone; False where it was gone already. Never another that has its number now."""
    if not found.alive():
        return False
    _signal(found, signal.SIGKILL if kill else signal.SIGTERM)
    until = time.monotonic() + STOP_WITHIN_S
    while found.alive():
        if time.monotonic() > until:
            _signal(found, signal.SIGKILL)
        _reap(found.pid)
        time.sleep(POLL_S)
    return True


def _signal(found: Record, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(found.pid, number)


def _reap(pid: int) -> None:
    """Takes the remains of a child of this very process away; another's are its parent's."""
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def _boot() -> str:
    """Which run of the machine this is: times of birth count from its start."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
