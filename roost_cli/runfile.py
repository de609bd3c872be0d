"""Run files: how a command finds a mesh on this machine, and proves to be its operator.

`roost up` writes one for its gRPC address and removes it when it stops. It holds the operator's token, so only its
owner can read it, from the first byte on.
"""

from __future__ import annotations

import json
import os
import re
import secrets
from dataclasses import asdict, dataclass, field
from pathlib import Path

from services.platform import config
from services.platform.config import runtime_dir

FILE_MODE = 0o600
DIRECTORY_MODE = 0o700
# How the line begins that `roost up` and `roost serve` print once calls are answered.
READY = "roost is ready"
# The folder of the code that this process runs.
CHECKOUT = config.CHECKOUT


@dataclass(frozen=True, slots=True)
class RunFile:
    """A mesh that runs: addresses as HOST:PORT, `http` empty if it serves none; `started_at` in Unix seconds."""

    grpc: str
    http: str
    pid: int
    started_at: float
    operator_token: str = field(repr=False)
    # Where the data lies, and the code that runs: absolute paths, by which commands tell meshes apart.
    data: str = ""
    checkout: str = ""
    # Where health and metrics are; "" in files that older versions wrote.
    ops: str = ""


def path_of(grpc: str, directory: Path | None = None) -> Path:
    """Where the run file of a gRPC address lies."""
    return (directory or runtime_dir()) / (re.sub(r"[^A-Za-z0-9.-]", "_", grpc) + ".json")


def write(run: RunFile, directory: Path | None = None) -> Path:
    """Writes the file, replacing what a mesh on the same address left behind; OSError where that cannot be done."""
    path = path_of(run.grpc, directory)
    path.parent.mkdir(parents=True, exist_ok=True, mode=DIRECTORY_MODE)
    path.parent.chmod(DIRECTORY_MODE)
    # Made under another name, so that nobody reads half a file; O_EXCL, so that nobody had it open before.
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE)
    with os.fdopen(descriptor, "w") as file:
        json.dump(asdict(run), file)
    draft.replace(path)
    return path


def remove(run: RunFile, directory: Path | None = None) -> None:
    """Removes the file, unless another process has taken the address since."""
    path = path_of(run.grpc, directory)
    found = _read(path)
    if found is not None and found.pid == run.pid:
        path.unlink(missing_ok=True)


def running(directory: Path | None = None) -> list[RunFile]:
    """The meshes that run, by address. Files of processes that are gone are removed on the way."""
    found = []
    for path in sorted((directory or runtime_dir()).glob("*.json")):
        run = _read(path)
        if run is None:
            continue
        if _alive(run.pid):
            found.append(run)
        else:
            path.unlink(missing_ok=True)
    return found


def _read(path: Path) -> RunFile | None:
    """None where it is not a run file of this user: somebody else's file would name somebody else's mesh."""
    try:
        if path.stat().st_uid != os.getuid():
            return None
        return RunFile(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
