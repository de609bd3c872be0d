"""The Unix socket on which the supervisor accepts the requests of `roost restart` and `roost topology`. Only the user
who started the mesh can connect to it (mode 0600)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from roost_cli import runfile
from roost_cli.exit_codes import CommandError
from roost_cli.supervisor.supervisor import Restarted, RunningProcess, Supervisor

# Maximum size in bytes of a request, which contains the name of a service.
MAX_LINE_BYTES = 1_024
# Maximum size in bytes of a response. The longest one lists the processes of nine groups, each of up to sixteen, in 120
# bytes each.
MAX_ANSWER_BYTES = 1 << 16
# Maximum number of seconds until a request has arrived after its client connected.
REQUEST_TIMEOUT_S = 5.0


class NoSupervisorError(Exception):
    """No supervisor listens on the socket."""


def path_of(grpc: str) -> Path:
    """Returns the path of the socket for the mesh with this gRPC address."""
    return runfile.path_of(grpc).with_suffix(".sock")


@asynccontextmanager
async def serving_requests(supervisor: Supervisor, path: Path) -> AsyncIterator[None]:
    """Serves requests at `path` until the block ends.

    A request is one line of JSON, `{"restart": name}` or `{"list": true}`. The response is one line of JSON: `{"group":
    name, "seconds": number}` after the restart, `{"processes": [[group, label, pid, gRPC address, ops address], …]}`,
    or `{"error": message}`.
    """

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answer: dict[str, object]
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                asked = json.loads(await reader.readline())
            if "list" in asked:
                answer = {"processes": supervisor.processes()}
            else:
                answer = (await supervisor.restart(str(asked["restart"])))._asdict()
        except CommandError as error:
            answer = {"error": error.message}
        except (ValueError, KeyError, TypeError, TimeoutError):
            answer = {"error": "the request is malformed"}
        with contextlib.suppress(ConnectionError):
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
            writer.close()

    _prepare_path(path)
    server = await asyncio.start_unix_server(serve, path, limit=MAX_LINE_BYTES)
    os.chmod(path, runfile.FILE_MODE)
    try:
        yield
    finally:
        server.close()
        _prepare_path(path)


def _prepare_path(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=runfile.DIRECTORY_MODE)
    path.unlink(missing_ok=True)


async def ask_restart(path: Path, name: str) -> Restarted:
    """Sends a request to restart a group, or the group of a service, to the socket at `path`, and returns when the
    restart is done.

    Raises CommandError if the restart fails, and NoSupervisorError if no supervisor listens at `path`.
    """
    answer = await _ask(path, {"restart": name})
    return Restarted(str(answer["group"]), float(answer["seconds"]))


async def ask_processes(path: Path) -> Sequence[RunningProcess]:
    """Returns the processes that the supervisor whose socket is at `path` runs. Raises NoSupervisorError if none listens
    there."""
    answer = await _ask(path, {"list": True})
    return [
        RunningProcess(str(group), str(label), int(pid), str(grpc), str(ops))
        for group, label, pid, grpc, ops in answer["processes"]
    ]


async def _ask(path: Path, request: Mapping[str, object]) -> Mapping[str, Any]:
    try:
        reader, writer = await asyncio.open_unix_connection(path, limit=MAX_ANSWER_BYTES)
    except OSError:
        raise NoSupervisorError from None
    writer.write(json.dumps(request).encode() + b"\n")
    await writer.drain()
    line = await reader.readline()
    writer.close()
    if not line:
        raise CommandError("the mesh stopped before it answered: start it again")
    answer: dict[str, Any] = json.loads(line)
    if "error" in answer:
        raise CommandError(answer["error"])
    return answer
