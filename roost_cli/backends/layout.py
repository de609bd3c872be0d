"""Defines the directories and ports of a set of servers, prints progress, and locks files between processes."""

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

    `cache` is the directory for downloads, `data` that for the servers' data, logs and process records. `shift` is
    added to every port, so that several sets can run at the same time. `java_home` is the directory of a JDK, or None.
    If `durable` is true, Cassandra syncs each write to disk before it acknowledges the write, as in production.
    Otherwise a power failure can lose acknowledged writes; a crash of Cassandra cannot.
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
        """Prints a line to stderr: the seconds since the command began, the server's name and `words`. Thread-safe."""
        with _speaking:
            sys.stderr.write(f"{time.monotonic() - self.began:5.1f} s  {name:<12} {words}\n")
            sys.stderr.flush()


_speaking = threading.Lock()


@dataclass(frozen=True, slots=True)
class ServerCommand:
    """The command line and working directory of a server, and the user (uid, gid) that runs it. If `user` is None, the
    user of this process runs the server."""

    argv: list[str]
    cwd: Path
    user: tuple[int, int] | None = None


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Acquires an exclusive lock on the file `path` for the duration of the block. Waits while another process has the
    lock.

    The operating system releases the lock when the process ends.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
