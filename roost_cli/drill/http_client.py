"""A minimal HTTP/1.1 client for drills: one persistent connection and one request at a time. It never retries, because
retries would hide failures."""

from __future__ import annotations

import asyncio
import contextlib
from typing import NamedTuple

# Maximum size in bytes of the status line and headers of a response. Those of the gateway are below 2 kB.
MAX_HEAD_BYTES = 64 * 1024


class HttpResponse(NamedTuple):
    """The status and the body of an HTTP response."""

    status: int
    body: bytes


class HttpClient:
    """Sends requests to one server. Connects at the first request, and again at the first request after a failure."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(
        self, method: str, path: str, token: str, body: bytes = b"", *, key: str = "", within_s: float
    ) -> HttpResponse:
        """Sends a request and returns the response. `token` is an access token, `body` JSON, `key` the header
        Idempotency-Key ("" sends none).

        Raises OSError or EOFError if no complete response arrives, TimeoutError if it takes longer than `within_s`
        seconds.
        """
        head = [f"{method} {path} HTTP/1.1", f"Host: {self._host}:{self._port}", f"Authorization: Bearer {token}"]
        if key:
            head.append(f"Idempotency-Key: {key}")
        if method != "GET":
            head += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        try:
            async with asyncio.timeout(within_s):
                reader, writer = await self._connected()
                writer.write("\r\n".join([*head, "", ""]).encode() + body)
                await writer.drain()
                return await self._answer(reader)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Closes the connection."""
        if self._writer is not None:
            with contextlib.suppress(OSError):
                self._writer.close()
        self._reader = self._writer = None

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._reader is None or self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(self._host, self._port, limit=MAX_HEAD_BYTES)
        return self._reader, self._writer

    async def _answer(self, reader: asyncio.StreamReader) -> HttpResponse:
        status_line, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        status = int(status_line.split(" ", 2)[1])
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        if headers.get("connection", "").lower() == "close":
            self.close()
        return HttpResponse(status, body)
