"""The baseline server of `roost bench`: a minimal HTTP server that returns the same recorded response to every request.

It runs uvicorn with httptools and uvloop. Its ASGI application only calls `send` twice, so its CPU time is that of HTTP
alone. `python -m roost_cli.bench.baseline_server FILE` serves the response that the file contains on a free port of
127.0.0.1, and prints the port.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import uvicorn

from roost_cli.exit_codes import FAULTS, CommandError

START_WITHIN_S = 30.0
BACKLOG = 1_024
# Headers that are not recorded, because uvicorn adds them to each response.
_OWN = frozenset({"date", "connection", "transfer-encoding"})

Headers = Sequence[tuple[str, str]]


def record(file: Path, headers: Headers, body: bytes) -> None:
    """Writes a response to `file`, for a server that will return it with status 200. The first line is the headers as
    JSON; the rest is the body."""
    kept = [[name.lower(), value] for name, value in headers if name.lower() not in _OWN]
    file.write_bytes(orjson.dumps(kept) + b"\n" + body)


@asynccontextmanager
async def running(file: Path) -> AsyncIterator[tuple[int, int]]:
    """Runs the server in a child process until the block ends. Yields its process id and port. Raises CommandError if
    the server does not start within START_WITHIN_S seconds."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "roost_cli.bench.baseline_server", str(file), stdout=pipe
    )
    try:
        assert process.stdout is not None, "made with a pipe"
        try:
            port = await asyncio.wait_for(process.stdout.readline(), START_WITHIN_S)
        except TimeoutError:
            raise CommandError(f"the baseline server did not start within {START_WITHIN_S:g} s", FAULTS) from None
        if not port.strip().isdigit():
            raise CommandError("the baseline server did not start", FAULTS)
        yield process.pid, int(port)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


class _OneAnswer:
    """The ASGI application of the baseline server. It sends the recorded response to every request."""

    def __init__(self, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> None:
        self._start = {"type": "http.response.start", "status": 200, "headers": headers}
        self._body = {"type": "http.response.body", "body": body}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await send(self._start)
        await send(self._body)


def _serve(file: Path) -> None:
    head, _, body = file.read_bytes().partition(b"\n")
    app = _OneAnswer([(name.encode(), value.encode()) for name, value in orjson.loads(head)], body)
    config = uvicorn.Config(
        app,
        http="httptools",
        loop="uvloop",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
    )
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(BACKLOG)
        sys.stdout.write(f"{listener.getsockname()[1]}\n")
        sys.stdout.flush()
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
