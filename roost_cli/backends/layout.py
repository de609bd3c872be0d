"""Defines the directories and ports of a set of servers, progress output, and a lock between processes."""

from __future__ import annotations

import fcntl
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path


class BackendError(Exception):
    """An error that the user has to fix; the message says how."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The directories, ports and JDK of one set of servers.

    `cache` holds downloads; `data` holds the servers' data, logs and process records. `shift` is added to every port,
    so that several sets can run side by side. `java_home` is the JDK to try first, or None. With `durable`, Cassandra
    syncs a write to disk before it acknowledges it, as in production; without it, a power failure can lose writes, but
    the crash of a server cannot.
    """

    cache: Path
    data: Path
    shift: int = 0
    java_home: Path | None = None
    durable: bool = False
    began: float = field(default_factory=time.monotonic)

    @property
    def logs(self) -> Path:
        return self.data / "logs"

    @property
    def records(self) -> Path:
        return self.data / "run"

    def of(self, name: str) -> Path:
        """Returns the data directory of one server."""
        return self.data / name

    def port(self, usual: int) -> int:
        return usual + self.shift

    def say(self, name: str, words: str) -> None:
        """Prints a line of progress to stderr, with the seconds since the command began. Thread-safe."""
        with _speaking:
            sys.stderr.write(f"{time.monotonic() - self.began:5.1f} s  {name:<12} {words}\n")
            sys.stderr.flush()


_speaking = threading.Lock()


@dataclass(frozen=True, slots=True)
class ServerCommand:
    """A server's command line and working directory, and the user (uid, gid) that runs it; None is the current user."""

    argv: list[str]
    cwd: Path
    user: tuple[int, int] | None = None


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock on the file during the block; waits until other processes release it.

    The system releases the lock if the process ends.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
