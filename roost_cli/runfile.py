"""Reads and writes run files, from which commands on this machine learn the addresses and the operator token of a
running mesh.

`roost up` writes a run file when it is ready and removes it when it stops. The file name is derived from the gRPC address.
The file contains the operator token, so only its owner can read it.
"""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from roost_cli.process_birth import birth
from services.platform import config
from services.platform.config import runtime_dir

FILE_MODE = 0o600
DIRECTORY_MODE = 0o700
# The beginning of the line that `roost up` and `roost serve` print once they accept calls.
READY = "roost is ready"
_GRPC, _METRICS, _METRICS_END = "gRPC ", "metrics http://", "/metrics"
# The root directory of the source code that this process runs.
CHECKOUT = config.CHECKOUT


@dataclass(frozen=True, slots=True)
class RunFile:
    """A running mesh. `grpc`, `http` and `ops` are addresses as HOST:PORT; `http` is "" if the mesh serves no HTTP.

    `pid` is the process id of the supervisor if there is one, otherwise of the process with the gateway. `started_at`
    is the time of its start in Unix seconds.
    """

    grpc: str
    http: str
    pid: int
    started_at: float
    operator_token: str = field(repr=False)
    # Absolute paths of the data directory and of the source code that runs. If several meshes run, commands choose one
    # by these paths.
    data: str = ""
    checkout: str = ""
    # Address of the ops port; "" if each process of a mesh has its own, and in files of older versions.
    ops: str = ""
    # The groups of the mesh, written as `front=gateway,timeline*4;back=fanout`; "" in files of older versions.
    groups: str = ""
    # Where the event log is: the backend, `embedded` or `cluster`, and for the latter the namespace of the topics and the
    # addresses of Kafka brokers. "" in files of older versions.
    backend: str = ""
    namespace: str = ""
    kafka_bootstrap_servers: str = ""
    # The start time of the process, which `write` sets; "" in files of older versions. If this differs from the start
    # time of the process with the id `pid`, the mesh has ended and its process id was reused.
    birth: str = field(default="", compare=False)


def ready_line(grpc: str, ops: str, *, http: str = "", more: Sequence[str] = ()) -> str:
    """Returns the line that a process prints once it accepts calls: its addresses (HOST:PORT), then `more`."""
    where = [f"http://{http}"] if http else []
    where += [f"{_GRPC}{grpc}", f"{_METRICS}{ops}{_METRICS_END}", *more]
    return f"{READY}: {' · '.join(where)}"


def addresses_in(line: str) -> tuple[str, str]:
    """Returns the gRPC address and the ops address in a line that `ready_line` made; "" for one that is missing."""
    parts = line.removeprefix(f"{READY}: ").strip().split(" · ")
    grpc = next((part.removeprefix(_GRPC) for part in parts if part.startswith(_GRPC)), "")
    ops = next((part.removeprefix(_METRICS) for part in parts if part.startswith(_METRICS)), "")
    return grpc, ops.removesuffix(_METRICS_END)


def path_of(grpc: str, directory: Path | None = None) -> Path:
    """Returns the path of the run file for a gRPC address. `directory` contains the run files; None is the user's
    runtime directory."""
    return (directory or runtime_dir()) / (re.sub(r"[^A-Za-z0-9.-]", "_", grpc) + ".json")


def write(run: RunFile, directory: Path | None = None) -> Path:
    """Writes the run file and returns its path. Replaces the file of an earlier mesh on the same address. Raises
    OSError if the directory is not writable."""
    path = path_of(run.grpc, directory)
    path.parent.mkdir(parents=True, exist_ok=True, mode=DIRECTORY_MODE)
    path.parent.chmod(DIRECTORY_MODE)
    # Written to a temporary file that is then renamed, so that no reader gets an incomplete file. O_EXCL makes sure
    # that this process created the temporary file, with FILE_MODE.
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE)
    with os.fdopen(descriptor, "w") as file:
        json.dump(asdict(run) | {"birth": birth(run.pid) or ""}, file)
    draft.replace(path)
    return path


def remove(run: RunFile, directory: Path | None = None) -> None:
    """Removes the run file, unless another process has replaced it with its own."""
    path = path_of(run.grpc, directory)
    found = _read(path)
    if found is not None and found.pid == run.pid:
        path.unlink(missing_ok=True)


def running(directory: Path | None = None) -> list[RunFile]:
    """Returns the running meshes, ordered by gRPC address. Removes the run files of processes that have ended."""
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
    """Returns the content of a run file; None if it cannot be read or is invalid.

    Also returns None if the file belongs to another user, who could have written the address of a mesh of theirs.
    """
    try:
        if path.stat().st_uid != os.getuid():
            return None
        return RunFile(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _alive(run: RunFile) -> bool:
    """Returns whether the process that wrote the run file still runs. A later process or thread with the same id does
    not count."""
    found = birth(run.pid)
    return found is not None and run.birth in ("", found)
