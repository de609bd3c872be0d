"""Files of a data directory: private to their owner, small ones written whole or not at all, faults told with the file's name."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path

import structlog

from services.platform.rpc import errors
from services.platform.rpc.reasons import Reason

DIRECTORY_MODE = 0o700
FILE_MODE = 0o600
# Permission bits of the group and of everybody else.
_OTHERS = 0o077
# The names of what Roost puts into a data directory, folders with all that they hold. Anything else is the user's.
OWN_NAMES = ("*.db", "*.db-*", "*.lock", "*.lease", "*.key", "*.json", "*.new", "keys", "logs", "processes", "search")
# A file system of its own brings this folder along; only root can read it.
_LOST_AND_FOUND = "lost+found"

# What to do about an error of the operating system, by its number.
ADVICE = {
    errno.ENOSPC: "the disk is full: free some space there, or choose other data with --data",
    errno.EDQUOT: "the disk quota is used up: free some space, or choose other data with --data",
    errno.EROFS: "its file system is mounted read-only: mount it writable, or choose other data with --data",
    errno.EACCES: "this user may not open it: give it to the user that Roost runs as, or choose other data with --data",
    errno.EISDIR: "a folder has its name: move that away, or choose other data with --data",
    errno.ENOTDIR: "a file has the name of its folder: move that away, or choose other data with --data",
}
ADVICE[errno.EPERM] = ADVICE[errno.EACCES]
ADVICE[errno.EEXIST] = ADVICE[errno.ENOTDIR]

_log = structlog.get_logger(__name__)


def private_dir(path: Path) -> Path:
    """Makes the folder if it is absent, for its owner alone, and returns it. FAILED_PRECONDITION if it cannot be made."""
    with naming(path):
        path.mkdir(parents=True, exist_ok=True, mode=DIRECTORY_MODE)
    return path


def open_data_dir(path: Path) -> Path:
    """Makes the data directory if it is absent, and keeps all that Roost has in it from other users of the machine.

    From here on files of this process are made for its owner alone, those of libraries included. Files that are there
    lose the rights of group and others. A directory that also holds other things than Roost's keeps its own mode.
    FAILED_PRECONDITION if it cannot be made.
    """
    os.umask(_OTHERS)
    private_dir(path)
    with naming(path):
        entries = list(os.scandir(path))
    own = [entry for entry in entries if any(fnmatch(entry.name, name) for name in OWN_NAMES)]
    foreign = sorted({entry.name for entry in entries} - {entry.name for entry in own} - {_LOST_AND_FOUND})
    if foreign:
        _log.warning("the data directory holds other files too and keeps its mode", path=str(path), other=foreign[:5])
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
    """Takes the rights of group and others from a file or folder. Links are left alone; a refusal is logged."""
    try:
        mode = path.lstat().st_mode
        if mode & _OTHERS and not path.is_symlink():
            path.chmod(mode & ~_OTHERS & 0o7777)
    except FileNotFoundError:
        # SQLite removes its side files when it likes.
        pass
    except OSError as error:
        _log.warning("other users may read this, and that cannot be changed", path=str(path), error=error.strerror)


def write_durably(path: Path, content: bytes) -> None:
    """Replaces the file whole or not at all, also across a power cut; readable by its owner alone. OSError if it cannot."""
    draft = path.with_name(f"{path.name}.new")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        # The new name itself is in the folder.
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def kept_key(path: Path, make: Callable[[], bytes], if_lost: str) -> bytes:
    """Returns the key in the file; if there is none, makes one and keeps it. `make` gives keys of one size.

    FAILED_PRECONDITION if the file has another size or cannot be used; `if_lost` says there what a new key would cost.
    """
    with naming(path):
        try:
            found = path.read_bytes()
        except FileNotFoundError:
            found = make()
            private_dir(path.parent)
            write_durably(path, found)
            return found
    if len(found) != (size := len(make())):
        raise errors.failed_precondition(
            f"{path} is damaged: it holds {len(found)} bytes, and this key has {size}. Put back the copy of a backup; or"
            f" remove the file, and the next start makes a new key: {if_lost}"
        )
    return found


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turns an OSError of the block into FAILED_PRECONDITION: which file cannot be used, why, and what to do."""
    try:
        yield
    except OSError as error:
        raise unusable(path, ADVICE.get(error.errno or 0, error.strerror or str(error))) from error


def unusable(path: Path, why: str) -> errors.RoostError:
    """FAILED_PRECONDITION for a file that cannot be used; `why` also says what to do."""
    return errors.failed_precondition(f"{path} cannot be used: {why}", reason=Reason.DATA_UNUSABLE)
