"""Where things lie, and what is said meanwhile."""

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
    """Something that the reader has to mend; the message says what, and how."""


@dataclass(frozen=True, slots=True)
class Place:
    """Folders, ports and Java of one set of servers.

    `cache` keeps what was downloaded, `data` what the servers write, with logs and records of processes. Every port is moved by `shift`,
    so that several sets can run beside each other. `java_home` is a JDK to look at first, None where none was named. With `durable` a write
    is on disk before it is answered, as in production; without, one may be lost when the machine dies, never when a server does.
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
        """The folder of one server's data."""
        return self.data / name

    def port(self, usual: int) -> int:
        return usual + self.shift

    def say(self, name: str, words: str) -> None:
        """A line of progress; several threads say theirs."""
        with _speaking:
            sys.stderr.write(f"{time.monotonic() - self.began:5.1f} s  {name:<12} {words}\n")
            sys.stderr.flush()


_speaking = threading.Lock()


@dataclass(frozen=True, slots=True)
class Launch:
    """A command that is the server, where it runs, and as whom (uid and gid) where not as oneself."""

    argv: list[str]
    cwd: Path
    user: tuple[int, int] | None = None


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Only one process at a time is within it, whatever the others do; the lock goes with the process that held it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
