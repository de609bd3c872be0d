"""Run files. Commands on this machine read the addresses and the operator token of a running mesh from its run file.

`roost up` writes a run file for its gRPC address and removes it when it stops. The file holds the operator token, so it
is created with mode 0600.
"""

from __future__ import annotations

import json
import os
import re
import secrets
from dataclasses import asdict, dataclass, field
from pathlib import Path

from roost_cli.process_birth import birth
from services.platform import config
from services.platform.config import runtime_dir

FILE_MODE = 0o600
DIRECTORY_MODE = 0o700
# Prefix of the line that `roost up` and `roost serve` print when they accept calls.
READY = "roost is ready"
# Root directory of the code that this process runs.
CHECKOUT = config.CHECKOUT


@dataclass(frozen=True, slots=True)
class RunFile:
    """A running mesh: addresses as HOST:PORT (`http` is empty if it serves none), `started_at` in Unix seconds."""

    grpc: str
    http: str
    pid: int
    started_at: float
    operator_token: str = field(repr=False)
    # Absolute paths of the data directory and of the running code; commands choose between several meshes by them.
    data: str = ""
    checkout: str = ""
    # Address of health checks and metrics; empty in files that older versions wrote.
    ops: str = ""
    # Start time of the process, set by `write`. It shows that the id was reused; empty in files that older versions wrote.
    birth: str = field(default="", compare=False)


def path_of(grpc: str, directory: Path | None = None) -> Path:
    """Returns the path of the run file for a gRPC address."""
    return (directory or runtime_dir()) / (re.sub(r"[^A-Za-z0-9.-]", "_", grpc) + ".json")


def write(run: RunFile, directory: Path | None = None) -> Path:
    """Writes the file and replaces one left by an earlier mesh on the same address. Raises OSError if the directory
    is not writable."""
    path = path_of(run.grpc, directory)
    path.parent.mkdir(parents=True, exist_ok=True, mode=DIRECTORY_MODE)
    path.parent.chmod(DIRECTORY_MODE)
    # Written to a temporary file and renamed, so that readers never see half a file. O_EXCL: no other process can have
    # it open.
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE)
    with os.fdopen(descriptor, "w") as file:
        json.dump(asdict(run) | {"birth": birth(run.pid) or ""}, file)
    draft.replace(path)
    return path


def remove(run: RunFile, directory: Path | None = None) -> None:
    """Removes the file, unless another process has replaced it since."""
    path = path_of(run.grpc, directory)
    found = _read(path)
    if found is not None and found.pid == run.pid:
        path.unlink(missing_ok=True)


def running(directory: Path | None = None) -> list[RunFile]:
    """Returns the running meshes, ordered by address. Removes files whose process has ended."""
    found = []
    for path in sorted((directory or runtime_dir()).glob("*.json")):
        run = _read(path)
        if run is None:
            continue
        if _alive(run):
            found.append(run)
        else:
            path.unlink(missing_ok=True)
    return found


def _read(path: Path) -> RunFile | None:
    """Returns the content of a run file; None if it is invalid or belongs to another user, because it could name that
    user's mesh."""
    try:
        if path.stat().st_uid != os.getuid():
            return None
        return RunFile(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _alive(run: RunFile) -> bool:
    """Returns True if the process that wrote the file still runs. A later process or thread may have its id."""
    found = birth(run.pid)
    return found is not None and run.birth in ("", found)
