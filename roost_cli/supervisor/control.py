"""The Unix socket on which the supervisor accepts the requests of `roost restart`. Only the user who started the mesh
can connect to it (mode 0600)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from roost_cli import runfile
from roost_cli.exit_codes import CommandError
from roost_cli.supervisor.supervisor import Restarted, Supervisor

# Maximum size in bytes of a request, which contains the name of a service.
MAX_LINE_BYTES = 1_024
# Maximum number of seconds until a request has arrived after its client connected.
REQUEST_TIMEOUT_S = 5.0


class NoSupervisorError(Exception):
    """No supervisor listens on the socket."""


def path_of(grpc: str) -> Path:
    """Returns the path of the socket for the mesh with this gRPC address."""
    return runfile.path_of(grpc).with_suffix(".sock")


@asynccontextmanager
async def serving_restarts(supervisor: Supervisor, path: Path) -> AsyncIterator[None]:
    """Serves restart requests at `path` until the block ends.

    A request is one line of JSON, `{"restart": name}`. The response is one line of JSON: `{"group": name, "seconds":
    number}` after the restart, or `{"error": message}`.
    """

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answer: dict[str, object]
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                asked = json.loads(await reader.readline())
            answer = (await supervisor.restart(str(asked["restart"])))._asdict()
        except CommandError as error:
            answer = {"error": error.message}
        except (ValueError, KeyError, TypeError, TimeoutError):
            answer = {"error": "the restart request is malformed"}
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
    try:
        reader, writer = await asyncio.open_unix_connection(path, limit=1 << 16)
    except OSError:
        raise NoSupervisorError from None
    writer.write(json.dumps({"restart": name}).encode() + b"\n")
    await writer.drain()
    line = await reader.readline()
    writer.close()
    if not line:
        raise CommandError("the mesh stopped before the restart was done: start it again")
    answer = json.loads(line)
    if "error" in answer:
        raise CommandError(answer["error"])
    return Restarted(str(answer["group"]), float(answer["seconds"]))
