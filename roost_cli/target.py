"""Which mesh a command talks to, and as whom."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from roost_cli import runfile
from roost_cli.outcome import CommandError
from services.common.config import runtime_dir

Metadata = tuple[tuple[str, str], ...]

# How long a mesh gets to take a connection: one on this machine takes milliseconds.
CONNECT_S = 5.0
# A scan's message holds 1,000 tweets of up to 4,096 bytes of text and what the text names.
MAX_MESSAGE_BYTES = 64 * 1024 * 1024

_LOCAL = frozenset({"localhost", "127.0.0.1", "0.0.0.0", "::1", "::", ""})  # noqa: S104 (compared, never bound)
_START = "start one with `scripts/up` or `roost up`"


@dataclass(frozen=True, slots=True)
class Target:
    """A mesh: its gRPC address, and the operator's token where this user started it."""

    address: str
    operator_token: str = field(default="", repr=False)

    def operator(self) -> Metadata:
        """The operator's credentials as metadata; CommandError where there are none."""
        if not self.operator_token:
            raise CommandError(
                f"no operator credentials for {self.address}: no run file of it in {runtime_dir()}. "
                "They belong to the user who started the mesh."
            )
        return bearer(self.operator_token)


def bearer(token: str) -> Metadata:
    """A token as call metadata."""
    return (("authorization", f"Bearer {token}"),)


def find(address: str | None, directory: Path | None = None) -> Target:
    """The mesh at `address`, or else the only one that runs here; CommandError where there is none, or several."""
    runs = runfile.running(directory)
    if address is not None:
        wanted = _split(address)
        token = next((run.operator_token for run in runs if _same(_split(run.grpc), wanted)), "")
        return Target(address, token)
    if not runs:
        raise CommandError(f"no mesh runs here: {_START}, or name one with --grpc HOST:PORT")
    if len(runs) > 1:
        listed = "\n".join(f"  --grpc {run.grpc}   (pid {run.pid})" for run in runs)
        raise CommandError(f"several meshes run here; say which one:\n{listed}")
    return Target(runs[0].grpc, runs[0].operator_token)


@asynccontextmanager
async def connect(target: Target, count: int = 1) -> AsyncIterator[Sequence[grpc.aio.Channel]]:
    """`count` channels to the mesh, each with a connection of its own; CommandError where none is made in CONNECT_S."""
    options = (
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        # Without it all channels of a process share one connection.
        ("grpc.use_local_subchannel_pool", 1),
    )
    async with AsyncExitStack() as stack:
        channels = [
            await stack.enter_async_context(grpc.aio.insecure_channel(target.address, options=options))
            for _ in range(count)
        ]
        try:
            async with asyncio.timeout(CONNECT_S):
                await asyncio.gather(*(channel.channel_ready() for channel in channels))
        except TimeoutError:
            raise CommandError(f"no mesh answers at {target.address}: {_START}") from None
        yield channels


def _split(address: str) -> tuple[str, int]:
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit() or not 0 < int(port) < 65_536:
        raise CommandError(f"{address!r} is not an address: write HOST:PORT, such as 127.0.0.1:50051")
    return host.strip("[]").lower(), int(port)


def _same(one: tuple[str, int], other: tuple[str, int]) -> bool:
    """Whether two addresses mean the same server: every spelling of this machine is one."""
    return one[1] == other[1] and (one[0] == other[0] or (one[0] in _LOCAL and other[0] in _LOCAL))
