"""Explains SQLite's errors to operators: SQLite names neither the file nor the cause."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from services.platform import files

_DAMAGED = "it is damaged, or not a database: put back the copy of a backup, or move the file away and start without what it held"
_ADVICE = {"CORRUPT": _DAMAGED, "NOTADB": _DAMAGED, "FULL": files.ADVICE[errno.ENOSPC]}
# SQLite's result codes for a failing disk, or for a file that another process uses; the same statement may succeed
# later.
TRANSIENT = frozenset({"BUSY", "CANTOPEN", "FULL", "IOERR", "LOCKED", "NOMEM", "PROTOCOL", "READONLY"})
# SQLite's result codes for damaged content of the file, which must be restored from a backup. Statements on undamaged
# parts of the file may still succeed.
DAMAGED = frozenset({"CORRUPT", "NOTADB"})
# Number of bytes that `_fault_of` writes: the size of the WAL index (-shm), the largest file that SQLite creates when
# it opens a database.
_PROBE_BYTES = 32_768


def kind_of(error: sqlite3.Error) -> str:
    """Returns SQLite's primary result code without its prefix, such as CORRUPT, FULL or IOERR; "" if there is none."""
    return (getattr(error, "sqlite_errorname", None) or "").removeprefix("SQLITE_").split("_")[0]


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turns OSErrors that the `with` block raises, and SQLite errors of the kinds TRANSIENT and DAMAGED, into
    FAILED_PRECONDITION with the path and advice. Raises all other exceptions unchanged."""
    try:
        with files.naming(path):
            yield
    except sqlite3.Error as error:
        if kind_of(error) not in TRANSIENT | DAMAGED:
            raise
        raise files.unusable(path, _ADVICE.get(kind_of(error)) or _cause(path, error)) from error


def note(path: Path, error: sqlite3.Error) -> str:
    """Returns one line for operators, not for callers: the file, what is wrong with it and what to do."""
    return f"{path} cannot be used: {_ADVICE.get(kind_of(error), str(error))}"


def _cause(path: Path, error: sqlite3.Error) -> str:
    """Returns the operating system's reason, because SQLite reports only "unable to open" or "disk I/O error"."""
    fault = _fault_of(path)
    return files.ADVICE.get(fault, f"{error} ({os.strerror(fault)})" if fault else str(error))


def _fault_of(path: Path) -> int:
    """Opens the file and writes a file beside it, as SQLite does. Returns the errno if one of these steps fails,
    otherwise 0."""
    probe = path.with_name(f"{path.name}.new")
    try:
        os.close(os.open(path, os.O_RDWR))
        probe.write_bytes(bytes(_PROBE_BYTES))
    except OSError as error:
        return error.errno or 0
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)
    return 0
