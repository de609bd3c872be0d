"""Finds the mesh that a command calls, opens channels to it, and builds the credentials for its calls."""

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

# Maximum number of seconds for opening the connections. On the same machine it takes milliseconds.
CONNECT_S = 5.0
# Maximum size in bytes of a received message. The largest ones are the messages of a scan: 1,000 tweets, each with up
# to 4,096 bytes of text plus its entities.
MAX_MESSAGE_BYTES = 64 * 1024 * 1024

_LOCAL = frozenset({"localhost", "127.0.0.1", "0.0.0.0", "::1", "::", ""})  # noqa: S104 (compared, never bound)
_START = "start one with `scripts/up` or `roost up`"


@dataclass(frozen=True, slots=True)
class MeshTarget:
    """The gRPC address of a mesh, and its operator token, "" if neither a run file nor the settings contain one."""

    address: str
    operator_token: str = field(default="", repr=False)

    def operator(self) -> Metadata:
        """Returns the operator token as call metadata. Raises CommandError if there is none."""
        if not self.operator_token:
            raise CommandError(
                f"no operator credentials for {self.address}: no run file of it in {runtime_dir()}. "
                "Only the user who started the mesh has the run file; others set ROOST_OPERATOR_TOKEN, or name a file with the token "
                "in ROOST_OPERATOR_TOKEN_FILE."
            )
        return bearer(self.operator_token)


def bearer(token: str) -> Metadata:
    """Returns an access token as call metadata."""
    return (("authorization", f"Bearer {token}"),)


def find(address: str | None, directory: Path | None = None) -> MeshTarget:
    """Returns the mesh to call: the mesh at `address`; if `address` is None, the mesh at ROOST_GRPC_ADDRESS; if this
    variable is not set either, the mesh that runs on this machine.

    If several meshes run on this machine, chooses the mesh that uses the data directory of the settings, or if none
    does, the mesh that runs the code of this checkout. The operator token is read from the run file of the chosen mesh,
    or if the mesh has no run file, from the settings. `directory` contains the run files; None is the user's runtime
    directory. Raises CommandError if no mesh is found, or if several are equally suitable.
    """
    runs = runfile.running(directory)
    settings = settings_with({})
    if address is None and "grpc_address" in settings.model_fields_set and not settings.grpc_address.endswith(":0"):
        address = settings.grpc_address
    if address is not None:
        wanted = _parse_address(address)
        token = next(
            (run.operator_token for run in runs if _same_server(_parse_address(run.grpc), wanted)),
            settings.operator_token,
        )
        return MeshTarget(address, token)
    if not runs:
        raise CommandError(f"no mesh runs here: {_START}, or name one with --grpc HOST:PORT")
    if (chosen := choose(runs, settings.data_dir)) is not None:
        return MeshTarget(chosen.grpc, chosen.operator_token)
    listed = "\n".join(f"  --grpc {run.grpc}   (process {run.pid}, data in {run.data or '?'})" for run in runs)
    raise CommandError(f"several meshes run here: name one with --grpc or ROOST_GRPC_ADDRESS\n{listed}")


def run_at(address: str, directory: Path | None = None) -> runfile.RunFile | None:
    """Returns the run file of the mesh at `address`, in which the local machine may have any of its names; None if
    there is none. Raises CommandError if `address` is malformed."""
    wanted = _parse_address(address)
    return next((run for run in runfile.running(directory) if _same_server(_parse_address(run.grpc), wanted)), None)


def choose(runs: Sequence[runfile.RunFile], data_dir: Path) -> runfile.RunFile | None:
    """Returns the only one of the meshes; if there are several, the one that uses `data_dir`, or if none does, the one
    that runs the code of this checkout. Returns None if there is no mesh, or if several are equally suitable."""
    fitting = (
        runs,
        with_data_in(runs, data_dir),
        [run for run in runs if run.checkout == str(runfile.CHECKOUT)],
    )
    return next((some[0] for some in fitting if len(some) == 1), None)


def with_data_in(runs: Sequence[runfile.RunFile], data_dir: Path) -> list[runfile.RunFile]:
    """Returns the meshes whose data directory is `data_dir` or a directory in it. The processes of `up --processes` use
    subdirectories of `data_dir`."""
    folder = data_dir.resolve()
    return [run for run in runs if run.data and folder in (Path(run.data), *Path(run.data).parents)]


@asynccontextmanager
async def connect(target: MeshTarget, count: int = 1) -> AsyncIterator[Sequence[grpc.aio.Channel]]:
    """Opens `count` channels to the mesh, each with its own TCP connection, yields them, and closes them at the end of
    the block.

    Raises CommandError if the connections are not established within CONNECT_S seconds.
    """
    options = (
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        # Without this option gRPC shares one connection among all channels of a process.
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


def _parse_address(address: str) -> tuple[str, int]:
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit() or not 0 < int(port) < 65_536:
        raise CommandError(
            f"grpc_address (--grpc, ROOST_GRPC_ADDRESS) must be HOST:PORT, such as 127.0.0.1:50051, not {address!r}"
        )
    return host.strip("[]").lower(), int(port)


def _same_server(one: tuple[str, int], other: tuple[str, int]) -> bool:
    """Returns whether two (host, port) pairs name the same server. All names of the local machine count as equal."""
    return one[1] == other[1] and (one[0] == other[0] or (one[0] in _LOCAL and other[0] in _LOCAL))
