"""Which mesh a command talks to, and as whom."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from roost_cli import runfile
from roost_cli.exit_codes import CommandError
from roost_cli.options import settings_with
from services.platform.config import runtime_dir

Metadata = tuple[tuple[str, str], ...]

# How long a mesh gets to take a connection: one on this machine takes milliseconds.
CONNECT_S = 5.0
# A scan's message holds 1,000 tweets of up to 4,096 bytes of text and what the text names.
MAX_MESSAGE_BYTES = 64 * 1024 * 1024

_LOCAL = frozenset({"localhost", "127.0.0.1", "0.0.0.0", "::1", "::", ""})  # noqa: S104 (compared, never bound)
_START = "start one with `scripts/up` or `roost up`"


@dataclass(frozen=True, slots=True)
class Target:
    """A mesh: its gRPC address, and the operator's token if its run file or the settings hold it."""

    address: str
    operator_token: str = field(default="", repr=False)

    def operator(self) -> Metadata:
        """Returns the operator's credentials as metadata. Raises CommandError if there are none."""
        if not self.operator_token:
            raise CommandError(
                f"no operator credentials for {self.address}: no run file of it in {runtime_dir()}. "
                "They belong to the user who started the mesh; anybody else needs its token in ROOST_OPERATOR_TOKEN, or in a file "
                "that ROOST_OPERATOR_TOKEN_FILE names."
            )
        return bearer(self.operator_token)


def bearer(token: str) -> Metadata:
    """A token as call metadata."""
    return (("authorization", f"Bearer {token}"),)


def find(address: str | None, directory: Path | None = None) -> Target:
    """Returns the mesh at `address`; without it the one at ROOST_GRPC, and without that the one that runs here.

    Of several that run here it is the only one on the data folder of the settings, or else the only one of this checkout.
    Its operator's token is that of its run file, for that is this very mesh's, and without one that of the settings.
    Raises CommandError if none is found, or several fit. `directory` holds the run files, by default the user's own.
    """
    runs = runfile.running(directory)
    settings = settings_with({})
    if address is None and "grpc" in settings.model_fields_set and not settings.grpc.endswith(":0"):
        address = settings.grpc
    if address is not None:
        wanted = _split(address)
        token = next((run.operator_token for run in runs if _same(_split(run.grpc), wanted)), settings.operator_token)
        return Target(address, token)
    if not runs:
        raise CommandError(f"no mesh runs here: {_START}, or name one with --grpc HOST:PORT")
    fitting = (runs, of_data(runs, settings.data_dir), [run for run in runs if run.checkout == str(runfile.CHECKOUT)])
    for some in fitting:
        if len(some) == 1:
            return Target(some[0].grpc, some[0].operator_token)
    listed = "\n".join(f"  --grpc {run.grpc}   (process {run.pid}, data in {run.data or '?'})" for run in runs)
    raise CommandError(f"several meshes run here. Say which one is meant with --grpc or ROOST_GRPC:\n{listed}")


def of_data(runs: Sequence[runfile.RunFile], data_dir: Path) -> list[runfile.RunFile]:
    """Returns the meshes that keep their data in this folder, or in one below it, as each process of a mesh of many does."""
    folder = data_dir.resolve()
    return [run for run in runs if run.data and folder in (Path(run.data), *Path(run.data).parents)]


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
