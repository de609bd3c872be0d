"""Starts and stops background processes that go on after their shell has ended.

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

# Seconds between SIGTERM and SIGKILL. On SIGTERM, Cassandra flushes its memtables and OpenSearch closes its shards,
# which takes seconds. All servers recover from SIGKILL.
STOP_WITHIN_S = 30.0
POLL_S = 0.05
# The limit of open file descriptors of a started process. Cassandra and Kafka use a descriptor for each segment, index
# and connection.
DESCRIPTORS = 100_000


@dataclass(frozen=True, slots=True)
class Record:
    """A started process. `birth` is its start time, which distinguishes it from a later process with the same id."""

    pid: int
    birth: str
    argv: list[str]

    def alive(self) -> bool:
        """Returns whether this process still runs. A later process with the same id does not count."""
        return birth(self.pid) == self.birth


def start(argv: Sequence[str], *, cwd: Path, log: Path, user: tuple[int, int] | None, record: Path) -> Record:
    """Starts a process in a session of its own, writes its record to the file `record`, and returns the record.

    `user` is the (uid, gid) that runs the process; None is the user of this process. The output replaces the content of
    the file `log`.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    record.parent.mkdir(parents=True, exist_ok=True)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    soft = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 – only commands of `server_specs`.
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
    # Popen warns if its object is deleted while the process runs. A return code makes it assume that the process has
    # ended.
    process.returncode = 0
    made = Record(process.pid, birth(process.pid) or "", list(argv))
    draft = record.with_suffix(".new")
    draft.write_text(json.dumps(asdict(made)))
    draft.replace(record)
    return made


def recorded(record: Path) -> Record | None:
    """Returns the process that the record file names, which may have ended; None if the file is missing or invalid."""
    try:
        return Record(**json.loads(record.read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


class Stopped(StrEnum):
    """How a process ended: before `stop` was called, after SIGTERM, or after SIGKILL."""

    ENDED_BEFORE = "ended before"
    CLEANLY = "cleanly"
    KILLED = "killed"


def stop(found: Record, *, kill: bool = False) -> Stopped:
    """Stops the process, waits until it has ended, and returns how it ended.

    Sends SIGTERM, and SIGKILL if the process has not ended after STOP_WITHIN_S seconds. If `kill` is true, sends
    SIGKILL at once. Does not signal a later process with the same id.
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
    """Reaps the process if it is a zombie and a child of this process. Otherwise does nothing."""
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
