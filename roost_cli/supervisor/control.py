"""The Unix socket by which `roost restart` asks the supervisor for a restart. Its mode 0600 limits it to the user
who started the mesh."""

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
from roost_cli.supervisor.supervisor import Supervisor

# A request holds one service name.
MAX_LINE_BYTES = 1_024
REQUEST_TIMEOUT_S = 5.0


def path_of(grpc: str) -> Path:
    """Returns the socket path of the mesh at this gRPC address."""
    return runfile.path_of(grpc).with_suffix(".sock")


@asynccontextmanager
async def serving_restarts(supervisor: Supervisor, path: Path) -> AsyncIterator[None]:
    """Serves restart requests until the block ends: one JSON line `{"restart": name}` in, one line with `seconds` or
    `error` out."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answer: dict[str, object]
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                asked = json.loads(await reader.readline())
            answer = {"seconds": await supervisor.restart(str(asked["restart"]))}
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


async def ask_restart(path: Path, name: str) -> float:
    """Requests a restart of a service, waits until it is done, and returns the seconds that it took. Raises
    CommandError if it failed or no supervisor listens."""
    try:
        reader, writer = await asyncio.open_unix_connection(path, limit=1 << 16)
    except OSError:
        raise CommandError("no supervisor runs here: `roost up --processes --cluster` starts one") from None
    writer.write(json.dumps({"restart": name}).encode() + b"\n")
    await writer.drain()
    line = await reader.readline()
    writer.close()
    if not line:
        raise CommandError("the mesh stopped before the restart was done: start it again")
    answer = json.loads(line)
    if "error" in answer:
        raise CommandError(answer["error"])
    return float(answer["seconds"])
