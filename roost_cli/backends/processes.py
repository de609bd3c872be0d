"""Starts and stops background processes that outlive their shell.

A record file identifies each process by its process id and start time.
"""

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
from enum import StrEnum
from pathlib import Path

from roost_cli.process_birth import birth

# The time between SIGTERM and SIGKILL. On SIGTERM Cassandra flushes its memtables and OpenSearch closes its shards,
# which takes seconds. All servers recover from SIGKILL.
STOP_WITHIN_S = 30.0
POLL_S = 0.05
# Cassandra and Kafka hold a file descriptor per segment, index and connection.
DESCRIPTORS = 100_000


@dataclass(frozen=True, slots=True)
class Record:
    """A started process. `birth` is its start time, which distinguishes it from a later process with the same id."""

    pid: int
    birth: str
    argv: list[str]

    def alive(self) -> bool:
        """Returns True if this process still runs."""
        return birth(self.pid) == self.birth


def start(argv: Sequence[str], *, cwd: Path, log: Path, user: tuple[int, int] | None, record: Path) -> Record:
    """Starts a process in its own session, writes its record to the file `record`, and returns the record.

    `user` is the (uid, gid) that runs it, None for the current user. Its output replaces the content of `log`.
    """
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
    # Marks the process as finished, because Popen warns about processes that still run when the object is deleted.
    process.returncode = 0
    made = Record(process.pid, birth(process.pid) or "", list(argv))
    draft = record.with_suffix(".new")
    draft.write_text(json.dumps(asdict(made)))
    draft.replace(record)
    return made


def recorded(record: Path) -> Record | None:
    """Returns the process in the record file; it may have ended. Returns None if the file is missing or invalid."""
    try:
        return Record(**json.loads(record.read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


class Stopped(StrEnum):
    """How a process ended."""

    ENDED_BEFORE = "ended before"
    CLEANLY = "cleanly"
    KILLED = "killed"


def stop(found: Record, *, kill: bool = False) -> Stopped:
    """Stops the process and waits until it has ended; returns how it ended.

    Sends SIGTERM, and SIGKILL after STOP_WITHIN_S seconds; with `kill`, SIGKILL at once. Does not signal another
    process that reuses the id.
    """
    if not found.alive():
        return Stopped.ENDED_BEFORE
    _signal(found, signal.SIGKILL if kill else signal.SIGTERM)
    until = time.monotonic() + STOP_WITHIN_S
    while found.alive():
        if time.monotonic() > until:
            kill = True
            _signal(found, signal.SIGKILL)
        _reap(found.pid)
        time.sleep(POLL_S)
    return Stopped.KILLED if kill else Stopped.CLEANLY


def _signal(found: Record, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(found.pid, number)


def _reap(pid: int) -> None:
    """Reaps a zombie if it is a child of this process."""
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
