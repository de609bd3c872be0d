"""Keeps the files of the data directory private to their owner, replaces small files atomically, and turns errors of
the operating system into FAILED_PRECONDITION with the file's name."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path

import structlog

from services.platform.log_events import LogEvent
from services.platform.rpc import errors
from services.platform.rpc.reasons import Reason

DIRECTORY_MODE = 0o700
FILE_MODE = 0o600
# Permission bits of the group and of all other users.
_OTHERS = 0o077
# Name patterns of the files and folders that Roost creates in a data directory. All other entries belong to the user.
OWN_NAMES = ("*.db", "*.db-*", "*.lock", "*.lease", "*.key", "*.json", "*.new", "keys", "logs", "processes", "search")
# A folder of the operating system, which exists if the data directory is the root of a file system. Only the user root
# can read it.
_LOST_AND_FOUND = "lost+found"

# By errno of the operating system: the cause and the remedy.
ADVICE = {
    errno.ENOSPC: "the disk is full: free some space there, or choose other data with --data",
    errno.EDQUOT: "the disk quota is used up: free some space, or choose other data with --data",
    errno.EROFS: "its file system is mounted read-only: mount it writable, or choose other data with --data",
    errno.EACCES: "this user may not open it: give it to the user that Roost runs as, or choose other data with --data",
    errno.ENOENT: "it does not exist and cannot be created: choose other data with --data",
    errno.EISDIR: "a folder has its name: move that away, or choose other data with --data",
    errno.ENOTDIR: "a file has the name of its folder: move that away, or choose other data with --data",
}
ADVICE[errno.EPERM] = ADVICE[errno.EACCES]
ADVICE[errno.EEXIST] = ADVICE[errno.ENOTDIR]

_log = structlog.get_logger(__name__)


def private_dir(path: Path) -> Path:
    """Creates the folder with mode 0700 if it does not exist, and returns it.

    Leaves the mode of an existing folder unchanged. Raises FAILED_PRECONDITION if the folder cannot be created.
    """
    with naming(path):
        path.mkdir(parents=True, exist_ok=True, mode=DIRECTORY_MODE)
    return path


def open_data_dir(path: Path) -> Path:
    """Creates the data directory if it does not exist, makes its content private to its owner, and returns its path.

    Sets the umask of this process to 0077, so that libraries create private files too. Removes the permissions of group
    and others from existing files of Roost, and from the directory unless it contains files that are not Roost's.
    Raises FAILED_PRECONDITION if the directory cannot be created or read.
    """
    os.umask(_OTHERS)
    private_dir(path)
    with naming(path):
        entries = list(os.scandir(path))
    own = [entry for entry in entries if any(fnmatch(entry.name, name) for name in OWN_NAMES)]
    foreign = sorted({entry.name for entry in entries} - {entry.name for entry in own} - {_LOST_AND_FOUND})
    if foreign:
        _log.warning(LogEvent.DATA_DIR_MODE_KEPT, path=str(path), other=foreign[:5])
    else:
        restrict(path)
    for entry in own:
        restrict(Path(entry.path))
        if entry.is_dir(follow_symlinks=False):
            for folder, folders, files in os.walk(entry.path):
                for name in (*folders, *files):
                    restrict(Path(folder, name))
    return path


def restrict(path: Path) -> None:
    """Removes the permissions of group and others from a file or folder. Skips symbolic links and missing files.

    Logs a warning if the permissions cannot be changed.
    """
    try:
        mode = path.lstat().st_mode
        if mode & _OTHERS and not path.is_symlink():
            path.chmod(mode & ~_OTHERS & 0o7777)
    except FileNotFoundError:
        # SQLite deletes its -wal and -shm files at any time.
        pass
    except OSError as error:
        _log.warning(LogEvent.DATA_DIR_RESTRICT_FAILED, path=str(path), error=error.strerror)


def write_durably(path: Path, content: bytes) -> None:
    """Replaces the file atomically and durably: after a power failure it has the old or the new content.

    The new file has the mode 0600. Raises OSError if the file cannot be written.
    """
    draft = path.with_name(f"{path.name}.new")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        # The rename is durable only when the folder is synced too.
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def load_or_create_key(path: Path, make: Callable[[], bytes], if_lost: str) -> bytes:
    """Returns the key in the file. If the file does not exist, creates a key with `make` and writes it durably.

    `make` must always return keys of the same size. Raises FAILED_PRECONDITION if the file does not have this size,
    holds zero bytes only, or cannot be read or written. `if_lost` is the end of the error message: it says what is lost if a new key
    replaces the old one.
    """
    with naming(path):
        try:
            found = path.read_bytes()
        except FileNotFoundError:
            found = make()
            private_dir(path.parent)
            write_durably(path, found)
            return found
    holds = f"{len(found)} bytes, and this key has {size}" if len(found) != (size := len(make())) else ""
    # Some file systems fill a file with zero bytes if the power fails. Everybody knows such a key.
    if holds or not any(found):
        raise errors.failed_precondition(
            f"{path} is damaged: it holds {holds or 'zero bytes only'}. Put back the copy of a backup; or"
            f" remove the file, and the next start makes a new key: {if_lost}"
        )
    return found


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turns an OSError that the `with` block raises into FAILED_PRECONDITION with the path, the cause and the
    remedy."""
    try:
        yield
    except OSError as error:
        raise unusable(path, ADVICE.get(error.errno or 0, error.strerror or str(error))) from error


def unusable(path: Path, why: str) -> errors.RoostError:
    """Returns a FAILED_PRECONDITION error (DATA_UNUSABLE) for a file. `why` states the cause and the remedy."""
    return errors.failed_precondition(f"{path} cannot be used: {why}", reason=Reason.DATA_UNUSABLE)
